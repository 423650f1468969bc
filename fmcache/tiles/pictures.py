"""Read images and masks from image files: each feature of a file format is supported here, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fmcache.errors import TileError
from fmcache.manifest import MASK_MAX
from fmcache.tiles.containers import LARGEST_PX, Decoded, decode, kind_of
from fmcache.tiles.npy import read_array, whole_numbers
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.tiff import LOSSY

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")


ARRAY = "NumPy array"
LOSSLESS_KINDS = ("PNG", "TIFF", "BMP", "GIF")
LOSSY_KINDS = ("JPEG", "JPEG 2000", "WebP", "AVIF or HEIC")
TRANSPARENT = -(1 << 24) - 1
"""Key of a transparent pixel; lower than the keys of all colours."""

RAMPS = {bits: np.linspace(0, 255, 1 << bits).astype(np.uint8)[:, None].repeat(3, axis=1) for bits in (1, 2, 4, 8)}


class RawMask(NamedTuple):
    """A mask file as stored.

    `keys` (y, x) int32 holds grey values and palette indices as stored, colours as -1 - 0xrrggbb (see `mask_span`), and
    `TRANSPARENT`. `colours` (number, colour) uint8 is the colour of each number, from a palette or from grey values of
    up to 8 bits. It is empty for arrays and for grey values of more bits.
    """

    keys: npt.NDArray[np.int32]
    colours: Pixels
    is_palette: bool


def read_image(path: Path, most_px: int = LARGEST_PX) -> Pixels:
    """Return an image file as RGB, (y, x, colour) uint8. Grey and palette images become RGB, transparent pixels white.

    Raises
    ------
    TileError
        When the file is damaged or too large, holds several pictures, is CMYK, has 16 bits per colour, or has a tag
        that rotates it.
    """
    kind = kind_of(path)
    if kind not in (*LOSSLESS_KINDS, *LOSSY_KINDS):
        raise TileError(
            f"{path} cannot be read as an image",
            expected="PNG, TIFF, JPEG or BMP",
            found=f"a {kind}" if kind else "first bytes of none of these formats",
            next_step="save the image as 8-bit RGB, as PNG or TIFF",
        )
    found = decode(path, kind, most_px)
    if found.mode not in ("RGB", "L", "P", "1") or found.values.dtype == np.int8:
        mode = "L, signed" if found.values.dtype == np.int8 else found.mode
        raise TileError(
            f"{path}: images of mode {mode} are not supported",
            expected="8-bit RGB, RGBA, grey or palette",
            next_step="convert it to 8-bit RGB, so that you decide how its values are scaled",
        )
    rgb = np.ascontiguousarray(_rgb(found))
    if found.alpha is None:
        return rgb
    return over_white(Image.fromarray(rgb), Image.fromarray(found.alpha))


def over_white(picture: Image.Image, alpha: Image.Image) -> Pixels:
    """Return a picture on a white background, the colour of glass: (y, x, colour) uint8; `alpha` 255 is opaque."""
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=alpha)
    return np.asarray(white, dtype=np.uint8)


def read_raw_mask(path: Path, most_px: int = LARGEST_PX) -> RawMask:
    """Return a mask file as stored: its numbers, the colours they show, and its transparent pixels.

    RGB pictures that contain only grey are read as grey values.

    Raises
    ------
    TileError
        When the file is damaged, too large or compressed with loss, holds several pictures or values below 0, is of a
        kind that cannot be a mask, or has pixels that are partly transparent.
    """
    kind = kind_of(path)
    if kind == ARRAY:
        return RawMask(read_array(path, most_px), np.zeros((0, 3), dtype=np.uint8), False)
    if kind in LOSSY_KINDS:
        raise _lossy(path, f"a picture in {kind}", kind)
    if kind not in LOSSLESS_KINDS:
        raise TileError(
            f"{path} cannot be read as a mask",
            expected="PNG, TIFF, BMP or a NumPy array (.npy)",
            found=f"a {kind}" if kind else "first bytes of none of these formats",
            next_step="save the mask as PNG or TIFF, or as .npy with numpy.save",
        )
    found = decode(path, kind, most_px)
    if found.page and (codec := LOSSY.get(found.page.compression)):
        raise _lossy(path, f"a TIFF compressed by {codec}", codec)
    if found.page and found.page.photometric == 0:
        raise TileError(
            f"{path} is a TIFF in which 0 is white (PhotometricInterpretation WhiteIsZero)",
            expected="label ids that are the same as stored and as shown",
            next_step="save it with 0 as black, as PNG or TIFF (ImageJ: Image > Lookup Tables > Grays, then save; "
            "tifffile: mask.astype('uint8'))",
        )
    if found.mode not in ("RGB", "L", "P", "1", "I;16", "I;16B", "I", "F"):
        raise TileError(
            f"{path}: masks of mode {found.mode} are not supported",
            expected="grey (8 to 64 bits), palette or RGB",
            next_step="export label ids as an 8-bit PNG, or numbered instances as a 16-bit PNG",
        )
    keys, colours = _keys(path, found)
    if found.alpha is not None:
        if partly := int(((found.alpha > 0) & (found.alpha < 255)).sum()):
            raise TileError(
                f"{path}: {partly} pixels of the mask are partly transparent, so it is unclear if they are labelled",
                expected="every pixel opaque, or fully transparent where nothing is annotated",
                next_step="export it without smoothed edges (anti-aliasing) and without opacity",
            )
        keys[found.alpha == 0] = TRANSPARENT
    return RawMask(keys, colours, found.mode == "P")


def _keys(path: Path, found: Decoded) -> tuple[npt.NDArray[np.int32], Pixels]:
    if found.mode == "RGB":
        red, green, blue = (np.asarray(found.values[..., i], dtype=np.uint8) for i in range(3))
        seen = slice(None) if found.alpha is None else found.alpha > 0
        keys = red.astype(np.int32)
        if (red == green)[seen].all() and (red == blue)[seen].all():
            return keys, RAMPS[8]
        for band in (green, blue):  # in place, because masks that are cut into squares are large
            keys <<= 8
            keys |= band
        return np.invert(keys, out=keys), RAMPS[8][:0]
    if found.mode == "F":
        next_step = "export label ids as an 8-bit PNG, or numbered instances as a 16-bit PNG"
        return whole_numbers(path, found.values, str(found.page or "floating-point numbers"), next_step), RAMPS[8][:0]
    keys = found.values.astype(np.int32)
    if keys.size and (least := int(keys.min())) < 0:
        if found.page and found.page.bits == 32 and found.page.sample_format != 2:
            raise TileError(f"{path}: mask values above {MASK_MAX}", next_step="number labels or instances from 0")
        raise TileError(
            f"{path}: mask values below 0 (the lowest is {least})", next_step="export values of 0 or more, such as 255"
        )
    if found.mode == "P":
        return keys, found.palette if found.palette is not None else RAMPS[8][:0]
    return keys, RAMPS[8][:0] if found.mode.startswith("I") else RAMPS.get(found.bits, RAMPS[8])


def _rgb(found: Decoded) -> Pixels:
    if found.mode == "RGB":
        return found.values.astype(np.uint8)
    table = np.zeros((256, 3), dtype=np.uint8)
    colours = RAMPS.get(found.bits, RAMPS[8]) if found.mode in ("1", "L") else found.palette
    if colours is not None:
        table[: len(colours)] = colours[:256]
    return table[found.values.astype(np.uint8)]


def _lossy(path: Path, what: str, codec: str) -> TileError:
    return TileError(
        f"{path} is {what}: {codec} is lossy, so its values near edges differ from those that were drawn",
        expected="a mask saved with lossless compression",
        next_step="export the masks again, as PNG or TIFF (do not convert these files: their wrong values would stay)",
    )
