"""A label map of a whole picture: read, predict, blend and hand over rows from top to bottom, all concurrently.

Threads read ahead; the caller's thread runs the model; one more thread blends windows and hands over finished rows.
Memory does not grow with the height of the picture; `memory_bytes` is its bound. Beyond `SPILL_BYTES`, the part that
grows with the width is mapped from a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.maps.contract import Band
from fmcache.prediction.blending import SPILL_BYTES, Blender
from fmcache.prediction.lattice import Axis, Coverage, axis_of
from fmcache.prediction.tile_model import Probabilities, TileModel
from fmcache.prediction.tile_stream import Batch, Picture, Pixels, Strip, Strips
from fmcache.runtime.prefetch import WriteBehind, pool_of
from fmcache.tiles.views import opencv_on_one_thread

PENDING = 2
"""Predicted batches that wait to be blended."""
PROBABILITIES_BYTES = 128 * 2**20
"""Largest size of the probabilities of one batch; it bounds the batch when a model has many seeds or labels."""


class Windows(NamedTuple):
    """The windows over a picture: both axes, and which windows are needed, (row, column) bool."""

    rows: Axis
    columns: Axis
    wanted: npt.NDArray[np.bool_]
    coverage: Coverage

    @property
    def tiles(self) -> int:
        """Number of tiles that the model gets."""
        return int(self.wanted.sum())


def windows_over(picture: Picture, tile_px: int, covered_px: int, overlap: float, coverage: Coverage) -> Windows:
    """Return the windows over a picture; raises SpecError as `axis_of`."""
    rows, columns = (axis_of(size, tile_px, covered_px, overlap) for size in (picture.height, picture.width))
    return Windows(rows, columns, coverage.windows(rows, columns), coverage)


class Settings(NamedTuple):
    """Tiles per batch, threads that read, folder for large sums, and whether bands hold probabilities."""

    batch: int
    threads: int
    spill: Path
    shares: bool = False


def predict_bands(
    picture: Picture,
    model: TileModel,
    windows: Windows,
    settings: Settings,
    receive: Callable[[Band], None],
    tick: Callable[[int], None] = lambda _: None,
) -> None:
    """Call `receive` with all bands of the map, in order, from one background thread; `tick` counts tiles.

    The picture of a band is white where it was not read, because nothing is predicted near.

    Raises
    ------
    FmcacheError
        Errors of the picture, the model and `receive`.
    """
    n_labels = len(model.labels)
    blender = Blender(
        windows.rows, windows.columns, n_labels, windows.coverage, settings.spill, shares=settings.shares
    )  # fmt: skip
    joiner = _Joiner(blender, receive)
    strips = Strips(picture, windows.rows, windows.columns, windows.wanted)
    with (
        opencv_on_one_thread(),
        ThreadPoolExecutor(1, "blend") as blending,
        pool_of(settings.threads, "read") as readers,
    ):
        behind = WriteBehind(blending, PENDING)
        for batch in strips.batches(settings.batch, readers):
            behind.hand_over(joiner.add, batch, _mean(model(batch.tiles)) if batch.places else None)
            tick(len(batch.places))
        behind.hand_over(joiner.finish)
        behind.finish()


def memory_bytes(columns: Axis, n_labels: int, seeds: int, batch: int) -> int:
    """Return the most memory that a map takes beside the model and the writers.

    For each pixel of the picture's width: sums of 8 bytes for each label and covered row, and 3 bytes for the rows of
    the picture that windows and bands still need. Then batches of tiles and their probabilities.
    """
    sums = 8 * n_labels * columns.covered_px * columns.size_px
    rows = 3 * (2 * columns.tile_px + 4 * columns.stride_px) * columns.size_px
    tiles = batch * (3 * columns.tile_px**2 + 4 * seeds * n_labels * columns.covered_px**2)
    return min(sums, SPILL_BYTES) + rows + (PENDING + 2) * tiles


def tiles_at_a_time(asked: int, seeds: int, labels: int, covered_px: int) -> int:
    """Return how many tiles a model gets at a time: `asked`, or fewer so that their probabilities stay small."""
    return max(1, min(asked, PROBABILITIES_BYTES // (4 * seeds * labels * covered_px**2)))


def _mean(of_seeds: Iterable[Probabilities]) -> Probabilities:
    """Return the mean probabilities over seeds; equal ones give exactly themselves."""
    first, *others = of_seeds
    if not others:
        return first
    total = first.astype(np.float64)
    for other in others:
        total += other
    return (total / (1 + len(others))).astype(np.float32)


class _Joiner:
    """Blends batches, and joins finished rows with the picture. Used by one thread."""

    def __init__(self, blender: Blender, receive: Callable[[Band], None]) -> None:
        self._blender, self._receive = blender, receive
        self._strips: deque[Strip] = deque()

    def add(self, batch: Batch, probabilities: Probabilities | None) -> None:
        self._strips.extend(batch.strips)
        if probabilities is None:
            return
        for (row, column), one in zip(batch.places, probabilities, strict=True):
            self._give(self._blender.up_to(row))
            self._blender.add(row, column, one)

    def finish(self) -> None:
        self._give(self._blender.rest())

    def _give(self, finished: Iterator[Band]) -> None:
        for band in finished:
            self._receive(band._replace(picture=self._picture(band.top, band.top + len(band.labels))))

    def _picture(self, top: int, bottom: int) -> Pixels:
        while self._strips and self._strips[0].top + len(self._strips[0].pixels) <= top:
            self._strips.popleft()
        parts = [
            strip.pixels[max(top - strip.top, 0) : bottom - strip.top] for strip in self._strips if strip.top < bottom
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
