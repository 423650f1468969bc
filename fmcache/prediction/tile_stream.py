"""Read a picture once, from top to bottom, and cut it into tiles for the model. Reading is ahead of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fmcache.prediction.lattice import Axis
from fmcache.runtime.prefetch import prefetch

PIECE_PX = 2048
"""Width that one thread reads at a time."""
AHEAD = 8
"""Pieces that are read and not yet used."""
WHITE = 255
"""The colour of parts that are not read, because nothing in them is predicted."""

Pixels = npt.NDArray[np.uint8]


class Picture(Protocol):
    """A picture that is read in windows, by several threads (`fmcache.slides.canvas.Canvas`)."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        """Return a window inside the picture, (y, x, 3) uint8 RGB."""
        ...


class Strip(NamedTuple):
    """Rows of a picture from row `top`, over its full width: (y, x, 3) uint8 RGB."""

    top: int
    pixels: Pixels


class Batch(NamedTuple):
    """Tiles (tile, y, x, 3) uint8 with the (row, column) of their windows, and the strips read since the last batch."""

    places: tuple[tuple[int, int], ...]
    tiles: Pixels
    strips: tuple[Strip, ...]


class _Piece(NamedTuple):
    """A part of a strip that one thread reads: row of windows, then top, left, height and width in the picture."""

    row: int
    top: int
    left: int
    height: int
    width: int


class Strips:
    """The rows of a picture in the order in which rows of windows need them.

    A strip and the rows that windows still need are held: about `tile_px` + 2 `stride_px` rows of the full width.
    """

    def __init__(self, picture: Picture, rows: Axis, columns: Axis, wanted: npt.NDArray[np.bool_]) -> None:
        self._picture, self._rows, self._columns, self._wanted = picture, rows, columns, wanted
        shown = [rows.pixels(row) for row in range(len(rows.starts))]
        self._shown, self._first = shown, np.array([at.min() for at in shown])
        self._stop = np.array([at.max() + 1 for at in shown])
        self._read_to = np.maximum.accumulate(self._stop)
        self._kept_from = np.minimum.accumulate(self._first[::-1])[::-1]

    def batches(self, size: int, pool: Executor) -> Iterator[Batch]:
        """Yield all wanted tiles, row by row, in batches of `size`; the last batch may be smaller or empty."""
        places: list[tuple[int, int]] = []
        tiles: list[Pixels] = []
        strips: list[Strip] = []
        shown = [self._columns.pixels(column) for column in range(len(self._columns.starts))]
        for row, (strip, held, top) in enumerate(self._held(pool)):
            if len(strip.pixels):
                strips.append(strip)
            if not self._wanted[row].any():
                continue
            of_row = _taken(held, self._shown[row] - top, axis=0)
            for column in np.flatnonzero(self._wanted[row]).tolist():
                places.append((row, column))
                tiles.append(_taken(of_row, shown[column], axis=1))
                if len(places) == size:
                    yield Batch(tuple(places), np.stack(tiles), tuple(strips))
                    places, tiles, strips = [], [], []
        side = self._rows.tile_px
        rest = np.stack(tiles) if tiles else np.empty((0, side, side, 3), np.uint8)
        yield Batch(tuple(places), rest, tuple(strips))

    def _held(self, pool: Executor) -> Iterator[tuple[Strip, Pixels, int]]:
        """Yield for each row of windows the new strip, all rows that are held, and the first of these rows."""
        pieces = list(self._pieces())
        read = prefetch(pool, self._read, pieces, AHEAD)
        by_row: dict[int, list[_Piece]] = {}
        for piece in pieces:
            by_row.setdefault(piece.row, []).append(piece)
        held, top = np.empty((0, self._picture.width, 3), np.uint8), 0
        for row in range(len(self._rows.starts)):
            start, stop = self._new_rows(row)
            pixels = np.full((stop - start, self._picture.width, 3), WHITE, np.uint8)
            for piece in by_row.get(row, ()):
                pixels[:, piece.left : piece.left + piece.width] = next(read)
            held = np.concatenate([held[self._kept_from[row] - top :], pixels])
            top = int(self._kept_from[row])
            yield Strip(start, pixels), held, top

    def _new_rows(self, row: int) -> tuple[int, int]:
        return int(self._read_to[row - 1]) if row else 0, int(self._read_to[row])

    def _pieces(self) -> Iterator[_Piece]:
        """Yield the parts of each strip that a wanted window shows."""
        columns = [self._columns.pixels(column) for column in range(len(self._columns.starts))]
        for row in range(len(self._rows.starts)):
            top, bottom = self._new_rows(row)
            of_rows = self._wanted[(self._first < bottom) & (self._stop > top)].any(axis=0)
            needed = np.zeros(self._picture.width, np.bool_)
            for column in np.flatnonzero(of_rows).tolist():
                needed[columns[column]] = True
            for left, right in _runs(needed):
                for start in range(left, right, PIECE_PX):
                    if bottom > top:
                        yield _Piece(row, top, start, bottom - top, min(PIECE_PX, right - start))

    def _read(self, piece: _Piece) -> Pixels:
        return self._picture.read(piece.top, piece.left, piece.height, piece.width)


def _runs(needed: npt.NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    """Return (start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], needed, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _taken(pixels: Pixels, at: npt.NDArray[np.int64], axis: int) -> Pixels:
    """Return rows or columns of pixels; without a copy where they follow each other."""
    if (np.diff(at) == 1).all():
        part = slice(int(at[0]), int(at[-1]) + 1)
        return pixels[part] if axis == 0 else pixels[:, part]
    return np.take(pixels, at, axis=axis)
