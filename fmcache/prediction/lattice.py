"""Where the windows of a picture lie: integers only. Rows and columns are two axes of the same kind.

A window shows a tile of `tile_px` to the model, which predicts its first `covered_px` pixels. Windows follow each other
by `stride_px`. They start before the picture and end behind it, so that every pixel lies in the same number of windows
as any other; outside, they show the picture's reflection. Without overlap the first window starts at 0, and pixels are
predicted as separate tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.errors import SpecError

MOST_OVERLAP = 0.75
"""At 0.75 each pixel is predicted 16 times."""


class Axis(NamedTuple):
    """The windows along one axis of a picture with `size_px` pixels."""

    size_px: int
    tile_px: int
    covered_px: int
    stride_px: int

    @property
    def starts(self) -> range:
        """The first pixel of each window; before the picture it is negative."""
        first = self.stride_px - self.covered_px
        # a pixel in the last stride of a window lies in no later one: the last window ends with such pixels
        steps = max(0, -(-(self.size_px - self.stride_px - first) // self.stride_px))
        return range(first, first + steps * self.stride_px + 1, self.stride_px)

    @property
    def weights(self) -> npt.NDArray[np.int64]:
        """The weight of each pixel of a window, (covered_px,): 1, 2, ..., 2, 1; all 1 without overlap.

        They are integers, so that sums of weights times probabilities are exact in float64.
        """
        if self.stride_px == self.covered_px:
            return np.ones(self.covered_px, np.int64)
        at = np.arange(self.covered_px)
        return np.minimum(at, at[::-1]) + 1

    @property
    def weight_sums(self) -> npt.NDArray[np.int64]:
        """The sum of the weights of all windows at each pixel of the picture, (size_px,)."""
        sums, weights = np.zeros(self.size_px, np.int64), self.weights
        for start in self.starts:
            inside = slice(max(start, 0), min(start + self.covered_px, self.size_px))
            sums[inside] += weights[inside.start - start : inside.stop - start]
        return sums

    def pixels(self, window: int) -> npt.NDArray[np.int64]:
        """Return the pixels of the picture that a window shows, (tile_px,), reflected at the picture's edges.

        The pixel at the edge is not repeated. A picture smaller than a tile is reflected as often as needed.
        """
        start = self.starts[window]
        at = np.arange(start, start + self.tile_px)
        period = max(1, 2 * (self.size_px - 1))
        at = at % period
        return np.minimum(at, period - at) if self.size_px > 1 else np.zeros_like(at)


def axis_of(size_px: int, tile_px: int, covered_px: int, overlap: float) -> Axis:
    """Return the windows along an axis; neighbours share the share `overlap` of what they predict.

    Raises
    ------
    SpecError
        When `overlap` is not between 0 and `MOST_OVERLAP`.
    """
    if not 0 <= overlap <= MOST_OVERLAP:
        raise SpecError(
            f"windows cannot overlap by {overlap:g}",
            expected=f"0 to {MOST_OVERLAP:g}, as a share of a tile's side",
            next_step="correct --overlap",
        )
    return Axis(size_px, tile_px, covered_px, max(1, round(covered_px * (1 - overlap))))


class Coverage(NamedTuple):
    """Which parts of a picture are predicted: `cells` (row, column) bool, each a square of `cell_px` pixels."""

    cell_px: int
    cells: npt.NDArray[np.bool_]

    def windows(self, rows: Axis, columns: Axis) -> npt.NDArray[np.bool_]:
        """Return which windows are needed, (row, column): those that predict any pixel of a cell."""
        top, bottom = self._cells_of(rows, len(self.cells))
        left, right = self._cells_of(columns, self.cells.shape[1])
        sums = np.zeros((self.cells.shape[0] + 1, self.cells.shape[1] + 1), np.int64)
        sums[1:, 1:] = self.cells.cumsum(axis=0).cumsum(axis=1)
        found = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
        return np.asarray(found > 0)

    def pixels(self, top: int, bottom: int, width: int) -> npt.NDArray[np.bool_]:
        """Return which pixels of rows `top` to `bottom` - 1 are predicted, (row, width)."""
        at = np.arange(top, bottom) // self.cell_px, np.arange(width) // self.cell_px
        return np.asarray(self.cells[at[0]][:, at[1]])

    def _cells_of(self, axis: Axis, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        starts = np.array(axis.starts)
        first = np.clip(starts, 0, axis.size_px) // self.cell_px
        stop = -(-np.clip(starts + axis.covered_px, 0, axis.size_px) // self.cell_px)
        return np.minimum(first, count), np.minimum(stop, count)


def everywhere(height: int, width: int) -> Coverage:
    """Return the coverage that leaves out nothing."""
    return Coverage(max(height, width), np.ones((1, 1), np.bool_))
