"""Resample windows of a picture so that a pixel has the same value in every window.

A pixel of the result is a weighted sum of source pixels: area means when it is coarser than the source, and linear
interpolation when it is finer. The positions are rounded once, from the pixel's own index, to a fraction of a pixel
that makes all sums exact in float32. A sum therefore does not depend on where the window starts. OpenCV's `resize`
always starts at the window's corner, so windows would not fit together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fmcache.tiles.pixels import Pixels

PARTS = 256
"""The largest number of parts of a pixel: sums reach 255 x 256 x 256, the largest that float32 adds exactly."""


class Taps(NamedTuple):
    """Weights of the source pixels `start` to `stop` (exclusive) for a run of pixels along one axis.

    `weights` is a sparse matrix (pixel, source pixel) float32 of whole numbers, and `totals` (pixel) float32 has the
    sums of its rows.
    """

    start: int
    stop: int
    weights: sparse.csr_array
    totals: npt.NDArray[np.float32]


def plan_taps(first: int, count: int, factor: float, shift: float, source_px: int) -> Taps:
    """Return the weights for pixels `first` to `first + count` along one axis.

    Pixel i covers the source from `shift + i * factor` to `shift + (i + 1) * factor`. Beyond the ends of the source
    (`source_px` pixels), its last pixel is repeated.
    """
    if factor > 1:
        parts = 1 << max(int(math.log2(PARTS / factor)), 0)
        edges = _rounded(shift + np.arange(first, first + count + 1) * factor, parts)
        low, high = edges[:-1, None], edges[1:, None]
        at = low // parts + np.arange(math.ceil(factor) + 1)
        weights = np.minimum((at + 1) * parts, high) - np.maximum(at * parts, low)
    else:
        parts = PARTS
        centres = _rounded(shift + (np.arange(first, first + count) + 0.5) * factor - 0.5, parts)[:, None]
        at = centres // parts + np.arange(2)
        weights = parts - np.abs(centres - at * parts)
    weights, at = np.maximum(weights, 0).astype(np.float32), np.clip(at, 0, source_px - 1)
    start, stop = int(at.min()), int(at.max()) + 1
    ends = np.arange(count + 1) * at.shape[1]
    matrix = sparse.csr_array((weights.ravel(), (at - start).ravel(), ends), shape=(count, stop - start))
    return Taps(start, stop, matrix, weights.sum(axis=1))


def _rounded(places: npt.NDArray[np.floating], parts: int) -> npt.NDArray[np.int64]:
    return np.asarray(np.floor(places * parts + 0.5), dtype=np.int64)


def resample(pixels: Pixels, rows: Taps, columns: Taps) -> Pixels:
    """Return the weighted means of source pixels (y, x, colour) uint8, which hold exactly the rows and columns of the
    taps."""
    height, width, colours = pixels.shape
    down = rows.weights @ pixels.reshape(height, width * colours).astype(np.float32)
    across = down.reshape(-1, width, colours).swapaxes(0, 1).reshape(width, -1)
    sums = (columns.weights @ across).reshape(-1, len(rows.totals), colours).swapaxes(0, 1)
    means = sums / np.outer(rows.totals, columns.totals)[..., None]
    return np.ascontiguousarray(np.rint(means).astype(np.uint8))
