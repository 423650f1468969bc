"""Whether a decoder's confidence is right: pixels by confidence, counted per tile, and the error computed from them.

The confidence of a pixel is the largest softmax probability. It is counted in millionths, so that all counts are
integers: they add up exactly over tiles, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.manifest import IGNORE
from fmcache.scores.run_files import CALIBRATION, listed_table

BINS = 15
"""Bins of equal width, as in the paper. Bin i holds confidences above i / 15, up to and including (i + 1) / 15."""
MILLION = 1_000_000
SCHEMA = {
    "tile": pl.String,
    "bin": pl.Int64,
    "pixels": pl.Int64,
    "confidence": pl.Int64,
    "correct": pl.Int64,
}


def calibration_counts(
    confidence: npt.NDArray[np.float32], prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Return pixels, the sum of confidences in millionths, and correct pixels of each bin.

    Parameters
    ----------
    confidence
        (y, x), 0..1. NaN, the result of a training that diverged, counts as 0.
    prediction, truth
        (y, x) label ids; pixels that are 255 in the truth do not count.

    Returns
    -------
    (bin, 3) int64.
    """
    seen = truth != IGNORE
    micro = np.rint(np.nan_to_num(confidence[seen].astype(np.float64)) * MILLION).astype(np.int64)
    at = np.maximum((micro * BINS - 1) // MILLION, 0)
    correct = prediction[seen] == truth[seen]
    # sums of integers below 2**53 are exact as floats
    columns = [np.bincount(at, weights, BINS) for weights in (None, micro, correct)]
    return np.stack(columns, axis=1).astype(np.int64)


def calibration_error(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the expected calibration error, (...), of counts (..., bin, 3); NaN without pixels.

    It is the mean over pixels of abs(accuracy - mean confidence) of the pixel's bin.

    References
    ----------
    Guo et al. 2017, On calibration of modern neural networks, eq. 3; Naeini et al. 2015.
    """
    pixels, confidence, correct = np.moveaxis(counts.astype(np.float64), -1, 0)
    gaps = np.abs(correct - confidence / MILLION).sum(axis=-1)
    total = pixels.sum(axis=-1)
    return np.asarray(np.divide(gaps, total, out=np.full_like(total, np.nan), where=total > 0))


def write_calibration(folder: Path, tiles: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
    """Write counts (tile, bin, 3) into the (unfinished) folder of a run; bins without pixels are left out."""
    rows = [(tiles[tile], at, *counts[tile, at].tolist()) for tile, at in np.argwhere(counts[..., 0]).tolist()]
    pl.DataFrame(rows, SCHEMA, orient="row").write_parquet(folder / CALIBRATION)


def read_calibration(folder: Path) -> pl.DataFrame | None:
    """Return the table that a run wrote, with the columns `SCHEMA`; None for a run of an earlier fmcache.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch
        When there is no such run, its files are damaged, or a later fmcache wrote them.
    """
    return listed_table(folder, CALIBRATION, SCHEMA)
