"""How a run ended, told from its curves and test counts: a run is in exactly one class, a class says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from fmcache.scores.missed import AS_GOOD_AS_NEVER, missed
from fmcache.scores.records import RunResults

RISING = 0.01
"""Validation Dice rises when its last part is this far above all parts before."""

PARTS, FEWEST_VALIDATIONS, FEWEST_EPOCHS = 5, 3, 4


class Ending(Enum):
    """The ways a run can end, the gravest first."""

    COLLAPSED = "collapsed"
    RISING = "rising"
    LEARNT = "learnt"
    ENDED = "ended"
    UNTOLD = "untold"


class Told(NamedTuple):
    """How a class is told: its mark in tables, what was seen, and what to do."""

    mark: str
    seen: str
    advice: str


TOLD = {
    Ending.COLLAPSED: Told(
        "†",
        f"collapsed (a label of the test tiles never predicted, or with a Dice below {AS_GOOD_AS_NEVER:.0%})",
        "This tells of the training, not of the encoder: train longer (epochs or passes_per_epoch), set "
        "standardise: channel, or add training tiles with that label",
    ),
    Ending.RISING: Told(
        "‡",
        "loss still falling and validation Dice still rising at the end",
        "More epochs or passes_per_epoch will help, and may change the order of encoders",
    ),
    Ending.LEARNT: Told(
        "§",
        "loss still falling, but validation Dice flat or falling",
        "More training is unlikely to help, they learn their training tiles: fewer passes_per_epoch, more tiles or "
        "more views",
    ),
    Ending.ENDED: Told("", "loss flat: training has ended", "More epochs will not help"),
    Ending.UNTOLD: Told(
        "",
        "too few epochs, or of a falling loss too few validations above 0, to tell whether more training helps",
        f"It takes {FEWEST_EPOCHS} epochs and {FEWEST_VALIDATIONS} validations: raise epochs or lower validate_epochs",
    ),
}


def ending(part: RunResults) -> Ending:
    """Return how a run ended."""
    if missed(part):
        return Ending.COLLAPSED
    validations = part.curve.get_column("val_dice").drop_nulls().to_list()
    return trained_to(part.record.still_falling, part.curve.height, validations)


def trained_to(still_falling: bool, epochs: int, validations: Sequence[float]) -> Ending:
    """Return how a run that did not collapse ended, from its loss and its validation Dice in the order of epochs."""
    if epochs < FEWEST_EPOCHS:
        return Ending.UNTOLD
    if not still_falling:
        return Ending.ENDED
    if len(validations) < FEWEST_VALIDATIONS or not any(validations):  # all 0: no label, or nothing learnt of any
        return Ending.UNTOLD
    return Ending.RISING if rises(validations) else Ending.LEARNT


def rises(validations: Sequence[float]) -> bool:
    """Return whether validation Dice was still rising at the end.

    Validations are averaged in at most five parts of equal length, so that noise counts less where there are many. The
    mean of the last two parts (the last one, of three) must be above every part before by `RISING`: a curve that rose
    early and is flat since does not pass, nor does a noisy one whose last value happens to be its best.
    """
    parts = np.array([np.mean(part) for part in np.array_split(np.asarray(validations), min(PARTS, len(validations)))])
    recent = 2 if len(parts) > FEWEST_VALIDATIONS else 1
    return bool(parts[-recent:].mean() > parts[:-recent].max() + RISING)
