"""One tile's image and mask as arrays: read from files and checked against their hashes, or drawn."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, UnidentifiedImageError

from fmcache.errors import ManifestError, TileError
from fmcache.identity import sha256_file
from fmcache.manifest import (
    IGNORE,
    AnyDataset,
    DemoDataset,
    FolderDataset,
    GeojsonDataset,
    Label,
    TileEntry,
    mask_span,
)
from fmcache.tiles.annotations import rasterise, read_annotations
from fmcache.tiles.classes import Selection
from fmcache.tiles.demo import draw_tile

Pixels = npt.NDArray[np.uint8]
RawMask = npt.NDArray[np.uint8] | npt.NDArray[np.int32]
UNKNOWN = -1
ORIENTATION = 0x0112  # EXIF tag
MPP_TOLERANCE = 0.02  # scanners differ by more from one to the next


class Tile(NamedTuple):
    """A tile: image (y, x, colour) uint8 RGB, mask (y, x) uint8 label ids with 255 = ignore, and the sha256 of both.

    `overlap` and `notes` are those of annotated regions, see `Drawn`.
    """

    id: str
    image: Pixels
    mask: Pixels
    image_sha256: str
    mask_sha256: str
    overlap: float = 0.0
    notes: tuple[tuple[str, int], ...] = ()


class Drawn(NamedTuple):
    """A mask, (y, x) uint8 label ids with 255 = ignore; of annotated regions also the share of pixels that two or more
    labels cover, and what was mended or left out, with its count."""

    mask: Pixels
    overlap: float = 0.0
    notes: tuple[tuple[str, int], ...] = ()


def read_tile(dataset: AnyDataset, entry: TileEntry, folder: Path) -> Tile:
    """Return a tile of a dataset at its own size.

    Parameters
    ----------
    folder
        The manifest's folder, where relative roots start.

    Raises
    ------
    ManifestError
        When a file is missing or is not the one that was listed.
    TileError
        When a file cannot be read; as `read_mask`.
    """
    if isinstance(dataset, DemoDataset):
        image, mask = draw_tile(dataset.seed, entry, dataset.size_px)
        return Tile(entry.id, image, mask, _sha256(image), _sha256(mask))
    root = folder / dataset.root
    image_path, mask_path = root / entry.image, root / entry.mask
    for path, listed in ((image_path, entry.image_sha256), (mask_path, entry.mask_sha256)):
        _check_file(entry.id, path, listed)
    image = read_image(image_path)
    mask, overlap, notes = read_mask(mask_path, dataset, image)
    return Tile(entry.id, image, mask, entry.image_sha256, entry.mask_sha256, overlap, notes)


def read_mask(path: Path, dataset: FolderDataset | GeojsonDataset, image: Pixels) -> Drawn:
    """Return the label ids of a mask file: of its pixels, or of its regions drawn at the size of `image`.

    Raises
    ------
    TileError
        When the file cannot be read, holds a value or class no label has, is of another size than `image`, or has all
        its regions beside it.
    """
    height, width = image.shape[:2]
    if isinstance(dataset, FolderDataset):
        mask = to_label_ids(read_raw_mask(path), dataset, path)
        if mask.shape != (height, width):
            raise TileError(
                f"{path}: mask and image differ in size",
                expected=f"{width} x {height} px, as the image",
                found=f"{mask.shape[1]} x {mask.shape[0]} px",
                next_step="export the mask again at the size of the image",
            )
        return Drawn(mask)
    notes: Counter[str] = Counter()
    annotations = read_annotations(path, notes, Selection.of(dataset))
    if annotations and not any(a.geometry.intersects(shapely.box(0, 0, width, height)) for a in annotations):
        raise TileError(
            f"{path}: no region lies on the image",
            expected=f"coordinates in pixels of the image, 0 to {width} and 0 to {height}",
            found=f"{len(annotations)} regions, the first from {annotations[0].geometry.bounds[:2]} on",
            next_step="export the annotations from this very image",
        )
    fill = IGNORE if dataset.fill == "ignore" else dataset.label_names.index(dataset.fill)
    try:
        drawn = rasterise(annotations, dataset.classes(), (width, height), order=dataset.order, fill=fill)
    except TileError as error:
        raise TileError(
            f"{path}: {error.problem}", expected=error.expected, found=error.found, next_step=error.next_step
        ) from None
    return Drawn(drawn.mask, drawn.overlap, tuple(sorted(notes.items())))


def check_view_mpp(dataset: AnyDataset, tile: Tile, tile_px: int) -> None:
    """Raise TileError when a dataset says at what um/px encoders must see it, and `tile_px` gives another."""
    if isinstance(dataset, DemoDataset) or not (dataset.view_mpp and dataset.mpp):
        return
    side_px = max(tile.mask.shape)
    seen, wanted = dataset.mpp * side_px / tile_px, dataset.view_mpp
    if abs(seen / wanted - 1) > MPP_TOLERANCE:
        raise TileError(
            f"tile {tile.id!r}: {side_px} px of {dataset.mpp:g} um, resized to {tile_px} px, give another um/px",
            expected=f"view_mpp: {wanted:g}",
            found=f"{seen:.3g} um/px",
            next_step=f"set tile_px: {round(side_px * dataset.mpp / wanted)} in the recipe, or cut tiles of "
            f"{round(tile_px * wanted / dataset.mpp)} px",
        )


def resize_tile(tile: Tile, tile_px: int) -> Tile:
    """Return a square tile at `tile_px` pixels; the same when it has that size.

    The image is averaged over areas when it shrinks (so that no detail turns into false pattern) and interpolated
    when it grows; the mask takes the nearest pixel centre.

    Raises
    ------
    TileError
        When the tile is not square.
    """
    height, width = tile.mask.shape
    if height != width:
        raise TileError(
            f"tile {tile.id!r} is not square",
            expected="a square tile",
            found=f"{width} x {height} px",
            next_step="cut it into squares: stretching would change the shape of cells",
        )
    if height == tile_px:
        return tile
    smooth = cv2.INTER_AREA if tile_px < height else cv2.INTER_LINEAR
    image = cv2.resize(tile.image, (tile_px, tile_px), interpolation=smooth)
    mask = cv2.resize(tile.mask, (tile_px, tile_px), interpolation=cv2.INTER_NEAREST_EXACT)
    return tile._replace(image=np.asarray(image, dtype=np.uint8), mask=np.asarray(mask, dtype=np.uint8))


def read_image(path: Path) -> Pixels:
    """Return an image file as RGB, (y, x, colour) uint8. Alpha is dropped; grey and palette images become RGB.

    Raises
    ------
    TileError
        When the file is damaged, or is CMYK, 16 bits deep or rotated by its EXIF tag.
    """
    with _opened(path) as picture:
        if picture.mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
            raise TileError(
                f"{path}: an image of mode {picture.mode} is not read",
                expected="8-bit RGB, RGBA, grey or palette",
                next_step="convert it to 8-bit RGB, so that you decide how its values are scaled",
            )
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def read_raw_mask(path: Path) -> RawMask:
    """Return a mask file as it is: (y, x) grey values or palette indices, int32, or (y, x, colour) uint8 RGB.

    Raises
    ------
    TileError
        When the file is damaged, of a kind that is no mask, or has values below 0.
    """
    with _opened(path) as picture:
        if picture.mode in ("RGB", "RGBA"):
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
        if picture.mode not in ("L", "P", "1", "I;16", "I;16B", "I"):
            raise TileError(
                f"{path}: a mask of mode {picture.mode} is not read",
                expected="grey (8, 16 or 32 bits), palette or RGB",
                next_step="export label ids as an 8-bit PNG, numbered instances as a 16-bit one",
            )
        values = np.asarray(picture).astype(np.int32)
    if values.size and values.min() < 0:
        raise TileError(f"{path}: mask values below 0", found=str(values.min()), next_step="export values from 0 on")
    return values


def to_label_ids(raw: RawMask, dataset: FolderDataset, path: Path) -> Pixels:
    """Return label ids (y, x) uint8, 255 = ignore, of a raw mask; labels without values mean their position.

    Raises
    ------
    TileError
        Listing the values that no label has, with their pixel counts.
    """
    keys = pack(raw)
    values, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    table = np.full(len(values), UNKNOWN, dtype=np.int32)
    meanings = [(value, IGNORE) for value in dataset.ignore_values] + mask_values(dataset.labels)
    for value, label in meanings:
        low, high = mask_span(value)
        table[(values >= low) & (values <= high)] = label
    if (unknown := np.flatnonzero(table == UNKNOWN)).size:
        listed = ", ".join(f"{_shown(int(values[i]))} ({counts[i]} px)" for i in unknown[:8])
        raise TileError(
            f"{path}: mask values that no label has",
            expected=", ".join(str(value) for value, _ in meanings),
            found=listed + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""),
            next_step="add them to a label's values or to ignore_values (fmcache data add --labels, --ignore); a mask "
            "that numbers instances takes a range, such as 'nucleus=1-'",
        )
    return table.astype(np.uint8)[inverse].reshape(keys.shape)


def mask_values(labels: tuple[Label, ...]) -> list[tuple[int | str, int]]:
    """Return each mask value with its label id."""
    if not any(label.values for label in labels):
        return [(i, i) for i in range(len(labels))]
    return [(value, i) for i, label in enumerate(labels) for value in label.values]


def pack(raw: RawMask) -> npt.NDArray[np.int32]:
    """Return one number per pixel of a raw mask, (y, x) int32, grey and RGB kept apart as `mask_span` has them."""
    if raw.ndim == 2:
        return raw.astype(np.int32)
    red, green, blue = (raw[..., i].astype(np.int32) for i in range(3))
    return -1 - ((red << 16) + (green << 8) + blue)


def _shown(key: int) -> str:
    return str(key) if key >= 0 else f"#{-1 - key:06x}"


def _check_file(tile: str, path: Path, listed: str) -> None:
    if not path.is_file():
        raise ManifestError(f"tile {tile!r}: {path} is missing", next_step="restore it, or fmcache data add --replace")
    if (found := sha256_file(path)) != listed:
        raise ManifestError(
            f"tile {tile!r}: {path} is not the file that was listed",
            expected=f"sha256 {listed}",
            found=f"sha256 {found}",
            next_step="restore the file, or list the new one with fmcache data add --replace",
        )


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        deep = ";16" in str(picture.tile)  # gone after loading
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as reason:
        raise TileError(
            f"{path} cannot be read as an image", found=str(reason)[:200], next_step="export or download it again"
        ) from None
    if deep and not picture.mode.startswith("I"):
        # Pillow keeps the upper byte alone: images of 12 bits would come out nearly black, and nobody would be told
        raise TileError(
            f"{path} has 16 bits per colour",
            expected="8 bits per colour",
            next_step="convert it to 8-bit RGB, so that you decide how its values are scaled",
        )
    if picture.getexif().get(ORIENTATION, 1) != 1:
        raise TileError(
            f"{path} is to be shown rotated (EXIF orientation), but a mask made beside it may not be",
            next_step="save the image upright, without the tag",
        )
    return picture


def _sha256(array: Pixels) -> str:
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
