"""The labels that a run never or almost never predicted: reported by fit when the run ends, and by the report.

This is the only definition of a dead label. The statistics use it for the seeds that they count as lost.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.scores.dice import dice
from fmcache.scores.records import RunResults

DEAD = 0.05
"""A label that the truth holds counts as dead when its Dice is below this."""
WHAT_HELPS = (
    "What helped in our studies: learning_rate 1e-3 instead of 1e-4, more passes_per_epoch, standardise: channel, or "
    "another decoder"
)
"""The changes of a recipe that brought dead labels back, for messages."""


def dead(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which labels are dead, (...), from tp, fp and fn summed over tiles, (..., 3)."""
    tp, _, fn = np.moveaxis(counts, -1, 0)
    return np.asarray((tp + fn > 0) & (np.nan_to_num(dice(counts)) < DEAD))


def missed(run: RunResults) -> tuple[str, ...]:
    """Return the labels of the test tiles that a run never or almost never predicted.

    A label that is known to be in no training tile is left out: no decoder could learn it.
    """
    trained = run.record.label_pixels.get("train", ())
    labels = [name for name, _ in run.record.labels]
    unseen = {name for name, pixels in zip(labels, trained, strict=False) if pixels == 0}
    sums = run.counts.filter(pl.col("split") == "test").group_by("label").agg(pl.col("tp", "fp", "fn").sum())
    poor = {label for label, *counts in sums.iter_rows() if dead(np.array(counts, dtype=np.int64))}
    return tuple(name for name in labels if name in poor | set(run.record.collapsed) and name not in unseen)
