"""Which labels a run never predicted, or as good as never: what fit says of it as it ends, and the report later."""

from __future__ import annotations

import numpy as np
import polars as pl

from fmcache.scores.dice import dice
from fmcache.scores.records import RunResults

AS_GOOD_AS_NEVER = 0.05
"""A label of the test tiles with a Dice below this counts as never predicted."""


def missed(part: RunResults) -> tuple[str, ...]:
    """Return the labels of the test tiles that a run never predicted, or as good as never.

    A label known to be in no training tile is left out: nothing could have learnt it.
    """
    trained = part.record.label_pixels.get("train", ())
    labels = [name for name, _ in part.record.labels]
    unseen = {name for name, pixels in zip(labels, trained, strict=False) if pixels == 0}
    sums = part.counts.filter(pl.col("split") == "test").group_by("label").agg(pl.col("tp", "fp", "fn").sum())
    counts = {label: np.array(sums_, dtype=np.int64) for label, *sums_ in sums.iter_rows()}
    poor = {
        name for name, (tp, fp, fn) in counts.items() if tp + fn and dice(np.array([tp, fp, fn])) < AS_GOOD_AS_NEVER
    }
    return tuple(name for name in labels if name in poor | set(part.record.collapsed) and name not in unseen)
