"""The labels that a run never or almost never predicted: reported by fit when the run ends, and by the report."""

from __future__ import annotations

import numpy as np
import polars as pl

from fmcache.scores.dice import dice
from fmcache.scores.records import RunResults

AS_GOOD_AS_NEVER = 0.05
"""A label of the test tiles with a Dice below this counts as never predicted."""


def missed(run: RunResults) -> tuple[str, ...]:
    """Return the labels of the test tiles that a run never or almost never predicted.

    A label that is known to be in no training tile is left out: no decoder could learn it.
    """
    trained = run.record.label_pixels.get("train", ())
    labels = [name for name, _ in run.record.labels]
    unseen = {name for name, pixels in zip(labels, trained, strict=False) if pixels == 0}
    sums = run.counts.filter(pl.col("split") == "test").group_by("label").agg(pl.col("tp", "fp", "fn").sum())
    counts = {label: np.array(sums_, dtype=np.int64) for label, *sums_ in sums.iter_rows()}
    poor = {
        name for name, (tp, fp, fn) in counts.items() if tp + fn and dice(np.array([tp, fp, fn])) < AS_GOOD_AS_NEVER
    }
    return tuple(name for name in labels if name in poor | set(run.record.collapsed) and name not in unseen)
