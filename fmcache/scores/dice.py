"""Dice from counts. A label that is absent in truth and prediction has no Dice (NaN) and is left out of every mean."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Reduction = Literal["pooled", "per_tile"]


def dice(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return 2 tp / (2 tp + fp + fn) for counts (..., 3); NaN where all three are 0.

    References
    ----------
    Dice 1945, Measures of the amount of ecologic association between species.
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    whole = 2 * tp + fp + fn
    result: npt.NDArray[np.float64] = np.divide(2 * tp, whole, out=np.full_like(whole, np.nan), where=whole > 0)
    return result


def dice_per_label(counts: npt.NDArray[np.int64], reduction: Reduction) -> npt.NDArray[np.float64]:
    """Return the Dice of each label over a split, (label,).

    Parameters
    ----------
    counts
        (tile, label, 3): tp, fp, fn.
    reduction
        ``pooled``: counts are summed over the tiles first. ``per_tile``: mean over the tiles in which the label
        occurs in truth or prediction.
    """
    if reduction == "pooled":
        return dice(counts.sum(axis=0))
    return mean_of_defined(dice(counts), axis=0)


def mean_of_defined(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Return the mean over the values that are not NaN; NaN where there is none."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    mean: npt.NDArray[np.float64] = np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0)
    return mean
