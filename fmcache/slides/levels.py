"""The stored pictures of a slide or a large image: full size first, then smaller ones, each read by region."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fmcache.errors import TileError
from fmcache.slides.slide import Slide, format_of, mpp_missing, opened, read_region, slide_of
from fmcache.tiles.containers import LARGEST_CUT_PX, kind_of, look
from fmcache.tiles.pictures import read_image
from fmcache.tiles.pixels import Pixels

if TYPE_CHECKING:
    import openslide

PLAIN = ("PNG", "JPEG", "BMP")
BLOCK_PX = 512
SAMPLES, SAMPLE_BYTES = 64, 1 << 16


class Levels(Protocol):
    """A slide: `size` (width, height) and `origin` (x, y) of its picture in pixels of level 0, um/px, and a key that
    identifies the content.

    `sizes` has the (width, height) of every level, and `factors` the pixels of level 0 per pixel of each level.
    """

    size: tuple[int, int]
    origin: tuple[int, int]
    mpp: float
    key: str
    sizes: list[tuple[int, int]]
    factors: list[float]

    def region(self, level: int, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return pixels (y, x, colour) uint8 RGB of a level; `place` (x, y) and `size` (width, height) are in pixels
        of this level, and the region lies inside it. A pixel does not depend on the region that is read."""
        ...


@contextmanager
def opened_levels(path: Path, mpp_of_slide: float | None = None) -> Iterator[Levels]:
    """Open a slide, a TIFF or a plain image (PNG, JPEG, BMP); `mpp_of_slide` overrides its um/px.

    Raises
    ------
    ExtraMissing
        When a package for slides is not installed.
    TileError
        When the file is missing, damaged or of another kind, or states no plausible um/px.
    """
    if not path.is_file():
        raise TileError(
            f"{path}: this slide {'is a folder' if path.is_dir() else 'does not exist'}",
            expected="the file of a slide or an image",
            next_step="check the path",
        )
    # the main file of a MIRAX slide is a JPEG of its label
    if kind_of(path) in PLAIN and path.suffix.lower() != ".mrxs":
        yield ImageLevels(path, mpp_of_slide)
        return
    format_of(path)
    with opened(path) as handle:
        yield SlideLevels(handle, slide_of(handle, path, mpp_of_slide))


def level_factor(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Return the pixels of level 0 per pixel of a level, from the sizes (width, height) of both.

    Levels are nearly always smaller by a whole number, and their size is then rounded. The quotient of the sizes would
    be off by several pixels at the far end of a slide.
    """
    whole = round(full[0] / level[0])
    if all(abs(small - large / whole) < 1 for large, small in zip(full, level, strict=True)):
        return float(whole)
    return (full[0] / level[0] + full[1] / level[1]) / 2


class SlideLevels:
    """The levels of a slide that OpenSlide reads."""

    def __init__(self, handle: openslide.OpenSlide, slide: Slide) -> None:
        self._handle, self._slide = handle, slide
        self.size, self.origin, self.mpp, self.key = slide.size, slide.origin, slide.mpp, slide.key
        self.sizes = list(handle.level_dimensions)
        self.factors = [level_factor(handle.dimensions, size) for size in self.sizes]

    def region(self, level: int, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return a region, as `Levels.region`.

        OpenSlide takes the corner in whole pixels of level 0 and interpolates between the pixels of the level. Where
        its factor is not whole, the result would depend on the corner, so fixed blocks are read.
        """
        factor = self._slide.downsamples[level]
        if factor.is_integer():
            return self._read(level, place, size)
        (left, top), (width, height) = place, size
        drawn = np.empty((height, width, 3), dtype=np.uint8)
        for y in range(top // BLOCK_PX * BLOCK_PX, top + height, BLOCK_PX):
            for x in range(left // BLOCK_PX * BLOCK_PX, left + width, BLOCK_PX):
                block = self._read(level, (x, y), (BLOCK_PX, BLOCK_PX))[max(top - y, 0) :, max(left - x, 0) :]
                part = drawn[max(y - top, 0) :, max(x - left, 0) :][: len(block), : block.shape[1]]
                part[:] = block[: len(part), : part.shape[1]]
        return drawn

    def _read(self, level: int, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
        factor = self._slide.downsamples[level]
        corner = (round(place[0] * factor), round(place[1] * factor))
        return read_region(self._handle, self._slide.path, corner, level, size)


class ImageLevels:
    """The only level of a plain image, which is held in memory as a whole."""

    def __init__(self, path: Path, mpp: float | None) -> None:
        if mpp is None:
            raise mpp_missing(path, "um/px given by --mpp-of-slide, because images do not state it", "a plain image")
        found = look(path)
        if found and found.size[0] * found.size[1] > LARGEST_CUT_PX:
            raise TileError(
                f"{path} is too large for a plain image, which is loaded into memory as a whole",
                expected=f"at most {LARGEST_CUT_PX / 1e6:.0f} megapixels",
                found=f"{found.size[0]} x {found.size[1]} px",
                next_step="save it as a tiled pyramidal TIFF (QuPath: File > Export images, as OME-TIFF)",
            )
        self._pixels = read_image(path, LARGEST_CUT_PX)
        self.size = (self._pixels.shape[1], self._pixels.shape[0])
        self.origin, self.mpp, self.key = (0, 0), mpp, sampled_hash(path)
        self.sizes, self.factors = [(self.size[0], self.size[1])], [1.0]

    def region(self, level: int, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return a region, as `Levels.region`."""
        (left, top), (width, height) = place, size
        return self._pixels[top : top + height, left : left + width]


def sampled_hash(path: Path) -> str:
    """Return the sha256 of a file's size and of 64 evenly spaced samples of its bytes: slides have many gigabytes."""
    size = path.stat().st_size
    found = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(i * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()
