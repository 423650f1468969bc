"""Dice from counts. A label that is absent in truth and prediction has no Dice (NaN) and is left out of every mean.

The metric of the PUMA challenge is an exception: such a label counts as 0, and the background is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from fmcache.errors import SpecError

Reduction = Literal["pooled", "per_tile", "puma"]
BACKGROUND = "background"
PUMA_EPSILON = 1e-5


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
        occurs in truth or prediction. ``puma``: the Dice of the challenge, see `puma_dice`.
    """
    if reduction == "puma":
        return puma_dice(counts)
    if reduction == "pooled":
        return dice(counts.sum(axis=0))
    return mean_of_defined(dice(counts), axis=0)


def puma_dice(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the tissue Dice of the PUMA challenge, (label,), from counts (tile, label, 3).

    Counts are summed over the tiles. Dice = (2 I + 1e-5) / (A + B + 1e-5), and 0 when the intersection I is empty.
    Label 0 is the background: it has no Dice (NaN), so the mean is over the other labels.

    References
    ----------
    Evaluation of the PUMA challenge (Schuiveling et al. 2025, GigaScience), tissue track.
    """
    tp, fp, fn = np.moveaxis(counts.sum(axis=0).astype(np.float64), -1, 0)
    result: npt.NDArray[np.float64] = (2 * tp + PUMA_EPSILON) / (2 * tp + fp + fn + PUMA_EPSILON)
    result[tp == 0] = 0.0
    result[0] = np.nan
    return result


def check_reduction(reduction: Reduction, labels: Sequence[str]) -> None:
    """Raise SpecError when a reduction cannot be used with these labels."""
    if reduction == "puma" and labels[0] != BACKGROUND:
        raise SpecError(
            "`dice: puma` leaves out the first label, which must be the background",
            expected=f"{BACKGROUND!r} as the first label, as in dataset puma-official",
            found=", ".join(labels),
            next_step="use dataset puma-official, or `dice: pooled`",
        )


def mean_of_defined(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Return the mean over the values that are not NaN; NaN when all values are NaN."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    mean: npt.NDArray[np.float64] = np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0)
    return mean
