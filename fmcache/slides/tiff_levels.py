"""The levels of an OME-TIFF, a pyramidal TIFF or any other TIFF that no scanner maker wrote.

tifffile is the reference reader of OME-TIFF in Python: it finds pyramids in sub-directories and in pages, channels in
separate pages, and the compressions that slides have (through imagecodecs, also JPEG 2000). GDAL and OpenSlide read
only the full size of OME-TIFF pyramids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from PIL import Image

from fmcache.errors import ExtraMissing, FmcacheError, TileError
from fmcache.slides.level_blocks import from_blocks, level_factor, sampled_hash
from fmcache.slides.slide import mpp_missing, usable_mpp
from fmcache.tiles.containers import DAMAGED, LARGEST_CUT_PX
from fmcache.tiles.pictures import over_white
from fmcache.tiles.pixels import Pixels

if TYPE_CHECKING:
    import tifffile

KEPT_BYTES = 64 << 20  # decoded blocks that are kept, because neighbouring windows read the same ones
BLOCK_PX = 512  # blocks of a file that is not compressed
MICROMETRES = {"nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0}
"""Units of OME-XML that are lengths."""
RESOLUTION_UNITS = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}
"""um per ResolutionUnit of a TIFF: inch, centimetre, and millimetre and micrometre as some writers add them."""
X_RESOLUTION, RESOLUTION_UNIT = 282, 296
WHITE = 255


class TiffLevels:
    """The levels of the largest picture of a TIFF, in RGB or grey with 8 bits per colour."""

    def __init__(self, path: Path, file: tifffile.TiffFile, mpp: float | None) -> None:
        self._path = path
        at = max(range(len(file.series)), key=lambda i: file.series[i].size)
        series = file.series[at]
        self._axes = _checked_axes(path, series)
        self._alpha = bool(series.keyframe.extrasamples)
        self._arrays = [_lazy(level, i, series) for i, level in enumerate(series.levels)]
        y, x = self._axes.index("Y"), self._axes.index("X")
        self.sizes = [(int(array.shape[x]), int(array.shape[y])) for array in self._arrays]
        chunks = [getattr(array, "chunks", (BLOCK_PX,) * array.ndim) for array in self._arrays]
        self._blocks = [(int(chunk[x]), int(chunk[y])) for chunk in chunks]
        self._check_blocks()
        self.size, self.origin = self.sizes[0], (0, 0)
        self.factors = [level_factor(self.size, size) for size in self.sizes]
        self.mpp = _stated_mpp(path, file, at) if mpp is None else mpp
        self.key = sampled_hash(path)
        largest = max(3 * width * height for width, height in self._blocks)
        self._block = lru_cache(maxsize=max(KEPT_BYTES // largest, 1))(self._decoded)

    def region(self, level: int, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return a region, as `Levels.region`; missing blocks are white."""
        return from_blocks(place, size, self._blocks[level], lambda corner: self._block(level, corner))

    def _decoded(self, level: int, corner: tuple[int, int]) -> Pixels:
        (left, top), (width, height) = corner, self._blocks[level]
        spans = {"Y": slice(top, top + height), "X": slice(left, left + width)}
        try:
            values = np.asarray(self._arrays[level][tuple(spans.get(axis, slice(None)) for axis in self._axes)])
        except DAMAGED as reason:
            raise _unreadable(self._path, reason, f" at x {left}, y {top} of level {level}") from None
        colours = next((i for i, axis in enumerate(self._axes) if axis in "SC"), None)
        if colours is None:
            return np.repeat(values[..., None], 3, axis=2)
        values = np.ascontiguousarray(np.moveaxis(values, colours, 2))
        if values.shape[2] == 4 and self._alpha:
            return over_white(Image.fromarray(values[..., :3]), Image.fromarray(values[..., 3]))
        return values[..., :3]

    def _check_blocks(self) -> None:
        """Refuse a picture that is one compressed block and too large to decode."""
        width, height = self._blocks[0]
        if width * height > LARGEST_CUT_PX:
            raise TileError(
                f"{self._path} is compressed as one block, which is too large to decode",
                expected=f"tiles, or strips of at most {LARGEST_CUT_PX / 1e6:.0f} megapixels",
                found=f"a block of {width} x {height} px",
                next_step="save it as a tiled pyramidal TIFF (QuPath: File > Export images, as OME-TIFF)",
            )


@contextmanager
def opened_tiff(path: Path, mpp: float | None) -> Iterator[TiffLevels]:
    """Open a TIFF; `mpp` overrides its um/px.

    Raises
    ------
    ExtraMissing
        When tifffile is not installed.
    TileError
        When the file is damaged, is not a picture in RGB or grey with 8 bits per colour, or states no plausible um/px.
    """
    try:
        import tifffile
    except ImportError as reason:
        raise _package_missing(path, str(reason).splitlines()[0]) from None
    with _complaints() as complaints, ExitStack() as stack:
        try:
            file = stack.enter_context(tifffile.TiffFile(path))
            if not len(file.series) or any("offset" in line for line in complaints):
                raise _unreadable(path, ValueError("; ".join(complaints) or "no picture"))
            levels = TiffLevels(path, file, mpp)
        except FmcacheError:
            raise
        except DAMAGED as reason:
            raise _unreadable(path, reason) from None
        yield levels


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what tifffile logs instead of printing it: a truncated list of pages is no error there."""
    lines: list[str] = []
    logger, handler = logging.getLogger("tifffile"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _package_missing(path: Path, found: str) -> ExtraMissing:
    return ExtraMissing(
        f"{path}: reading OME-TIFF and other TIFF slides needs tifffile",
        expected="the packages tifffile and imagecodecs",
        found=found,
        next_step="pip install 'fmcache[wsi]'",
    )


def _unreadable(path: Path, reason: BaseException, where: str = "") -> FmcacheError:
    found = f"{reason or type(reason).__name__}"[:200]
    if "requires the 'imagecodecs' package" in found:
        return _package_missing(path, found)
    return TileError(
        f"{path} cannot be read as a TIFF{where}",
        found=found,
        next_step="copy or export it again: this file is damaged",
    )


def _lazy(level: tifffile.TiffPageSeries, number: int, series: tifffile.TiffPageSeries) -> Any:
    """Return a level as an array that reads what is indexed: a Zarr array, or a memory map if it is not compressed."""
    if level.dataoffset is not None:
        return level.asarray(out="memmap")
    return zarr.open(series.aszarr(level=number, fillvalue=WHITE), mode="r")


def _checked_axes(path: Path, series: tifffile.TiffPageSeries) -> str:
    """Return the axes of a picture such as YXS; refuse stacks, more than 8 bits, and colours that are not RGB."""
    axes, page = series.axes, series.keyframe
    extents = dict(zip(axes, series.shape, strict=True))
    colours = [extents[axis] for axis in axes if axis in "SC"]
    plain = series.dtype == np.uint8 and page.photometric.name in ("RGB", "YCBCR", "MINISBLACK")
    if set(axes) - set("YXSC") or colours not in ([], [3], [4]) or not plain:
        raise TileError(
            f"{path} is not a picture in RGB or grey with 8 bits per colour",
            expected="one plane of 8-bit RGB, RGBA or grey",
            found=f"axes {axes} of {' x '.join(map(str, series.shape))}, {series.dtype}, {page.photometric.name}",
            next_step="export one plane as 8-bit RGB, so that you decide how its values are scaled",
        )
    return str(axes)


def _stated_mpp(path: Path, file: tifffile.TiffFile, at: int) -> float:
    """Return um/px from the OME-XML of image `at`, else from the resolution tags of its first page."""
    if stated := _ome_mpp(file, at):
        return usable_mpp(path, *stated)
    page = file.series[at].keyframe
    unit = RESOLUTION_UNITS.get(int(page.tags.valueof(RESOLUTION_UNIT, default=2)))
    if X_RESOLUTION not in page.tags or not unit:
        raise mpp_missing(
            path, "PhysicalSizeX in its OME-XML, or a resolution per inch or centimetre in its TIFF tags", "neither"
        )
    x, y = (unit / value if value else 0.0 for value in page.resolution)
    return usable_mpp(path, x, y)


def _ome_mpp(file: tifffile.TiffFile, at: int) -> tuple[float, float] | None:
    import tifffile

    images = tifffile.xml2dict(file.ome_metadata or "<OME/>").get("OME") or {}
    images = images.get("Image", [])
    images = images if isinstance(images, list) else [images]
    if len(images) != len(file.series):
        return None
    pixels = images[at]["Pixels"]
    sizes = [
        float(pixels.get(f"PhysicalSize{axis}", 0)) * MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 0)
        for axis in "XY"
    ]
    return (sizes[0], sizes[1]) if all(sizes) else None
