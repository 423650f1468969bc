"""A slide, TIFF or large image as one picture at the um/px of a study, read by windows.

A pixel has the same value whatever window it is read in. Memory depends on the window, not on the slide (except for
plain images, which are loaded as a whole).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fmcache.errors import SpecError
from fmcache.slides.levels import Levels, opened_levels
from fmcache.slides.resampling import plan_taps, resample
from fmcache.slides.slide import SAME_MPP, best_level
from fmcache.tiles.pixels import Pixels

PIECE_PX = 1 << 20  # pixels of a level that are resampled at a time (about 40 MB)


class Canvas:
    """A picture of `height` x `width` pixels at `mpp` um/px, as requested.

    `scale` is the number of pixels of level 0 per pixel: x of level 0, counted from the picture's origin as in QuPath,
    is x * `scale`. It is the exact quotient of both um/px. A level within 1 % of the requested um/px is not resampled:
    `scale` is then that of the level, and `true_mpp` is the um/px of its pixels. Otherwise `true_mpp` equals `mpp`.
    `key` identifies the content.
    """

    def __init__(self, path: Path, levels: Levels, mpp: float) -> None:
        self.path, self.name, self.key, self.mpp = path, path.stem.removesuffix(".ome"), levels.key, mpp
        self._levels = levels
        wanted = mpp / levels.mpp
        self._level = best_level(levels.factors, wanted)
        factor = levels.factors[self._level]
        self._factor = 1.0 if abs(wanted / factor - 1) <= SAME_MPP else wanted / factor
        self.scale = factor if self._factor == 1 else wanted
        self.true_mpp = self.scale * levels.mpp if self._factor == 1 else mpp
        self._shift = tuple(at / factor for at in levels.origin)
        # a small tolerance, because the scale is a quotient
        self.width, self.height = (max(int(edge / self.scale + 1e-6), 1) for edge in levels.size)

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        """Return a window as (y, x, colour) uint8 RGB: area means when it is coarser than the slide's best level, else
        interpolated.

        Raises
        ------
        ValueError
            When the window does not lie inside the canvas.
        TileError
            When the slide is damaged at this window.
        """
        inside = 0 <= top <= top + height <= self.height and 0 <= left <= left + width <= self.width
        if not inside or not height or not width:
            raise ValueError(f"no window in {self.height} x {self.width}: {height} x {width} at {top}, {left}")
        drawn = np.empty((height, width, 3), dtype=np.uint8)
        self._draw(drawn, top, left)
        return drawn

    def _draw(self, drawn: Pixels, top: int, left: int) -> None:
        height, width = drawn.shape[:2]
        if self._factor == 1:
            drawn[:] = self._stored(top, left, height, width)
        elif height * width * self._factor**2 <= PIECE_PX or height * width == 1:
            drawn[:] = self._resampled(top, left, height, width)
        elif height > width:
            self._draw(drawn[: height // 2], top, left)
            self._draw(drawn[height // 2 :], top + height // 2, left)
        else:
            self._draw(drawn[:, : width // 2], top, left)
            self._draw(drawn[:, width // 2 :], top, left + width // 2)

    def _stored(self, top: int, left: int, height: int, width: int) -> Pixels:
        size = self._levels.sizes[self._level]
        starts = (left + round(self._shift[0]), top + round(self._shift[1]))
        # beyond the level, which is possible when sizes are rounded, its last pixel is repeated
        columns, rows = (
            np.clip(start + np.arange(count), 0, edge - 1)
            for start, count, edge in zip(starts, (width, height), size, strict=True)
        )
        place = (int(columns[0]), int(rows[0]))
        pixels = self._levels.region(
            self._level, place, (int(columns[-1]) - place[0] + 1, int(rows[-1]) - place[1] + 1)
        )
        return np.asarray(pixels[rows - place[1]][:, columns - place[0]], dtype=np.uint8)

    def _resampled(self, top: int, left: int, height: int, width: int) -> Pixels:
        size = self._levels.sizes[self._level]
        columns = plan_taps(left, width, self._factor, self._shift[0], size[0])
        rows = plan_taps(top, height, self._factor, self._shift[1], size[1])
        place, stop = (columns.start, rows.start), (columns.stop, rows.stop)
        pixels = self._levels.region(self._level, place, (stop[0] - place[0], stop[1] - place[1]))
        return resample(pixels, rows, columns)


@contextmanager
def open_canvas(path: Path, mpp: float, mpp_of_slide: float | None = None) -> Iterator[Canvas]:
    """Open a slide, a TIFF or a plain image (PNG, JPEG, BMP) as a canvas of `mpp` um/px.

    `mpp_of_slide` overrides the um/px that the slide states; plain images need it.

    Raises
    ------
    SpecError
        When a um/px is not above 0.
    ExtraMissing, TileError
        As in `opened_levels`.
    """
    for what, value in (("um/px", mpp), ("--mpp-of-slide", mpp_of_slide)):
        if value is not None and not 0 < value < math.inf:
            raise SpecError(f"{what} {value:g}", expected="um per pixel above 0, such as 0.25", next_step="correct it")
    with opened_levels(path, mpp_of_slide) as levels:
        yield Canvas(path, levels, mpp)
