"""Squares out of images of any shape: where they lie, and the pixels of image and mask in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from PIL import Image, UnidentifiedImageError

from fmcache.errors import TileError
from fmcache.manifest import IGNORE, FolderDataset, mask_span
from fmcache.tiles.images import Pixels

WAYS = ("crop", "tile", "pad")
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
SHOWN = 4


class Box(NamedTuple):
    """A square in pixels of an image; what lies beyond the image (x or y below 0) is padded."""

    x: int
    y: int
    size: int


def plan_boxes(width: int, height: int, way: str, tile_px: int) -> list[Box]:
    """Return the squares of an image.

    ``crop``: the largest square in its middle. ``pad``: the smallest square around it. ``tile``: squares of `tile_px`
    side by side, in the middle, so that the rim that is dropped is even; along an edge shorter than `tile_px`, one that
    reaches beyond on both sides.
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
    """Return whether part of a square lies beyond the image."""
    return box.x < 0 or box.y < 0 or box.x + box.size > width or box.y + box.size > height


def dropped_share(boxes: Sequence[Box], width: int, height: int) -> float:
    """Return the share of an image's pixels that lies in no square."""
    inside = sum((min(b.x + b.size, width) - max(b.x, 0)) * (min(b.y + b.size, height) - max(b.y, 0)) for b in boxes)
    return 1 - inside / (width * height)


def cut_image(image: Pixels, box: Box) -> Pixels:
    """Return the square of an image, (y, x, colour) uint8, reflected where it lies beyond."""
    inner, rims = _inner(image, box)
    return np.pad(inner, (*rims, (0, 0)), mode="reflect") if any(map(any, rims)) else inner


def cut_mask(mask: Pixels, box: Box) -> Pixels:
    """Return the square of label ids, (y, x) uint8, 255 where it lies beyond the image."""
    inner, rims = _inner(mask, box)
    return np.pad(inner, rims, constant_values=IGNORE)


def _inner(array: Pixels, box: Box) -> tuple[Pixels, tuple[tuple[int, int], tuple[int, int]]]:
    """Return the part of a square in the array, and how far it reaches beyond: (top, bottom), (left, right)."""
    height, width = array.shape[:2]
    rims = (
        (max(0, -box.y), max(0, box.y + box.size - height)),
        (max(0, -box.x), max(0, box.x + box.size - width)),
    )
    return array[max(0, box.y) : box.y + box.size, max(0, box.x) : box.x + box.size], rims


class Rim(NamedTuple):
    """A dataset whose `ignore_values` hold a value for what lies beyond the image, and that value: grey or RGB."""

    dataset: FolderDataset
    value: int | tuple[int, int, int]


def with_rim(dataset: FolderDataset) -> Rim:
    """Return a value that means ignored pixels; one that no label has is added where the dataset ignores none."""
    values = [value for label in dataset.labels for value in label.values] or list(range(len(dataset.labels)))
    colours = any(str(value).startswith("#") for value in values)
    for value in dataset.ignore_values:
        if str(value).startswith("#") == colours:
            low = mask_span(value)[0]
            return Rim(dataset, _rgb(low) if colours else low)
    spans = [mask_span(value) for value in (*values, *dataset.ignore_values)]
    candidates = [-1 - (n << 16 | n << 8 | n) for n in range(255, -1, -1)] if colours else range(255, -1, -1)
    free = next((c for c in candidates if not any(low <= c <= high for low, high in spans)), None)
    if free is None:
        raise TileError(
            "no mask value is left to mark what lies beyond an image",
            expected="a value from 0 to 255 that no label has",
            next_step="--square crop, or --square tile with a smaller --tile-px",
        )
    text: int | str = f"#{-1 - free:06x}" if colours else free
    changed = msgspec.structs.replace(dataset, ignore_values=(*dataset.ignore_values, text))
    return Rim(changed, _rgb(free) if colours else free)


def _rgb(packed: int) -> tuple[int, int, int]:
    number = -1 - packed
    return number >> 16, number >> 8 & 255, number & 255


def read_mask_picture(path: Path, in_colour: bool) -> Image.Image:
    """Return a mask file as a picture whose pixels are its values, palette and all; in RGB when values are colours.

    Raises
    ------
    TileError
        When it cannot be read, or its values do not fit into 16 bits.
    """
    if path.suffix.lower() == ".npy":
        values = np.load(path)
        return _deep(values, path) if values.ndim == 2 and values.dtype != np.uint8 else Image.fromarray(values)
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = opened.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as reason:
        raise TileError(f"{path} cannot be read as an image", found=str(reason)[:200]) from None
    if picture.mode == "1":
        return Image.fromarray(np.asarray(picture).astype(np.uint8))
    if picture.mode in DEEP:
        return _deep(np.asarray(picture), path)
    return picture.convert("RGB") if in_colour and picture.mode == "P" else picture


def _deep(values: np.ndarray, path: Path) -> Image.Image:
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise TileError(
            f"{path}: values of this mask do not fit into a PNG",
            expected="0 to 65535",
            found=f"{values.min()} to {values.max()}",
            next_step="number the instances from 1 on in each mask, or cut the squares yourself",
        )
    return Image.fromarray(values.astype(np.uint16))


def cut_picture(picture: Image.Image, box: Box, rim: int | tuple[int, int, int]) -> Image.Image:
    """Return the square of a mask picture: same values, same palette, `rim` where it lies beyond the image."""
    inner, ((top, _), (left, _)) = _inner(np.asarray(picture), box)
    colour = (rim, rim, rim) if isinstance(rim, int) else rim
    bands = inner.shape[2] if inner.ndim == 3 else 1
    fill = {1: colour[:1], 2: (colour[0], 255), 3: colour, 4: (*colour, 255)}
    deep = inner.dtype == np.uint8 and max(colour) > 255
    square = np.empty((box.size, box.size, bands), dtype=np.uint16 if deep else inner.dtype)
    square[:] = fill[bands]
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner.reshape(*inner.shape[:2], bands)
    made = Image.fromarray(square[..., 0] if bands == 1 else square)
    if picture.mode == "P" and not deep:
        made = made.convert("P")
        palette = picture.getpalette() or []
        made.putpalette([*palette, *[128] * (768 - len(palette))])  # whole, or PNG would cut the rim's value
        if "transparency" in picture.info:
            made.info["transparency"] = picture.info["transparency"]
    return made


def image_sizes(paths: Sequence[Path]) -> Counter[tuple[int, int]]:
    """Return how many images have each (width, height), of those whose first bytes can be read."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        try:
            with Image.open(path) as picture:
                sizes[picture.size] += 1
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # whoever reads the pixels says what is wrong
    return sizes


def shape_note(sizes: Counter[tuple[int, int]]) -> str:
    """Return a line on images that are not square or of several sizes, with the way out; empty when there are none."""
    total, oblong = sizes.total(), sum(n for (width, height), n in sizes.items() if width != height)
    way = "--square crop, tile or pad makes squares of them (tile: with --tile-px)"
    if oblong:
        return f"{oblong} of {total} images are not square ({sizes_of(sizes)}), and encoders see squares: {way}"
    if len(sizes) > 1:
        return (
            f"images are of {len(sizes)} sizes ({sizes_of(sizes)}): each is resized to the recipe's tile_px, so their "
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
