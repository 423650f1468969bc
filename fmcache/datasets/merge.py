"""Masks of one label each, one folder per label -> label images in one folder, for `fmcache data add`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fmcache.datasets.binary_masks import (
    Inside,
    find_masks,
    merge,
    parse_ranks,
    parse_rest,
    parse_sources,
    read_inside,
    refuse_empty,
)
from fmcache.datasets.folder import find_images
from fmcache.datasets.label_flags import IGNORED
from fmcache.datasets.matching import File
from fmcache.datasets.scan import scan
from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.identity import whole_file
from fmcache.manifest import IGNORE
from fmcache.quoting import quoted
from fmcache.runtime.progress import progress
from fmcache.tiles.containers import look


class Merged(NamedTuple):
    """Labels in the form of `--labels`, a line on overlaps, and the masks that were merged (they are not images)."""

    labels: str
    note: str
    masks: frozenset[Path]


def merge_masks(
    images: Path, masks: str, into: Path | None, *, order: str, fill: str, replace: bool, skip_lone: bool = False
) -> Merged:
    """Write one label image for each image to `into`. The hash of this file then covers every decision on a pixel.

    Parameters
    ----------
    masks
        ``LABEL=FOLDER,...``, with quotes around names that contain a comma; labels get their ids in this order.
    order
        Labels from lowest to highest, separated by commas. Empty means the order of `masks`: later labels cover
        earlier ones.
    skip_lone
        Skip images that lack the mask of a label, and masks without images.
    fill
        A label, or ``ignore``, for pixels in no mask. It may be a label without masks.

    Raises
    ------
    SpecError, ManifestError, TileError
        When flags contradict each other, files have no partner or are not masks of one label, or `into` is not empty.
    """
    sources = parse_sources(masks)
    ranks, rest_name = parse_ranks(order, list(sources)), parse_rest(fill)
    names = [*sources, *({rest_name} - {*sources, IGNORED})]
    if len(names) < 2:
        raise SpecError(
            "segmentation needs two or more labels", next_step="name a label for the other pixels: --fill other"
        )
    if into is None:
        raise SpecError(
            "masks of one label each are merged into label images, which need a folder",
            next_step="pass a folder for them: --merge-into DIR",
        )
    inputs = [images, *(place.parent if "*" in place.name else place for place in sources.values())]
    full = into.exists() and any(into.iterdir())
    if into.resolve() in [place.resolve() for place in inputs] or (full and not replace):
        raise ManifestError(
            f"{into} is not empty", next_step="choose another folder with --merge-into, or pass --replace"
        )
    listed = _images(images, sources)
    found = {label: find_masks(label, place, listed, skip_lone) for label, place in sources.items()}
    kept = [image for image in listed if all(image.path in of_image for of_image in found.values())]
    if not kept:
        raise ManifestError(f"{images}: no image has a mask of every label", next_step="add empty masks")
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    overlap, rest = 0.0, IGNORE if rest_name == IGNORED else names.index(rest_name)
    with progress("merging masks", len(kept), "tiles") as tick:
        for image in kept:
            try:
                drawn = merge([(_inside(found[label][image.path], image), names.index(label)) for label in ranks], rest)
            except TileError as error:
                problem = f"tile {image.stem}: {error.problem}"
                raise TileError(
                    problem, expected=error.expected, found=error.found, next_step=error.next_step
                ) from None
            overlap += drawn.overlap / len(kept)
            pixels += np.bincount(drawn.mask.ravel(), minlength=IGNORE + 1)
            with whole_file(into.joinpath(*image.place, f"{image.stem}.png")) as file:
                Image.fromarray(drawn.mask).save(file, format="PNG")
            tick(1)
    refuse_empty(names, pixels, len(kept))
    labels = ",".join(f"{quoted(name)}={i}" for i, name in enumerate(names))
    total = pixels.sum()
    counts = [*zip(names, pixels, strict=False), *([("ignored", pixels[IGNORE])] if fill == "ignore" else [])]
    shares = ", ".join(f"{name} {n / total:.0%}" for name, n in counts)
    note = (
        f"{into}: {len(kept)} masks merged: {shares}; {overlap:.2%} of pixels lie in several masks, {ranks[-1]} on top"
    )
    if skipped := len(listed) - len(kept):
        note += f"; {skipped} images without the mask of some label were skipped"
    return Merged(labels, note, frozenset(mask for of_image in found.values() for mask in of_image.values()))


def _inside(mask: Path, image: File) -> Inside:
    """Return where a mask of one label is set, after a check that it has the size of its image."""
    inside, facts = read_inside(mask), look(image.path)
    if facts and inside.shape[::-1] != facts.size:
        raise TileError(
            f"{mask}: mask and image differ in size",
            expected=f"{facts.size[0]} x {facts.size[1]} px, like the image",
            found=f"{inside.shape[1]} x {inside.shape[0]} px",
            next_step="export the mask again at the size of the image",
        )
    return inside


def _images(images: Path, sources: dict[str, Path]) -> Sequence[File]:
    """Return the images, without masks that lie in the same folder.

    Raises
    ------
    ManifestError
        When two images would have the same merged mask.
    """
    masks = {file.path for place in sources.values() if "*" in place.name for file in scan(place).files}
    listed, _ = find_images(images, masks)
    names = [(image.place, image.stem) for image in listed]
    for image, name in zip(listed, names, strict=True):
        if names.count(name) > 1:
            raise ManifestError(
                f"{image.path}: several images have the name {image.stem!r}",
                next_step="choose one of them by a pattern, such as --images 'tiles/*.jpg'",
            )
    return listed
