"""Read a window of a slide at any scale. A pixel has the same value in every window, and memory stays bounded."""

from __future__ import annotations

import numpy as np

from fmcache.slides.levels import Levels
from fmcache.slides.resampling import plan_taps, resample
from fmcache.slides.slide import best_level
from fmcache.tiles.pixels import Pixels

PIECE_PX = 1 << 20  # pixels of a level that are resampled at a time (about 40 MB)


def read_window(levels: Levels, scale: float, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """Return a window (y, x, colour) uint8 RGB of pixels that are `scale` pixels of level 0 wide.

    `place` (x, y) counts such pixels from the picture's origin, and `size` is (width, height). Pixels are area means
    when they are coarser than the best level, else interpolated; at the level's own scale they are its pixels. Beyond
    the end of the level, its last pixel is repeated.

    Raises
    ------
    TileError
        When the slide is damaged at this window.
    """
    level = best_level(levels.factors, scale)
    factor = scale / levels.factors[level]
    drawn = np.empty((size[1], size[0], 3), dtype=np.uint8)
    if factor == 1:
        _copy(levels, level, place, drawn)
    else:
        _draw(levels, level, factor, place, drawn)
    return drawn


def _copy(levels: Levels, level: int, place: tuple[int, int], drawn: Pixels) -> None:
    columns, rows = (
        np.clip(round(origin / levels.factors[level]) + start + np.arange(count), 0, edge - 1)
        for origin, start, count, edge in zip(
            levels.origin, place, drawn.shape[1::-1], levels.sizes[level], strict=True
        )
    )
    corner, stop = (int(columns[0]), int(rows[0])), (int(columns[-1]) + 1, int(rows[-1]) + 1)
    pixels = levels.region(level, corner, (stop[0] - corner[0], stop[1] - corner[1]))
    if pixels.shape == drawn.shape:
        drawn[:] = pixels
    else:
        drawn[:] = pixels[rows - corner[1]][:, columns - corner[0]]


def _draw(levels: Levels, level: int, factor: float, place: tuple[int, int], drawn: Pixels) -> None:
    """Fill a window, which is halved until its part of the level is small."""
    (left, top), (height, width) = place, drawn.shape[:2]
    if height * width * max(factor, 1) ** 2 > PIECE_PX and height * width > 1:
        if height > width:
            _draw(levels, level, factor, place, drawn[: height // 2])
            _draw(levels, level, factor, (left, top + height // 2), drawn[height // 2 :])
        else:
            _draw(levels, level, factor, place, drawn[:, : width // 2])
            _draw(levels, level, factor, (left + width // 2, top), drawn[:, width // 2 :])
        return
    columns, rows = (
        plan_taps(start, count, factor, origin / levels.factors[level], edge)
        for origin, start, count, edge in zip(levels.origin, place, (width, height), levels.sizes[level], strict=True)
    )
    size = (columns.stop - columns.start, rows.stop - rows.start)
    drawn[:] = resample(levels.region(level, (columns.start, rows.start), size), rows, columns)
