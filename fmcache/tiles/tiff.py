"""Check a TIFF for more than one plane of pixels, from its directories: pages, stacks, extra channels, rotation.

A TIFF can contain many images. Most readers show the first page and do not report the others.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.errors import NotGeoreferencedWarning

from fmcache.errors import TileError
from fmcache.tiles.unwarned import unwarned

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
DESCRIPTION, ORIENTATION, SAMPLES, SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT = 270, 274, 277, 330, 338, 339
REDUCED = 1  # bit of NewSubfileType: a smaller version of another page
UNSIGNED, SIGNED = 1, 2
BIG = 43  # version number of BigTIFF
MOST_PAGES = 1000  # pages above this number are not counted
LOSSY = {
    6: "JPEG", 7: "JPEG", 34892: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000",
    22610: "JPEG XR", 34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
PHOTOMETRICS = {
    0: "grey, 0 is white", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"
}  # fmt: skip
FORMATS = {UNSIGNED: "unsigned", SIGNED: "signed", 3: "float"}


class Page(NamedTuple):
    """The content of a directory: sizes in px, bits per sample, and numbers defined by the TIFF specification."""

    size: tuple[int, int]
    reduced: bool
    bits: int
    compression: int
    photometric: int
    orientation: int
    samples: int
    extra: tuple[int, ...]
    sample_format: int
    description: str
    inner: tuple[int, ...]

    def __str__(self) -> str:
        kind = f"{FORMATS.get(self.sample_format, 'other')} {PHOTOMETRICS.get(self.photometric, self.photometric)}"
        return f"{self.size[0]} x {self.size[1]} px, {self.samples} channels of {self.bits} bits, {kind}"


def check_tiff(file: BinaryIO, path: Path) -> Page:
    """Return the only full-size page; the file may also hold smaller versions of it (a pyramid).

    Raises
    ------
    TileError
        When there are other pages, several planes or channels under one directory, or channels of unknown meaning; also
        when the page has a tag that rotates it, or is itself a smaller version.
    """
    file.seek(0)
    if file.read(4) == b"MM\0\x2b":
        raise TileError(
            f"{path} is a BigTIFF with the high byte first, which is not supported",
            next_step="save it as PNG, or as TIFF with the low byte first (tifffile: byteorder='<')",
        )
    first, *others = _pages(file)
    next_step = "save only the plane or channels of the tile in a separate file, as PNG or TIFF"
    if odd := [page for page in others if not (page.reduced and _within(page, first))]:
        pages = f"{len(others) + 1} pages" if len(others) < MOST_PAGES else f"more than {MOST_PAGES} pages"
        raise TileError(
            f"{path} holds {pages}, so it is unclear which is the tile",
            expected="one page, or one page with smaller versions of it that are marked as such",
            found=f"sizes {', '.join(f'{w} x {h} px' for w, h in [page.size for page in (first, *odd)][:4])}",
            next_step=f"{next_step} (a whole slide: fmcache data cut)",
        )
    if first.reduced or not all(_within(page, first) for page in _at(file, first.inner)):
        raise TileError(
            f"{path}: the first page is a smaller version of another image in this file", next_step=next_step
        )
    if planes := _planes(first):
        raise TileError(f"{path} holds {planes} planes or channels under one page", expected="one", next_step=next_step)
    if _unexplained(path, first):
        raise TileError(
            f"{path} has extra channels of unknown meaning",
            expected="grey, RGB or palette, with no other channels than transparency or constant ones",
            found=f"{first.samples} channels (ExtraSamples {', '.join(map(str, first.extra))})",
            next_step="save it without the extra channels",
        )
    if first.orientation != 1:
        raise TileError(
            f"{path} has a tag that rotates it (orientation), but its image or mask partner may not be rotated",
            next_step="save it upright, without the tag",
        )
    return first


def read_numbers(path: Path) -> npt.NDArray[np.generic]:
    """Return the values (y, x) of a TIFF of one channel, of any type; Pillow cannot read 64 bits."""
    with unwarned(NotGeoreferencedWarning), rasterio.open(path) as file:
        return np.asarray(file.read(1))


def _unexplained(path: Path, page: Page) -> bool:
    """Return whether channels of unknown meaning vary. Pillow drops them silently, so GDAL reads them."""
    first = page.samples - len(page.extra) + 1
    bands = [first + i for i, kind in enumerate(page.extra) if kind == 0]
    if not bands:
        return len(page.extra) > 1
    with unwarned(NotGeoreferencedWarning), rasterio.open(path) as file:
        return any(np.ptp(file.read(band)) > 0 for band in bands)


def _pages(file: BinaryIO) -> list[Page]:
    header = _header(file)
    offset, seen, pages = int(ImageFileDirectory_v2(header).next), set[int](), list[Page]()
    while offset and offset not in seen and len(pages) <= MOST_PAGES:
        seen.add(offset)
        page, offset = _page(file, header, offset)
        pages.append(page)
    if not pages:
        raise OSError("the TIFF has no page")
    return pages


def _at(file: BinaryIO, offsets: tuple[int, ...]) -> list[Page]:
    header = _header(file)
    return [_page(file, header, offset)[0] for offset in offsets[:MOST_PAGES]]


def _header(file: BinaryIO) -> bytes:
    file.seek(0)
    header = file.read(16)
    return header if header[2] == BIG else header[:8]


def _page(file: BinaryIO, header: bytes, offset: int) -> tuple[Page, int]:
    tags = ImageFileDirectory_v2(header)
    file.seek(offset)
    tags.load(file)

    def number(tag: int, default: int) -> int:
        return (numbers(tag) or (default,))[0]

    def numbers(tag: int) -> tuple[int, ...]:
        value = tags.get(tag, ())
        return tuple(v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int))

    text = tags.get(DESCRIPTION, "")
    return Page(
        (number(WIDTH, 0), number(HEIGHT, 0)),
        bool(number(SUBFILE, 0) & REDUCED) or number(OLD_SUBFILE, 1) == 2,
        max(numbers(BITS), default=1),
        number(COMPRESSION, 1),
        number(PHOTOMETRIC, 0),
        number(ORIENTATION, 1),
        number(SAMPLES, 1),
        numbers(EXTRA_SAMPLES),
        number(SAMPLE_FORMAT, UNSIGNED),
        text if isinstance(text, str) else "",
        numbers(SUB_IFDS),
    ), tags.next


def _within(page: Page, whole: Page) -> bool:
    return page.size[0] <= whole.size[0] and page.size[1] <= whole.size[1]


def _planes(page: Page) -> int:
    """Return the number of planes of a stack in which only one plane has a directory; 0 when there is one plane.

    ImageJ writes large stacks in this form, tifffile writes truncated stacks so, and OME-TIFF may spread a stack over
    several files.
    """
    text, count = page.description, 1
    if text.startswith("ImageJ="):
        found = re.search(r"^images=(\d{1,9})\s*$", text, re.MULTILINE)
        count = int(found[1]) if found else 1
    elif text.startswith("{"):
        count = math.prod(_shape(text)) // max(page.size[0] * page.size[1] * page.samples, 1)
    elif pixels := re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text):
        z, c, t = (int(m[1]) if (m := re.search(rf'\bSize{axis}="(\d{{1,9}})"', pixels[0])) else 1 for axis in "ZCT")
        count = z * t * max(c // max(page.samples, 1), 1)
    return count if count > 1 else 0


def _shape(text: str) -> list[int]:
    try:
        shape = json.loads(text).get("shape")
    except (ValueError, RecursionError, AttributeError):
        return []
    return shape if isinstance(shape, list) and all(isinstance(n, int) and 0 < n < 1 << 31 for n in shape) else []
