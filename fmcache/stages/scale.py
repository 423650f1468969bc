"""The um/px that the manifest states. No pixel depends on it, so it is not in any identity, but results state it.

The um/px of a view is another one: it follows from the side of the tile's image before it was resized. Where a recipe
measures boundaries in um, extract records the sides of the test tiles in the mask cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmcache.cache.header import Header, read_header
from fmcache.demand import Demand
from fmcache.errors import CacheMismatch, CacheNotFound, SpecError
from fmcache.identity import differences
from fmcache.manifest import AnyDataset, FileDataset, TileEntry
from fmcache.specs import Recipe
from fmcache.stages.identities import Hashes

SIDES = "sides_px"
"""The field of a mask cache's `about` that holds sides (px) by the sha256 of the tile's image."""


def scale_of(dataset: AnyDataset) -> dict[str, Any]:
    """Return the um/px of a dataset's files (`mpp`; None: unknown) and for encoders (`view_mpp`; None: any)."""
    return {"mpp": dataset.mpp, "view_mpp": dataset.view_mpp if isinstance(dataset, FileDataset) else None}


def is_recorded(path: Path, dataset: AnyDataset) -> bool:
    """Return whether the mask cache at `path` records the um/px that the dataset states; True if there is no cache."""
    try:
        return differences(scale_of(dataset), _recorded(read_header(path), dataset)) == []
    except CacheNotFound:
        return True


def check_scale(path: Path, header: Header, dataset: AnyDataset) -> None:
    """Check that a dataset still states the um/px that it stated when extract last wrote or checked its mask cache.

    A mask cache that records no um/px (written by fmcache 0.1.0) is accepted.

    Raises
    ------
    CacheMismatch
        When the um/px differ. The message names each difference.
    """
    recorded = _recorded(header, dataset)
    stated = {field: value for field, value in scale_of(dataset).items() if field in recorded}
    if lines := differences(stated, recorded):
        raise CacheMismatch(
            f"{path} was made when the manifest stated another um/px:\n    " + "\n    ".join(lines),
            next_step="restore the um/px in the manifest, or run the same fmcache extract again: it runs no encoder, "
            "and records the um/px that the manifest states now",
        )


def without_side(recipe: Recipe, demand: Demand, hashes: Hashes, path: Path) -> list[TileEntry]:
    """Return the test tiles whose side the mask cache at `path` does not record, if the recipe needs it."""
    if not (recipe.boundary_length and recipe.boundary_length[1] == "um"):
        return []
    try:
        known = read_header(path).about.get(SIDES, {})
    except CacheNotFound:
        known = {}
    tested = {tile for splits in demand.splits.values() for tile in splits.test}
    return [entry for entry in demand.entries if entry.id in tested and hashes[entry.id][0] not in known]


def sides_of(
    entries: Sequence[TileEntry], hashes: Hashes, path: Path, side: Callable[[TileEntry], int]
) -> dict[str, Any]:
    """Return what the mask cache at `path` must record: the sides that it has, and those of more tiles."""
    if not entries:
        return {}
    known = read_header(path).about.get(SIDES, {})
    return {SIDES: known | {hashes[entry.id][0]: side(entry) for entry in entries}}


def check_boundary(recipe: Recipe, demand: Demand) -> None:
    """Raise SpecError when a recipe measures boundaries in um, and the um per pixel of a dataset are unknown."""
    if recipe.boundary_length and recipe.boundary_length[1] == "um" and demand.dataset.mpp is None:
        raise SpecError(
            f"`boundary: {recipe.boundary}` needs the um per pixel of dataset {demand.name!r}; the manifest has none",
            expected="`mpp:` in the manifest, or a boundary in px",
            next_step="add `mpp:` to the dataset, or write for example `boundary: 4 px` (pixels of tile_px)",
        )


def tolerances_px(recipe: Recipe, demand: Demand, header: Header) -> dict[str, float]:
    """Return the tolerance of boundaries of each test tile, in pixels of its views; {} when the recipe counts none.

    Parameters
    ----------
    header
        Of the mask cache.

    Raises
    ------
    SpecError
        As `check_boundary`.
    CacheMismatch
        When the mask cache does not record the side of a tile.
    """
    check_boundary(recipe, demand)
    if recipe.boundary_length is None:
        return {}
    length, unit = recipe.boundary_length
    tiles = sorted({tile for splits in demand.splits.values() for tile in splits.test})
    if unit == "px":
        return dict.fromkeys(tiles, length)
    known = header.about.get(SIDES, {})
    sides = {tile: known[image] for tile, (image, _) in header.identity["tiles"].items() if image in known}
    if lacking := [tile for tile in tiles if tile not in sides]:
        raise CacheMismatch(
            f"the mask cache of {demand.name!r} does not record the size of the image of tile {lacking[0]!r}, which "
            f"`boundary: {recipe.boundary}` needs",
            next_step="run the same fmcache extract again: it runs no encoder, and records the size",
        )
    um = demand.dataset.mpp or 0.0  # checked above
    return {tile: length / (um * sides[tile] / recipe.tile_px) for tile in tiles}


def _recorded(header: Header, dataset: AnyDataset) -> dict[str, Any]:
    return {field: header.about[field] for field in scale_of(dataset) if field in header.about}
