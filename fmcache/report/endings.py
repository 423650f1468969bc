"""How a run ended, from its curves and test counts. A run is in exactly one class; each class has an advice."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from fmcache.scores.missed import DEAD, WHAT_HELPS, missed
from fmcache.scores.records import RunResults

RISING = 0.01
"""Validation Dice is rising when its last part is this much above all parts before."""

PARTS, FEWEST_VALIDATIONS, FEWEST_EPOCHS = 5, 3, 4


class Ending(Enum):
    """The ways a run can end, the most serious first."""

    COLLAPSED = "collapsed"
    RISING = "rising"
    LEARNT = "learnt"
    ENDED = "ended"
    UNKNOWN = "unknown"


class EndingText(NamedTuple):
    """How a class is reported: its mark in tables, what was observed, and what to do."""

    mark: str
    seen: str
    advice: str


ENDING_TEXTS = {
    Ending.COLLAPSED: EndingText(
        "†",
        f"collapsed (a label of the test tiles never predicted, or with a Dice below {DEAD:.0%})",
        f"This is a problem of the training, not of the encoder. {WHAT_HELPS}; more training tiles with the label may "
        "help too",
    ),
    Ending.RISING: EndingText(
        "‡",
        "loss still falling and validation Dice still rising at the end",
        f"More training will help and may change the order of encoders. {WHAT_HELPS}",
    ),
    Ending.LEARNT: EndingText(
        "§",
        "loss still falling, but validation Dice flat or falling",
        "More training is unlikely to help, the decoders are overfitting: use fewer passes_per_epoch, more tiles or "
        "more views",
    ),
    Ending.ENDED: EndingText("", "loss flat: training has ended", "More epochs will not help"),
    Ending.UNKNOWN: EndingText(
        "",
        "unknown whether more training helps: too few epochs, or a falling loss with too few validations above 0",
        f"At least {FEWEST_EPOCHS} epochs and {FEWEST_VALIDATIONS} validations are needed: raise epochs or lower "
        "validate_epochs",
    ),
}


def ending(run: RunResults) -> Ending:
    """Return how a run ended."""
    if missed(run):
        return Ending.COLLAPSED
    validations = run.curve.get_column("val_dice").drop_nulls().to_list()
    return trained_to(run.record.still_falling, run.curve.height, validations)


def trained_to(still_falling: bool, epochs: int, validations: Sequence[float]) -> Ending:
    """Return how a run ended that did not collapse, from its loss and its validation Dice in the order of epochs."""
    if epochs < FEWEST_EPOCHS:
        return Ending.UNKNOWN
    if not still_falling:
        return Ending.ENDED
    if len(validations) < FEWEST_VALIDATIONS or not any(validations):  # all 0: no label in val, or nothing learnt
        return Ending.UNKNOWN
    return Ending.RISING if rises(validations) else Ending.LEARNT


def rises(validations: Sequence[float]) -> bool:
    """Return whether validation Dice was still rising at the end.

    Validations are averaged in at most five parts of equal length, which reduces noise when there are many. The mean of
    the last two parts (of the last part, if there are three) must be above every part before by `RISING`. A curve that
    rose early and then became flat does not pass. A noisy curve whose last value is the best by chance does not pass
    either.
    """
    parts = np.array([np.mean(part) for part in np.array_split(np.asarray(validations), min(PARTS, len(validations)))])
    recent = 2 if len(parts) > FEWEST_VALIDATIONS else 1
    return bool(parts[-recent:].mean() > parts[:-recent].max() + RISING)
