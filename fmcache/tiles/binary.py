"""Masks of one label each -> one mask of label ids: which files belong together, and what wins where labels overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.tiles.annotations import Mask
from fmcache.tiles.folder import find_partners, some
from fmcache.tiles.images import read_raw_mask
from fmcache.tiles.matching import File

Inside = npt.NDArray[np.bool_]


def parse_sources(text: str) -> dict[str, Path]:
    """Return where the masks of each label lie, from ``tumour=DIR,stroma=DIR/*_stroma.png,...``.

    Raises
    ------
    SpecError
        When a part has no name or no place, or a label is named twice.
    """
    parts = [[piece.strip() for piece in part.partition("=")] for part in text.split(",")]
    sources = {name: Path(place) for name, _, place in parts if name and place}
    if len(sources) < len(parts):
        raise SpecError(
            f"--masks {text!r} does not say where the masks of each label lie",
            expected="LABEL=FOLDER for each, such as 'tumour=masks/tumour,stroma=masks/stroma'",
            next_step="name each label once",
        )
    return sources


def find_masks(label: str, place: Path, images: Sequence[File], skip_lone: bool = False) -> dict[Path, Path]:
    """Return the mask of one label by image: those of a folder, or of a pattern whose ``*`` is the image's name.

    Raises
    ------
    ManifestError
        When a mask could belong to two images; when an image has no mask or a mask no image, unless `skip_lone` is set:
        a missing file may be an empty mask or a mistake.
    """
    found = find_partners(place, images)
    lone = [file.path.name for file in (*found.lone_images, *found.lone_masks)]
    if not found.pairs or (lone and not skip_lone):
        raise ManifestError(
            f"{place}: masks of {label!r} and images do not go together",
            expected="a mask for every image, an empty one where the label is not there",
            found=f"{len(lone)} alone: {some(lone)}",
            next_step="add or remove files, write a pattern such as masks/*_tumour.png, or pass over them with "
            "--missing skip",
        )
    return {image.path: mask.path for image, mask in found.pairs}


def read_inside(path: Path) -> Inside:
    """Return where a mask of one label is not 0: (y, x) bool.

    Raises
    ------
    TileError
        When the file cannot be read, or holds several values: then it is no mask of one label.
    """
    raw = read_raw_mask(path)
    flat = raw if raw.ndim == 2 else raw.max(axis=-1)
    values = np.unique(flat[flat > 0])
    if len(values) > 1:
        raise TileError(
            f"{path} is no mask of one label",
            expected="0 outside and one value inside",
            found=f"{len(values) + 1} values: 0, {', '.join(map(str, values[:5].tolist()))}, ...",
            next_step="save it without loss (PNG, TIFF), or pass label images as they are: --masks DIR --labels ...",
        )
    return np.asarray(flat > 0)


def merge(masks: Sequence[tuple[Inside, int]], fill: int) -> Mask:
    """Return label ids (y, x) uint8 of masks in drawing order: later ones lie over earlier ones; `fill` is outside all.

    `overlap` is the share of pixels inside several masks.

    Raises
    ------
    TileError
        When sizes differ.
    """
    shapes = {inside.shape for inside, _ in masks}
    if len(shapes) > 1:
        raise TileError(
            "masks of one tile differ in size",
            found=", ".join(sorted(f"{width} x {height} px" for height, width in shapes)),
            next_step="export them all at the size of the image",
        )
    merged = np.full(next(iter(shapes)), fill, dtype=np.uint8)
    for inside, label in masks:
        merged[inside] = label
    return Mask(merged, float((np.sum([inside for inside, _ in masks], axis=0) > 1).mean()))
