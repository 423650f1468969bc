"""Whole slides: metadata of a slide, the grid of tiles at a given um/px, and the pixels of one tile.

OpenSlide reads the formats of the scanner manufacturers. Its Python package and library are an optional extra that
installs from wheels. A slide is never loaded as a whole: each tile is read from the best level, in strips when that
level is much finer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from fmcache.errors import ExtraMissing, SpecError, TileError
from fmcache.tiles.pictures import over_white
from fmcache.tiles.pixels import Pixels

if TYPE_CHECKING:
    import openslide

SAME_MPP = 0.01  # a level within 1 % of the requested um/px is not resampled, which would only blur
STRIP_PX = 1 << 22  # pixels of a level in memory at a time (16 MiB as RGBA)
PLAUSIBLE_MPP = (0.05, 20.0)  # values outside, such as 353 um/px (72 dots per inch), are defaults of software
ASK_FOR_MPP = "find out the um/px and pass --mpp-of-slide"


class SlideGrid(NamedTuple):
    """Tiles of one slide, side by side from its upper left corner, all of them inside the slide.

    `level` is the level that tiles are read from. `window_px` is the edge of a tile in pixels of that level; it is read
    in `strips` of equal height. `step_px` is the edge of a tile in pixels of level 0. `mpp` is the um/px of the
    finished tile, whose edge is `tile_px`.
    """

    columns: int
    rows: int
    level: int
    window_px: int
    strips: int
    step_px: float
    tile_px: int
    mpp: float

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Return the upper left corner (x, y) of a tile in level 0 pixels from the picture's origin, as in QuPath."""
        return round(column * self.step_px), round(row * self.step_px)

    @property
    def scale(self) -> float:
        """Pixels of the tile per pixel of level 0."""
        return self.tile_px / self.step_px


class Slide(NamedTuple):
    """Metadata of a slide: `size` (width, height) and `origin` (x, y) of its picture in pixels of level 0.

    The picture is the whole plane, except in formats (MIRAX, Leica) whose plane is larger than the scanned part.
    `key` identifies the slide.
    """

    path: Path
    name: str
    origin: tuple[int, int]
    size: tuple[int, int]
    mpp: float
    downsamples: tuple[float, ...]
    key: str


def describe(path: Path, mpp: float | None = None) -> Slide:
    """Return the metadata of a slide; `mpp` overrides its um/px.

    Raises
    ------
    ExtraMissing, TileError
        As in `opened`; also when the slide states no plausible um/px.
    """
    with opened(path) as handle:
        return slide_of(handle, path, mpp)


def slide_of(handle: openslide.OpenSlide, path: Path, mpp: float | None = None) -> Slide:
    """Return the metadata of an opened slide, as `describe` does."""
    properties = dict(handle.properties)
    origin, size = picture_frame(properties, handle.dimensions)
    key = properties.get("openslide.quickhash-1", "") or f"{path.name}, {path.stat().st_size} bytes"
    stated = stated_mpp(path, properties) if mpp is None else mpp
    return Slide(path, path.stem, origin, size, stated, tuple(handle.level_downsamples), key)


@contextmanager
def opened(path: Path) -> Iterator[openslide.OpenSlide]:
    """Open a slide.

    Raises
    ------
    ExtraMissing
        When OpenSlide is not installed.
    TileError
        When the file is not a slide or is damaged.
    """
    openslide = _package(path)
    if not path.is_file():
        raise TileError(f"{path}: this slide does not exist", next_step="check the path")
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideError as reason:
        raise TileError(
            f"{path} cannot be read as a slide",
            expected="a format that OpenSlide reads (SVS, NDPI, MRXS, SCN, tiled TIFF, ...)",
            found=str(reason)[:200] or type(reason).__name__,
            next_step="check the file, or save it as a tiled pyramidal TIFF",
        ) from None
    with handle:
        yield handle


def format_of(path: Path) -> str:
    """Return OpenSlide's name for the format of a file, such as aperio; empty when it cannot read the file.

    Raises
    ------
    ExtraMissing
        When OpenSlide is not installed.
    """
    return _package(path).OpenSlide.detect_format(path) or ""


def _package(path: Path) -> ModuleType:
    try:
        import openslide
    except ImportError as reason:
        raise ExtraMissing(
            f"{path}: reading whole slides needs OpenSlide",
            expected="the packages openslide-python and openslide-bin",
            found=str(reason).splitlines()[0],
            next_step="pip install 'fmcache[wsi]'",
        ) from None
    return openslide


def picture_frame(properties: dict[str, str], plane: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return origin (x, y) and size (width, height) of the scanned part of the plane, in pixels of level 0.

    QuPath counts coordinates from that origin, and shows and exports nothing outside this part.

    References
    ----------
    OpenSlide, properties `openslide.bounds-*`; qupath/qupath issue 1278: QuPath applies them since version 0.2.
    """
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{edge}"]) for edge in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return (0, 0), plane
    return (x, y), (width, height)


def stated_mpp(path: Path, properties: dict[str, str]) -> float:
    """Return um/px from a slide's properties. OpenSlide itself falls back to the resolution of the TIFF.

    Raises
    ------
    TileError
        When the value is missing, is not plausible, or differs between x and y by more than 1 %.
    """
    stated = [properties.get(f"openslide.mpp-{axis}", "") for axis in "xy"]
    try:
        x, y = (float(text) for text in stated)
    except ValueError:
        found = f"mpp-x {stated[0] or 'absent'}, mpp-y {stated[1] or 'absent'}"
        raise mpp_missing(path, "openslide.mpp-x and -y in its metadata", found) from None
    return usable_mpp(path, x, y)


def mpp_missing(path: Path, expected: str, found: str) -> TileError:
    """Return the error for a slide or image that does not state its um/px."""
    return TileError(
        f"{path}: the slide does not state its um/px", expected=expected, found=found, next_step=ASK_FOR_MPP
    )


def usable_mpp(path: Path, x: float, y: float) -> float:
    """Return one um/px from the values that a slide states in x and y.

    Raises
    ------
    TileError
        When a value is not plausible, or they differ by more than 1 %.
    """
    low, high = PLAUSIBLE_MPP
    if not (low <= x <= high and abs(x - y) <= SAME_MPP * x):
        raise TileError(
            f"{path}: the um/px that the slide states cannot be used",
            expected=f"{low:g} to {high:g} um/px, the same in x and y",
            found=f"{x:g} in x, {y:g} in y",
            next_step=ASK_FOR_MPP,
        )
    return (x + y) / 2


def plan_grid(
    size: tuple[int, int], slide_mpp: float, downsamples: Sequence[float], mpp: float, tile_px: int
) -> SlideGrid:
    """Return the grid of whole tiles over a slide of `size` (width, height) px. Nothing is read.

    Tiles are read from `best_level`. A tile covers a whole number of pixels of
    this level, so that image and mask are cut at the same positions. The tile's um/px therefore deviates by less than
    one part in `tile_px`.

    Raises
    ------
    SpecError
        When `mpp` or `tile_px` is not positive.
    """
    if mpp <= 0 or tile_px <= 0 or slide_mpp <= 0:
        raise SpecError("um/px and --tile-px must be above 0", found=f"{mpp:g} and {slide_mpp:g} um/px, {tile_px} px")
    wanted = mpp / slide_mpp
    level = best_level(downsamples, wanted)
    factor = wanted / downsamples[level]
    parts = _strips(tile_px, round(tile_px * factor)) if factor > 1 + SAME_MPP else 1
    window = tile_px if abs(factor - 1) <= SAME_MPP else max(1, round(tile_px * factor / parts)) * parts
    step = window * downsamples[level]
    # a small tolerance, because a level's downsample is a quotient of rounded sizes
    columns, rows = (int(edge / step + 1e-6) for edge in size)
    return SlideGrid(columns, rows, level, window, parts, step, tile_px, slide_mpp * step / tile_px)


def best_level(downsamples: Sequence[float], wanted: float) -> int:
    """Return the coarsest level that is at least as fine as `wanted`, in pixels of level 0 per requested pixel."""
    fine = [i for i, factor in enumerate(downsamples) if factor <= wanted * (1 + SAME_MPP)]
    return max(fine, key=lambda i: downsamples[i], default=0)


def _strips(tile_px: int, window_px: int) -> int:
    # a divisor of tile_px: no pixel of the tile then averages over two strips, so strips change no value
    divisors = (n for n in range(1, tile_px + 1) if tile_px % n == 0)
    return next((n for n in divisors if window_px * window_px <= n * STRIP_PX), tile_px)


def read_slide_tile(handle: openslide.OpenSlide, slide: Slide, grid: SlideGrid, column: int, row: int) -> Pixels:
    """Return a tile as (y, x, colour) uint8 RGB: area means when it is coarser than the level, else interpolated.

    Areas that were not scanned are white.

    Raises
    ------
    TileError
        When the slide is damaged at this tile.
    """
    left, top = (start + at for start, at in zip(slide.origin, grid.corner(column, row), strict=True))
    height, drawn = grid.window_px // grid.strips, []
    for i in range(grid.strips):
        place = (left, top + round(i * height * slide.downsamples[grid.level]))
        pixels = read_region(handle, slide.path, place, grid.level, (grid.window_px, height))
        drawn.append(_resized(pixels, (grid.tile_px, grid.tile_px // grid.strips)))
    return np.concatenate(drawn)


def read_region(
    handle: openslide.OpenSlide, path: Path, place: tuple[int, int], level: int, size: tuple[int, int]
) -> Pixels:
    """Return pixels of a level, (y, x, colour) uint8 RGB; areas that were not scanned are white.

    `place` is the upper left corner (x, y) in pixels of level 0, counted from the plane's origin; `size` is (width,
    height) in pixels of the level.

    Raises
    ------
    TileError
        When the slide is damaged here.
    """
    import openslide

    try:
        region = handle.read_region(place, level, size)
    except openslide.OpenSlideError as reason:
        raise TileError(
            f"{path}: the slide cannot be read at x {place[0]}, y {place[1]}",
            found=str(reason)[:200],
            next_step="copy the slide again from its source: this file is damaged",
        ) from None
    return over_white(region, region.getchannel("A"))


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[1::-1] == size:
        return pixels
    smooth = cv2.INTER_AREA if pixels.shape[1] > size[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size, interpolation=smooth), dtype=np.uint8)
