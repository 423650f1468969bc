"""A slide, TIFF or large image as one picture at the um/px of a study, read by windows.

A pixel has the same value whatever window it is read in. Memory depends on the window, not on the slide (except for
plain images, which are loaded as a whole).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmcache.errors import SpecError
from fmcache.slides.levels import Levels, opened_levels
from fmcache.slides.slide import SAME_MPP, best_level
from fmcache.slides.window_pixels import read_window
from fmcache.tiles.pixels import Pixels


class Canvas:
    """A picture of `height` x `width` pixels at `mpp` um/px, as requested.

    `scale` is the number of pixels of level 0 per pixel: x of level 0, counted from the picture's origin as in QuPath,
    is x * `scale`. It is the exact quotient of both um/px. A level within 1 % of the requested um/px is not resampled:
    `scale` is then that of the level, and `true_mpp` is the um/px of its pixels. Otherwise `true_mpp` equals `mpp`.
    `full_size` is (width, height) in pixels of level 0, and `key` identifies the content.
    """

    def __init__(self, path: Path, levels: Levels, mpp: float) -> None:
        self.path, self.name, self.key, self.mpp = path, path.stem.removesuffix(".ome"), levels.key, mpp
        wanted, self.full_size = mpp / levels.mpp, levels.size
        near = levels.factors[best_level(levels.factors, wanted)]
        kept = abs(wanted / near - 1) <= SAME_MPP
        self.scale, self.true_mpp = (near, near * levels.mpp) if kept else (wanted, mpp)
        # a small tolerance, because the scale is a quotient
        self.width, self.height = (max(int(edge / self.scale + 1e-6), 1) for edge in levels.size)
        self._levels = levels

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
        inside = 0 <= top < top + height <= self.height and 0 <= left < left + width <= self.width
        if not inside:
            raise ValueError(f"no window in {self.height} x {self.width}: {height} x {width} at {top}, {left}")
        return read_window(self._levels, self.scale, (left, top), (width, height))

    def read_coarse(self, step: float, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return a window of pixels that are `step` pixels of the canvas wide; `place` (x, y) and `size` (width,
        height) are in such pixels. The window may reach beyond the canvas, where its last pixel is repeated."""
        return read_window(self._levels, self.scale * step, place, size)


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
