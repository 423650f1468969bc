"""Blend the probabilities of overlapping windows, and give up finished rows from top to bottom.

The probability of a pixel is the mean over its windows, weighted by the product of a row weight and a column weight.
Weights are small integers and sums are float64, so that no rounding occurs before the division: probabilities that are
equal in all windows of a pixel come out unchanged, bit for bit.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmcache.maps.contract import GLASS, Band
from fmcache.prediction.lattice import Axis, Coverage
from fmcache.prediction.tile_model import Probabilities

SPILL_BYTES = 2**30
"""Larger sums are stored in an unnamed file that is mapped into memory; the system removes it when the process ends."""
PIECE_ROWS = 64
"""Rows that are divided at a time: this bounds temporary arrays."""

Map = npt.NDArray[np.uint8]


class Blender:
    """Sums of weighted probabilities over one row of windows; earlier rows are already given up.

    It holds 8 bytes for each label and pixel of `covered_px` rows of the picture's full width.

    Parameters
    ----------
    shares
        Whether bands hold probability and disagreement.
    spill
        The folder for sums larger than `SPILL_BYTES`.
    """

    def __init__(self, rows: Axis, columns: Axis, n_labels: int, coverage: Coverage, spill: Path, *, shares: bool):
        self._rows, self._columns, self._coverage, self._shares = rows, columns, coverage, shares
        # row r of the picture is row r modulo covered_px of the sums
        self._sums = _zeros((n_labels, rows.covered_px, columns.size_px), spill)
        self._weights = (rows.weights[:, None] * columns.weights[None, :]).astype(np.float64)
        self._row_sums, self._column_sums = rows.weight_sums, columns.weight_sums
        self._weighted = np.empty((n_labels, rows.covered_px, columns.covered_px))
        self._at = 0

    def up_to(self, row: int) -> Iterator[Band]:
        """Yield the rows of the picture that windows from row `row` on do not reach."""
        for at in range(self._at, row):
            start = self._rows.starts[at]
            yield from self._given_up(start, start + self._rows.stride_px)
        self._at = row

    def add(self, row: int, column: int, probabilities: Probabilities) -> None:
        """Add a window's probabilities (label, y, x); `row` is the one that `up_to` was last called with."""
        weighted = np.multiply(probabilities, self._weights, out=self._weighted)
        side, left = self._rows.covered_px, self._columns.starts[column]
        inside = slice(max(left, 0), min(left + side, self._columns.size_px))
        part = weighted[:, :, inside.start - left : inside.stop - left]
        turn = self._rows.starts[row] % side
        self._sums[:, turn:, inside] += part[:, : side - turn]
        self._sums[:, :turn, inside] += part[:, side - turn :]

    def rest(self) -> Iterator[Band]:
        """Yield the rows that are still held."""
        yield from self.up_to(len(self._rows.starts) - 1)
        start = self._rows.starts[self._at]
        yield from self._given_up(start, start + self._rows.covered_px)

    def _given_up(self, start: int, stop: int) -> Iterator[Band]:
        """Yield the finished rows between two rows of the picture, and set their sums to 0 for later rows."""
        side, size = self._rows.covered_px, self._rows.size_px
        for top in range(start, stop, PIECE_ROWS):
            bottom = min(top + PIECE_ROWS, stop)
            at = np.arange(top, bottom) % side
            inside = (np.arange(top, bottom) >= 0) & (np.arange(top, bottom) < size)
            if inside.any():
                first, last = max(top, 0), min(bottom, size)
                yield self._finished(first, last, at[inside])
            self._sums[:, at] = 0

    def _finished(self, top: int, bottom: int, at: npt.NDArray[np.int64]) -> Band:
        width, n_labels = self._columns.size_px, len(self._sums)
        predicted = self._coverage.pixels(top, bottom, width)
        labels = np.full(predicted.shape, GLASS, np.uint8)
        probability = disagreement = None
        if self._shares:
            probability, disagreement = np.zeros((n_labels, *labels.shape), np.uint8), np.zeros_like(labels)
        if predicted.any():
            columns = np.flatnonzero(predicted.any(axis=0))
            part = slice(int(columns[0]), int(columns[-1]) + 1)
            sums, seen = self._sums[:, at, part], predicted[:, part]
            labels[:, part][seen] = _largest(sums)[seen]
            if probability is not None and disagreement is not None:
                sums /= self._row_sums[top:bottom, None] * self._column_sums[None, part]
                probability[:, :, part] = np.where(seen, np.rint(255 * sums), 0)
                disagreement[:, part] = np.where(seen, np.rint(255 * _entropy(sums)), 0)
        return Band(top, labels, probability, disagreement)


def _largest(values: npt.NDArray[np.float64]) -> Map:
    """Return the index of the largest of (label, y, x), the first of equal ones; faster than argmax on this axis."""
    best, labels = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    for label in range(1, len(values)):
        labels[values[label] > best] = label
        np.maximum(best, values[label], out=best)
    return labels


def _entropy(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the entropy of probabilities (label, y, x) as a share of the largest possible entropy, (y, x)."""
    if len(shares) == 1:
        return np.zeros(shares.shape[1:])
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(np.clip(-(shares * logs).sum(axis=0) / math.log(len(shares)), 0, 1))


def _zeros(shape: tuple[int, ...], spill: Path) -> npt.NDArray[Any]:
    size = 8 * math.prod(shape)
    if size <= SPILL_BYTES:
        return np.zeros(shape)
    with tempfile.TemporaryFile(dir=spill) as file:  # the mapping outlives the closed file
        if hasattr(os, "posix_fallocate"):  # otherwise a disk that fills up later would end the process at some write
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.float64, "r+", shape=shape)
