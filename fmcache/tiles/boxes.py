"""Squares cut out of images of any shape: their positions, and the pixels of image and mask in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fmcache.errors import TileError
from fmcache.tiles.containers import look
from fmcache.tiles.pictures import TRANSPARENT, RawMask
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.rims import MOST, Rim
from fmcache.tiles.values import reads_by_colour, shown_keys

WAYS = ("crop", "tile", "pad")
SHOWN = 4
Value = TypeVar("Value", bound=np.generic)


class Box(NamedTuple):
    """A square in pixels of an image. It may reach beyond the image (x or y below 0); that part is padded."""

    x: int
    y: int
    size: int


def plan_boxes(width: int, height: int, way: str, tile_px: int) -> list[Box]:
    """Return the squares of an image.

    ``crop``: the largest square in the middle of the image. ``pad``: the smallest square around the image. ``tile``:
    squares of `tile_px` side by side in the middle, so that the dropped rim is equally wide on opposite sides. Along an
    edge shorter than `tile_px`, one square reaches beyond the image on both sides.
    """
    if way == "tile":
        xs, ys = _starts(width, tile_px), _starts(height, tile_px)
        return [Box(x, y, tile_px) for y in ys for x in xs]
    side = min(width, height) if way == "crop" else max(width, height)
    return [Box((width - side) // 2, (height - side) // 2, side)]


def _starts(length: int, step: int) -> list[int]:
    count = max(1, length // step)
    first = (length - count * step) // 2
    return [first + i * step for i in range(count)]


def reaches_beyond(box: Box, width: int, height: int) -> bool:
    """Return whether part of a square lies outside the image."""
    return box.x < 0 or box.y < 0 or box.x + box.size > width or box.y + box.size > height


def dropped_share(boxes: Sequence[Box], width: int, height: int) -> float:
    """Return the share of an image's pixels that lies in no square."""
    inside = sum((min(b.x + b.size, width) - max(b.x, 0)) * (min(b.y + b.size, height) - max(b.y, 0)) for b in boxes)
    return 1 - inside / (width * height)


def cut_image(image: Pixels, box: Box) -> Pixels:
    """Return the square of an image, (y, x, colour) uint8; pixels outside the image are filled by reflection."""
    inner, rims = _inner(image, box)
    return np.pad(inner, (*rims, (0, 0)), mode="reflect") if any(map(any, rims)) else inner


def cut_raw(raw: RawMask, box: Box) -> RawMask:
    """Return the square of a mask; pixels outside the image get the key `TRANSPARENT`, so they are ignored."""
    inner, rims = _inner(raw.keys, box)
    return raw._replace(keys=np.pad(inner, rims, constant_values=TRANSPARENT))


def _inner(array: npt.NDArray[Value], box: Box) -> tuple[npt.NDArray[Value], tuple[tuple[int, int], tuple[int, int]]]:
    """Return the part of a square inside the array, and the widths outside it in px: (top, bottom), (left, right)."""
    height, width = array.shape[:2]
    rims = (
        (max(0, -box.y), max(0, box.y + box.size - height)),
        (max(0, -box.x), max(0, box.x + box.size - width)),
    )
    return array[max(0, box.y) : box.y + box.size, max(0, box.x) : box.x + box.size], rims


def picture_of(square: RawMask, rim: Rim) -> Image.Image:
    """Return a mask as a picture to save as PNG: numbers of 8 or 16 bits, with their palette, or colours in RGB.

    Transparent pixels get the value of `rim`. The entry of this value in a palette is always set, because palettes of
    different squares must not differ.

    Raises
    ------
    TileError
        When a number does not fit into 16 bits, or no value is free to mark ignored pixels.
    """
    hidden = square.keys == TRANSPARENT
    keys = shown_keys(square) if reads_by_colour(rim.dataset) else square.keys.copy()
    in_colour = reads_by_colour(rim.dataset) or bool((keys[~hidden] < 0).any())
    if hidden.any():
        keys[hidden] = rim.key(in_colour)
    if in_colour:
        return Image.fromarray(np.stack([(~keys >> shift & 255) for shift in (16, 8, 0)], axis=-1).astype(np.uint8))
    most = int(keys.max())
    if most > MOST:
        raise TileError(
            "values of this mask do not fit into a PNG",
            expected=f"0 to {MOST}",
            found=f"{int(keys.min())} to {most}",
            next_step="number the instances from 1 in each mask, or cut the squares with another tool",
        )
    if most > 255 or not len(square.colours):
        return Image.fromarray(keys.astype(np.uint16))
    made = Image.fromarray(keys.astype(np.uint8))
    if square.is_palette:
        palette = np.full((256, 3), 128, dtype=np.uint8)  # 256 entries: a shorter palette would lack the rim's value
        palette[: len(square.colours)] = square.colours
        if rim.number is not None and rim.number < 256:
            palette[rim.number] = 128
        made = made.convert("P")
        made.putpalette(palette.tobytes())
    return made


def image_sizes(paths: Sequence[Path]) -> Counter[tuple[int, int]]:
    """Return the number of images of each (width, height), for images whose header can be read."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        if (facts := look(path)) is not None:
            sizes[facts.size] += 1
    return sizes


def shape_note(sizes: Counter[tuple[int, int]]) -> str:
    """Return a line on images that are not square or differ in size, with a solution; empty when there are none."""
    total, oblong = sizes.total(), sum(n for (width, height), n in sizes.items() if width != height)
    way = "make them square with --square crop, tile or pad (tile needs --tile-px)"
    if oblong:
        return f"{oblong} of {total} images are not square ({sizes_of(sizes)}), but encoders need squares: {way}"
    if len(sizes) > 1:
        return (
            f"images have {len(sizes)} sizes ({sizes_of(sizes)}): each is resized to the recipe's tile_px, so their "
            f"um/px will differ; --square tile --tile-px {min(sizes)[0]} cuts them into squares of one size"
        )
    return ""


def sizes_of(sizes: Counter[tuple[int, int]]) -> str:
    """Return sizes for a message, the most frequent first: ``90 of 775 x 522 px, ... and 12 more sizes``."""
    named = [f"{n} of {width} x {height} px" for (width, height), n in sizes.most_common(SHOWN)]
    if len(sizes) <= SHOWN:
        return ", ".join(named) or "none"
    edges = [edge for size in sizes for edge in size]
    return f"{', '.join(named)} and {len(sizes) - SHOWN} more sizes, edges of {min(edges)} to {max(edges)} px"
