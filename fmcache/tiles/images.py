"""One tile's image and mask as arrays: read from files and checked against their hashes, or drawn."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fmcache.errors import ManifestError, TileError
from fmcache.identity import sha256_file
from fmcache.manifest import (
    IGNORE,
    AnyDataset,
    DemoDataset,
    FolderDataset,
    GeojsonDataset,
    TileEntry,
)
from fmcache.quoting import quoted
from fmcache.tiles.annotations import rasterise, read_annotations
from fmcache.tiles.classes import Selection
from fmcache.tiles.demo import DRAWN, draw_tile
from fmcache.tiles.pictures import RawMask, read_image, read_raw_mask
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.placement import check_place
from fmcache.tiles.values import Palette, read_values, unknown_values

MPP_TOLERANCE = 0.02  # differences between scanners are larger


class Tile(NamedTuple):
    """A tile: image (y, x, colour) uint8 RGB, mask (y, x) uint8 label ids with 255 = ignore, and the sha256 of both.

    The other fields are those of `Drawn`.
    """

    id: str
    image: Pixels
    mask: Pixels
    image_sha256: str
    mask_sha256: str
    overlap: float = 0.0
    notes: tuple[tuple[str, int], ...] = ()
    found: tuple[tuple[int, int], ...] = ()
    palette: Palette | None = None


class Drawn(NamedTuple):
    """A mask, (y, x) uint8 label ids with 255 = ignore.

    For annotated regions, `overlap` is the share of pixels under two or more labels, and `notes` counts what was
    repaired or left out. For mask images, `found` has the values that occur, as keys of `read_values` with their
    numbers of pixels, and `palette` is set if the mask was read by palette index.
    """

    mask: Pixels
    overlap: float = 0.0
    notes: tuple[tuple[str, int], ...] = ()
    found: tuple[tuple[int, int], ...] = ()
    palette: Palette | None = None


def read_tile(dataset: AnyDataset, entry: TileEntry, folder: Path) -> Tile:
    """Return a tile of a dataset at its own size.

    Parameters
    ----------
    folder
        The manifest's folder; relative roots start there.

    Raises
    ------
    ManifestError
        When a file is missing or is not the listed file; when demo tiles have more labels than the dataset.
    TileError
        When a file cannot be read; also as in `read_mask`.
    """
    if isinstance(dataset, DemoDataset):
        if len(dataset.labels) < len(DRAWN):
            raise ManifestError(
                f"demo tiles (format: demo) have {len(DRAWN)} labels, but the dataset lists {len(dataset.labels)}",
                expected=f"labels for {', '.join(DRAWN)}, in this order",
                found=", ".join(map(quoted, dataset.label_names)),
                next_step="add the missing labels to the manifest",
            )
        image, mask = draw_tile(dataset.seed, entry, dataset.size_px)
        return Tile(entry.id, image, mask, _sha256(image), _sha256(mask))
    root = folder / dataset.root
    image_path, mask_path = root / entry.image, root / entry.mask
    for path, listed in ((image_path, entry.image_sha256), (mask_path, entry.mask_sha256)):
        _check_file(entry.id, path, listed)
    image = read_image(image_path)
    mask, overlap, notes, found, palette = read_mask(mask_path, dataset, image)
    return Tile(entry.id, image, mask, entry.image_sha256, entry.mask_sha256, overlap, notes, found, palette)


def read_mask(
    path: Path, dataset: FolderDataset | GeojsonDataset, image: Pixels, unknown: Counter[int] | None = None
) -> Drawn:
    """Return the label ids of a mask file: read from its pixels, or drawn from its regions at the size of `image`.

    Parameters
    ----------
    unknown
        When passed, pixels of values that no label has are counted here by key, and cause no error.

    Raises
    ------
    TileError
        When the file cannot be read, holds a value or class that no label has, differs in size from `image`, or has all
        its regions outside the image.
    """
    height, width = image.shape[:2]
    if isinstance(dataset, FolderDataset):
        raw = read_raw_mask(path)
        check_same_size(path, raw, image)
        mask, found, strange, palette = read_values(raw, dataset)
        if strange and unknown is None:
            raise unknown_values(str(path), strange, dataset)
        if unknown is not None:
            unknown.update(strange)
        return Drawn(mask, found=tuple(found.items()), palette=palette)
    notes: Counter[str] = Counter()
    annotations = read_annotations(path, notes, Selection.of(dataset))
    if annotations:
        notes.update(check_place(path, annotations, (width, height)))
    fill = IGNORE if dataset.fill == "ignore" else dataset.label_names.index(dataset.fill)
    try:
        drawn = rasterise(annotations, dataset.classes(), (width, height), order=dataset.order, fill=fill)
    except TileError as error:
        raise TileError(
            f"{path}: {error.problem}", expected=error.expected, found=error.found, next_step=error.next_step
        ) from None
    return Drawn(drawn.mask, drawn.overlap, tuple(sorted(notes.items())))


def check_same_size(path: Path, raw: RawMask, image: Pixels) -> None:
    """Raise TileError when a mask and its image differ in size."""
    (rows, columns), (height, width) = raw.keys.shape, image.shape[:2]
    if (rows, columns) != (height, width):
        raise TileError(
            f"{path}: mask and image differ in size",
            expected=f"{width} x {height} px, like the image",
            found=f"{columns} x {rows} px",
            next_step="export the mask again at the size of the image",
        )


def check_view_mpp(dataset: AnyDataset, tile: Tile, tile_px: int) -> None:
    """Raise TileError when a dataset requires a um/px for encoders (`view_mpp`), and `tile_px` gives another um/px."""
    if isinstance(dataset, DemoDataset) or not (dataset.view_mpp and dataset.mpp):
        return
    side_px = max(tile.mask.shape)
    seen, wanted = dataset.mpp * side_px / tile_px, dataset.view_mpp
    if abs(seen / wanted - 1) > MPP_TOLERANCE:
        raise TileError(
            f"tile {tile.id!r}: {side_px} px of {dataset.mpp:g} um, resized to {tile_px} px, give a wrong um/px",
            expected=f"view_mpp: {wanted:g}",
            found=f"{seen:.3g} um/px",
            next_step=f"set tile_px: {round(side_px * dataset.mpp / wanted)} in the recipe, or cut tiles of "
            f"{round(tile_px * wanted / dataset.mpp)} px",
        )


def resize_tile(tile: Tile, tile_px: int) -> Tile:
    """Return a square tile resized to `tile_px` pixels; the same tile when it already has this size.

    The image is averaged over areas when it is reduced (to avoid aliasing) and interpolated when it is enlarged. The
    mask takes the value at the nearest pixel centre.

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
            next_step="cut it into squares (it is not stretched, because this would change the shape of cells)",
        )
    if height == tile_px:
        return tile
    smooth = cv2.INTER_AREA if tile_px < height else cv2.INTER_LINEAR
    image = cv2.resize(tile.image, (tile_px, tile_px), interpolation=smooth)
    mask = cv2.resize(tile.mask, (tile_px, tile_px), interpolation=cv2.INTER_NEAREST_EXACT)
    return tile._replace(image=np.asarray(image, dtype=np.uint8), mask=np.asarray(mask, dtype=np.uint8))


def _check_file(tile: str, path: Path, listed: str) -> None:
    if not path.is_file():
        raise ManifestError(
            f"tile {tile!r}: {path} is missing", next_step="restore it, or run fmcache data add --replace"
        )
    try:
        found = sha256_file(path)
    except OSError as reason:
        raise TileError(
            f"tile {tile!r}: {path} cannot be read",
            found=reason.strerror or "",
            next_step="check the file's permissions",
        ) from None
    if found != listed:
        raise ManifestError(
            f"tile {tile!r}: {path} is not the file that was listed",
            expected=f"sha256 {listed}",
            found=f"sha256 {found}",
            next_step="restore the file, or list the new one with fmcache data add --replace",
        )


def _sha256(array: Pixels) -> str:
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
