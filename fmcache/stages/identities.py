"""The identities of both kinds of cache (cache/FORMAT.md, section 4), written by stage one, expected by two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fmcache.cache.format import FORMAT_VERSION
from fmcache.manifest import AnyDataset, FolderDataset
from fmcache.specs import Precision, Recipe, ViewSpec
from fmcache.strict import builtins

Hashes = Mapping[str, tuple[str, str]]
"""(image, mask) sha256 by tile id."""


def used_tiles(dataset: AnyDataset) -> list[str]:
    """Return the ids of all tiles that are in a split, in the order of the manifest."""
    used = {*dataset.splits.train, *dataset.splits.val, *dataset.splits.test}
    return [tile.id for tile in dataset.tiles if tile.id in used]


def views_wanted(dataset: AnyDataset, count: int) -> dict[str, int]:
    """Return the number of views of each tile in a split: `count` + 1 to train on, 1 to validate and test."""
    return {tile: count + 1 if tile in dataset.splits.train else 1 for tile in used_tiles(dataset)}


def listed_hashes(dataset: AnyDataset) -> dict[str, tuple[str, str]]:
    """Return the hashes that the manifest lists for the tiles in use; none for drawn tiles."""
    if not isinstance(dataset, FolderDataset):
        return {}
    entries = {tile.id: tile for tile in dataset.tiles}
    return {id_: (entries[id_].image_sha256, entries[id_].mask_sha256) for id_ in used_tiles(dataset)}


def bank_identity(recipe: Recipe, name: str, dataset: AnyDataset, hashes: Hashes) -> dict[str, Any]:
    """Return the identity of a view bank that holds the tiles of `hashes`."""
    ignored = dataset.ignore_values if isinstance(dataset, FolderDataset) else ()
    return {
        "format": FORMAT_VERSION,
        "kind": "view_bank",
        "dataset": name,
        "tiles": {tile: list(pair) for tile, pair in hashes.items()},
        "tile_px": recipe.tile_px,
        "views": view_identity(recipe.views, masks=True),
        "labels": [{"name": label.name, "values": builtins(label.values)} for label in dataset.labels],
        "ignore_values": builtins(ignored),
    }


def tokens_identity(recipe: Recipe, name: str, hashes: Hashes, tap: str) -> dict[str, Any]:
    """Return the identity of an encoder's cache as far as stage two can know it: without `encoder` and `precision`."""
    return {
        "format": FORMAT_VERSION,
        "kind": "tokens",
        "dataset": name,
        "tiles": {tile: image for tile, (image, _) in hashes.items()},
        "tile_px": recipe.tile_px,
        "views": view_identity(recipe.views, masks=False),
        "tap": tap,
        "grid": recipe.grid,
        "store": recipe.store,
    } | ({} if recipe.precision == "published" else {"precision": recipe.precision})


def with_encoder(
    identity: dict[str, Any],
    card: dict[str, Any],
    weights_sha256: str,
    random_weights: bool,
    precision: Precision,
) -> dict[str, Any]:
    """Return the whole identity of an encoder's cache: `identity` with the card, its weights and the precision."""
    fields = ("name", "kind", "architecture", "arguments", "patch", "width", "prefix_tokens", "mean", "std")
    encoder = {field: card[field] for field in fields}
    encoder |= {"weights_sha256": weights_sha256, "random_weights": random_weights}
    return {**identity, "encoder": encoder, "precision": precision}


def only_tiles(identity: dict[str, Any], tiles: Iterable[str]) -> dict[str, Any]:
    """Return an identity of which only some tiles are kept: adding tiles to a cache later does not change a run."""
    return {
        **identity,
        "tiles": {tile: identity["tiles"][tile] for tile in tiles if tile in identity["tiles"]},
    }


def view_identity(views: ViewSpec, masks: bool) -> dict[str, object]:
    """Return what of a view recipe can change a view: never how many there are; `outside` for masks only."""
    return {k: v for k, v in builtins(views).items() if k != "count" and (masks or k != "outside")}
