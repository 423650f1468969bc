"""Masks of one label each, in a folder per label -> label images in one folder, for `fmcache data add`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.identity import whole_file
from fmcache.manifest import IGNORE
from fmcache.stages.progress import progress
from fmcache.tiles.binary import find_masks, merge, parse_sources, read_inside, refuse_empty
from fmcache.tiles.folder import SUFFIXES, by_stem
from fmcache.tiles.words import quoted


class Merged(NamedTuple):
    """Labels as `--labels` has them, and a line on overlaps."""

    labels: str
    note: str


def merge_masks(images: Path, masks: str, into: Path | None, order: str, fill: str, replace: bool) -> Merged:
    """Write one label image for each image to `into`; what decides a pixel is then in the hash of a file.

    Parameters
    ----------
    masks
        ``LABEL=FOLDER,...``; labels get their ids in this order.
    order
        Labels from lowest to highest, joined by commas; empty: as in `masks`, so that later ones lie over earlier ones.
    fill
        A label, or ``ignore``, for pixels in no mask; it may be a label without masks.

    Raises
    ------
    SpecError, ManifestError, TileError
        When flags do not fit together, files have no partner or are no masks of one label, or `into` is not empty.
    """
    sources = parse_sources(masks)
    names = [*sources, *({fill} - {*sources, "ignore"})]
    ranks = [part.strip() for part in order.split(",")] if order else list(sources)
    if sorted(ranks) != sorted(sources):
        raise SpecError(f"--order {order!r}", expected=f"each of {', '.join(sources)} once, from lowest to highest")
    if len(names) < 2:
        raise SpecError("a single label is no segmentation", next_step="name the rest: --fill other")
    if into is None:
        raise SpecError("masks of one label each are merged into label images", next_step="say where: --merge-into DIR")
    inputs = [images, *(place.parent if "*" in place.name else place for place in sources.values())]
    full = into.exists() and any(into.iterdir())
    if into.resolve() in [place.resolve() for place in inputs] or (full and not replace):
        raise ManifestError(f"{into} is not empty", next_step="choose another folder with --merge-into, or --replace")
    listed = by_stem(images, SUFFIXES, strip=False)
    found = {label: find_masks(label, place, listed) for label, place in sources.items()}
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    overlap, rest = 0.0, IGNORE if fill == "ignore" else names.index(fill)
    with progress("merging masks", len(listed), "tiles") as tick:
        for stem in listed:
            try:
                drawn = merge([(read_inside(found[label][stem]), names.index(label)) for label in ranks], rest)
            except TileError as error:
                problem = f"tile {stem}: {error.problem}"
                raise TileError(
                    problem, expected=error.expected, found=error.found, next_step=error.next_step
                ) from None
            overlap += drawn.overlap / len(listed)
            pixels += np.bincount(drawn.mask.ravel(), minlength=IGNORE + 1)
            with whole_file(into / f"{stem}.png") as file:
                Image.fromarray(drawn.mask).save(file, format="PNG")
            tick(1)
    refuse_empty(names, pixels, len(listed))
    labels = ",".join(f"{quoted(name)}={i}" for i, name in enumerate(names))
    return Merged(
        labels, f"{into}: {len(listed)} masks merged; {overlap:.2%} of pixels lie in several, {ranks[-1]} on top"
    )
