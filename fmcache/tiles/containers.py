"""Open image files by their content, not by the ending of their name, and refuse files that cannot be tiles."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PREFIXES, TiffImageFile

from fmcache.errors import TileError
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.tiff import SIGNED, Page, check_tiff, read_numbers
from fmcache.tiles.unwarned import unwarned

ORIENTATION = 0x0112  # EXIF tag
COLOUR_MAP = 320  # TIFF tag
LARGEST_PX = 178_956_970
"""The most pixels of a tile; Pillow's limit against decompression bombs is the same."""

LARGEST_CUT_PX = 536_870_912
"""The most pixels of an image that `data add` cuts into squares, because it loads image and mask as a whole."""
CUT_BYTES = 22
"""The most bytes of memory per pixel while squares are cut, measured on an RGBA image with a mask in RGB."""

DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, struct.error, zlib.error,
    OverflowError, MemoryError, RuntimeError, ZeroDivisionError, AssertionError,
)  # fmt: skip
"""Errors that Pillow and NumPy raise on broken files, found by tests with broken files."""

HEAD = 32
STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF8": "GIF", b"\x93NUMPY": "NumPy array",
    **dict.fromkeys(PREFIXES, "TIFF"), b"\0\0\0\x0cjP": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000",
    b"PK\x03\x04": "zip or .npz archive", b"MATLAB": "MATLAB file", b"\x89HDF": "HDF5 or MATLAB file",
    b"version https://git-lfs": "Git LFS pointer (git lfs pull gets the file)", b"<html": "web page",
    b"<!DOCTYPE": "web page", b"\x1f\x8b": "gzip archive", b"%PDF": "PDF", b"8BPS": "Photoshop file",
}  # fmt: skip
READERS: dict[str, Callable[[Path], ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}


class Decoded(NamedTuple):
    """A picture as stored: Pillow mode, values (y, x) or (y, x, channel) without transparency, and bits per value.

    `alpha` (y, x) uint8 is 0 where the picture is transparent; it is None when no pixel is. `palette` is (index,
    colour) uint8. `page` is the metadata of a TIFF.
    """

    mode: str
    values: npt.NDArray[np.generic]
    bits: int
    alpha: Pixels | None
    palette: Pixels | None
    page: Page | None


def kind_of(path: Path) -> str:
    """Return the kind of a file by its first bytes, such as PNG or JPEG; empty when they are unknown.

    Raises
    ------
    TileError
        When the file cannot be opened or is empty.
    """
    try:
        with path.open("rb") as file:
            first_bytes = file.read(HEAD)
    except OSError as reason:
        raise TileError(
            f"{path} cannot be opened",
            found=reason.strerror or str(reason),
            next_step="check the file and its permissions",
        ) from None
    if not first_bytes:
        raise TileError(f"{path} is empty", found="0 bytes", next_step="export or download it again")
    if first_bytes[:4] == b"RIFF" and first_bytes[8:12] == b"WEBP":
        return "WebP"
    if first_bytes[4:8] == b"ftyp":
        return "AVIF or HEIC"
    return next((kind for start, kind in STARTS.items() if first_bytes.startswith(start)), "")


class Head(NamedTuple):
    """The header of an image file: size (width, height) and Pillow mode."""

    size: tuple[int, int]
    mode: str


def look(path: Path) -> Head | None:
    """Return the header of a PNG, JPEG, BMP or TIFF; None when it cannot be read.

    The functions that read the pixels report the error.
    """
    try:
        kind = kind_of(path)
        if kind not in READERS:
            return None
        # without warnings: the functions that read the pixels report problems
        with unwarned(Warning), READERS[kind](path) as picture:
            return Head(picture.size, picture.mode)
    except (TileError, *DAMAGED):
        return None


def decode(path: Path, kind: str, most_px: int = LARGEST_PX) -> Decoded:
    """Return the pixels of a PNG, JPEG, BMP or TIFF, or of a picture of another kind that Pillow reads.

    Raises
    ------
    TileError
        When the file is damaged or too large, holds several pictures, has 16 bits per colour, or has a tag that rotates
        it; also as in `check_tiff`.
    """
    page = None
    try:
        if kind == "TIFF":
            with path.open("rb") as file:
                page = check_tiff(file, path)
            check_size(path, page.size, most_px)
            if page.bits == 64 and page.samples == 1 and page.photometric == 1:
                return Decoded("F", read_numbers(path), 64, None, None, page)
        with READERS[kind](path) if kind in READERS else Image.open(path) as picture:
            return _loaded(path, picture, kind, page, most_px)
    except Image.DecompressionBombError as reason:
        raise _too_large(path, str(reason), most_px) from None
    except TileError:
        raise
    except DAMAGED as reason:
        raise TileError(
            f"{path} cannot be read as {f'a {kind}' if kind else 'an image'}",
            found=f"{f'{page}; ' if page else ''}{reason or type(reason).__name__}"[:200],
            next_step="export it as 8-bit PNG or TIFF (label ids: 8 or 16)" if page else "export or download it again",
        ) from None


def check_size(path: Path, size: tuple[int, int], most_px: int = LARGEST_PX) -> None:
    """Raise TileError when an image of `size` (width, height) has more than `most_px` pixels."""
    if size[0] * size[1] > most_px:
        raise _too_large(path, f"{size[0]} x {size[1]} px, {size[0] * size[1] / 1e6:.0f} megapixels", most_px)


def _too_large(path: Path, found: str, most_px: int) -> TileError:
    other_tools = "fmcache data cut for slides with annotations, or any tool that saves crops"
    if most_px > LARGEST_PX:
        return TileError(
            f"{path} is too large for --square, which loads the whole image into memory",
            expected=f"at most {most_px / 1e6:.0f} megapixels, which need {most_px * CUT_BYTES / 1e9:.0f} GB of memory",
            found=found,
            next_step=f"cut it with {other_tools}",
        )
    return TileError(
        f"{path} is too large for a tile",
        expected=f"at most {LARGEST_PX / 1e6:.0f} megapixels; tiles are usually 256 to 2048 px wide",
        found=found,
        next_step="cut it into squares with fmcache data add --square tile --tile-px 512 (up to "
        f"{LARGEST_CUT_PX / 1e6:.0f} megapixels, which need {LARGEST_CUT_PX * CUT_BYTES / 1e9:.0f} GB of memory), "
        f"or with {other_tools}",
    )


def _loaded(path: Path, picture: ImageFile.ImageFile, kind: str, page: Page | None, most_px: int) -> Decoded:
    check_size(path, picture.size, most_px)
    _check_single(path, picture, kind)
    if kind == "BMP":
        _check_bmp(path, picture)
    # checked before loading, which deletes the raw mode; of separate planes, Pillow would read every second byte
    deep = ";16" in str(picture.tile) or (page is not None and page.bits > 8)
    picture.load()
    if deep and not picture.mode.startswith(("I", "F")):
        # Pillow keeps only the upper byte: images of 12 bits would silently become nearly black
        raise TileError(
            f"{path} has 16 bits per colour",
            expected="8 bits per colour",
            next_step="convert it to 8-bit RGB, so that you decide how its values are scaled",
        )
    if picture.getexif().get(ORIENTATION, 1) != 1:
        raise TileError(
            f"{path} has a tag that rotates it (EXIF orientation), but its mask may not be rotated",
            next_step="save the image upright, without the tag",
        )
    return _decoded(path, picture, kind, page)


def _check_single(path: Path, picture: Image.Image, kind: str) -> None:
    if kind not in ("TIFF", "JPEG") and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise TileError(
            f"{path} holds {frames} pictures (an animation), so it is unclear which is the tile",
            next_step="save only the picture of the tile, as PNG or TIFF",
        )


def _decoded(path: Path, picture: Image.Image, kind: str, page: Page | None) -> Decoded:
    if picture.mode == "La":
        picture = picture.convert("LA")
    bits = 1 if picture.mode == "1" else page.bits if page else _bits(path, kind)
    names = picture.getbands()
    bands = [np.asarray(picture.getchannel(i)) for i in range(len(names))] if len(names) > 1 else [np.asarray(picture)]
    alpha = bands.pop() if names[-1] == "A" else None
    values = np.stack(bands, axis=-1) if len(bands) > 1 else bands[0]
    if picture.mode in ("L", "LA") and bits in (2, 4):
        values = values // (255 // (2**bits - 1))  # Pillow stretches them to 255; stored values are 0 to 3 or 0 to 15
    if page and page.sample_format == SIGNED and values.dtype == np.uint8:
        values = values.view(np.int8)
    if kind == "BMP":
        alpha = alpha if alpha is not None and alpha.any() else None  # all 0: an unused byte, as viewers assume
    palette = None
    if picture.mode in ("P", "PA"):
        palette = _palette(picture)
    alpha = alpha if alpha is not None else _keyed(picture, values, bits, kind)
    mode = picture.mode[:-1] if picture.mode in ("LA", "PA", "RGBA") else picture.mode
    return Decoded(mode, values, bits, alpha if alpha is not None and alpha.min() < 255 else None, palette, page)


def _palette(picture: Image.Image) -> Pixels:
    palette = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    if isinstance(picture, TiffImageFile) and not palette.any() and any(found := picture.tag_v2.get(COLOUR_MAP, ())):
        # the file has 8-bit colours in place of 16-bit colours, so Pillow dropped all their bits
        return np.array(found, dtype=np.uint8).reshape(3, -1).T
    return palette


def _bits(path: Path, kind: str) -> int:
    """Return the bits per value that a PNG or BMP states; 8 for other files."""
    with path.open("rb") as file:
        header = file.read(HEAD)
    return header[24] if kind == "PNG" else int.from_bytes(header[28:30], "little") if kind == "BMP" else 8


def _check_bmp(path: Path, picture: Image.Image) -> None:
    bits = _bits(path, "BMP")
    if picture.mode in ("1", "L") and bits != {"1": 1, "L": 8}[picture.mode]:
        # Pillow derives the depth of pixels from a short grey palette, and would read them at wrong positions
        raise TileError(
            f"{path} is a BMP of {bits} bits with a short grey palette, which is not supported",
            next_step="save it as PNG or TIFF",
        )


def _keyed(picture: Image.Image, values: npt.NDArray[np.generic], bits: int, kind: str) -> Pixels | None:
    """Return the alpha (y, x) that a PNG or GIF defines for palette entries, or for one grey value or colour."""
    key = picture.info.get("transparency")
    if key is None:
        return None
    if picture.mode == "P":
        table = np.full(256, 255, dtype=np.uint8)
        if isinstance(key, bytes):
            table[: len(key)] = list(key[:256])
        else:
            table[key] = 0
        return np.asarray(table[values], dtype=np.uint8)
    if picture.mode == "1":
        key = key > 0
    elif kind == "PNG":
        key = np.asarray(key) & (2**bits - 1)  # PNG specification: only the low bits, as many as a value has, count
    same = values == key
    return np.where(same.all(axis=-1) if same.ndim == 3 else same, np.uint8(0), np.uint8(255))
