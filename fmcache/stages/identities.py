"""The identities of both kinds of cache (cache/FORMAT.md, section 4). Stage one writes them; stage two expects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fmcache.cache.header import FORMAT_VERSION
from fmcache.manifest import AnyDataset, FileDataset, GeojsonDataset
from fmcache.specs import Precision, Recipe, ViewSpec
from fmcache.strict import builtins

Hashes = Mapping[str, tuple[str, str]]
"""(image, mask) sha256 by tile id."""


def mask_identity(recipe: Recipe, name: str, dataset: AnyDataset, hashes: Hashes) -> dict[str, Any]:
    """Return the identity of a mask cache that holds the tiles of `hashes`."""
    ignored = dataset.ignore_values if isinstance(dataset, FileDataset) else ()
    drawn: dict[str, Any] = {}
    if isinstance(dataset, GeojsonDataset):
        # empty fields are left out, so the identity of mask caches from before these fields existed does not change
        later = {
            "skip": sorted(dataset.skip),
            "objects": sorted(dataset.objects),
            "class_property": dataset.class_property,
        }
        drawn = {"order": list(dataset.order), "fill": dataset.fill} | {k: v for k, v in later.items() if v}
    return {
        "format": FORMAT_VERSION,
        "kind": "view_bank",
        "dataset": name,
        "tiles": {tile: list(pair) for tile, pair in hashes.items()},
        "tile_px": recipe.tile_px,
        "views": view_identity(recipe.views, masks=True),
        "labels": [{"name": label.name, "values": builtins(label.values)} for label in dataset.labels],
        "ignore_values": builtins(ignored),
    } | drawn


def tokens_identity(recipe: Recipe, name: str, hashes: Hashes, tap: str) -> dict[str, Any]:
    """Return the part of an encoder's cache identity that stage two can know: without `encoder`.

    `precision` is included only if the recipe chooses one (not "published").
    """
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


CARD_FIELDS: tuple[str, ...] = (
    "name",
    "kind",
    "architecture",
    "arguments",
    "patch",
    "width",
    "prefix_tokens",
    "mean",
    "std",
)
"""The fields of a card that are part of the identity of an encoder's cache."""


def with_encoder(
    identity: dict[str, Any],
    card: dict[str, Any],
    weights_sha256: str,
    random_weights: bool,
    precision: Precision,
) -> dict[str, Any]:
    """Return the full identity of an encoder's cache: `identity` plus the card, its weights and the precision."""
    encoder = {field: card[field] for field in CARD_FIELDS}
    encoder |= {"weights_sha256": weights_sha256, "random_weights": random_weights}
    return {**identity, "encoder": encoder, "precision": precision}


def only_tiles(identity: dict[str, Any], tiles: Iterable[str]) -> dict[str, Any]:
    """Return an identity reduced to some tiles. So adding tiles to a cache later does not change a run's identity."""
    return {
        **identity,
        "tiles": {tile: identity["tiles"][tile] for tile in tiles if tile in identity["tiles"]},
    }


def view_identity(views: ViewSpec, masks: bool) -> dict[str, object]:
    """Return the fields of `views` that can change a view: all except `count`; `outside` only for masks."""
    return {k: v for k, v in builtins(views).items() if k != "count" and (masks or k != "outside")}
