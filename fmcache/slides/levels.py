"""The stored pictures of a slide or a large image: full size first, then smaller ones, each read by region."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fmcache.errors import TileError
from fmcache.slides.level_blocks import from_blocks, level_factor, sampled_hash
from fmcache.slides.slide import Slide, format_of, mpp_missing, opened, read_region, slide_of
from fmcache.slides.tiff_levels import opened_tiff
from fmcache.tiles.containers import LARGEST_CUT_PX, kind_of, look
from fmcache.tiles.pictures import read_image
from fmcache.tiles.pixels import Pixels

if TYPE_CHECKING:
    import openslide

PLAIN = ("PNG", "JPEG", "BMP")
NO_MAKER = ("", "generic-tiff")  # OpenSlide's names for TIFFs that no scanner wrote
BLOCK_PX = 512
IMAGE_BYTES = 10  # per pixel while a plain image is loaded, measured on a PNG; 3 afterwards


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
    kind = kind_of(path)
    if kind in PLAIN and path.suffix.lower() != ".mrxs":  # the main file of a MIRAX slide is a small JPEG
        yield ImageLevels(path, mpp_of_slide)
    elif kind == "TIFF" and format_of(path) in NO_MAKER:
        with opened_tiff(path, mpp_of_slide) as levels:
            yield levels
    else:
        with opened(path) as handle:
            yield SlideLevels(handle, slide_of(handle, path, mpp_of_slide))


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
        return from_blocks(place, size, (BLOCK_PX, BLOCK_PX), lambda at: self._read(level, at, (BLOCK_PX, BLOCK_PX)))

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
                expected=f"at most {LARGEST_CUT_PX / 1e6:.0f} megapixels, which need "
                f"{LARGEST_CUT_PX * IMAGE_BYTES / 1e9:.0f} GB of memory",
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
