"""The identities of both kinds of cache (cache/FORMAT.md, section 4), written by stage one, expected by two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fmcache.cache.format import FORMAT_VERSION
from fmcache.errors import SpecError
from fmcache.manifest import SPLITS, AnyDataset, FileDataset, GeojsonDataset, Splits
from fmcache.specs import Precision, Recipe, ViewSpec
from fmcache.strict import builtins

Hashes = Mapping[str, tuple[str, str]]
"""(image, mask) sha256 by tile id."""


def chosen_splits(recipe: Recipe, name: str, dataset: AnyDataset) -> dict[int | None, Splits]:
    """Return the splits a recipe runs on, by fold (None: the fixed split), training tiles cut to the recipe's subset.

    Raises
    ------
    SpecError
        When the dataset lists no folds, or no subset of that many training tiles.
    """
    if recipe.folds and not dataset.folds:
        raise SpecError(
            f"recipe {recipe.name!r} asks for folds, and dataset {name!r} lists none",
            next_step=f"fmcache data split {name} --folds 5, or leave `folds` out of the recipe",
        )
    by_fold: dict[int | None, Splits] = dict(enumerate(dataset.folds)) if recipe.folds else {None: dataset.splits}
    return {fold: _cut(splits, recipe.subset, name, fold) for fold, splits in by_fold.items()}


def _cut(splits: Splits, size: int, name: str, fold: int | None) -> Splits:
    train = next((subset for subset in splits.subsets if len(subset) == size), None) if size else splits.train
    if train is None:
        where = "the fixed split" if fold is None else f"fold {fold}"
        raise SpecError(
            f"dataset {name!r} lists no subset of {size} training tiles in {where}",
            expected=" or ".join(str(len(subset)) for subset in splits.subsets) or "subsets in the manifest",
            found=f"subset: {size} in the recipe",
            next_step=f"fmcache data split {name} --subsets {size}" + ("" if fold is None else " --folds K"),
        )
    return Splits(train, splits.val, splits.test)


def tiles_of(splits: Splits) -> set[str]:
    """Return the ids of all tiles in a split."""
    return {tile for split in SPLITS for tile in splits.of(split)}


def used_tiles(dataset: AnyDataset, chosen: Iterable[Splits]) -> list[str]:
    """Return the ids of all tiles that are in any of the chosen splits, in the order of the manifest."""
    used = set().union(*(tiles_of(splits) for splits in chosen))
    return [tile.id for tile in dataset.tiles if tile.id in used]


def views_wanted(dataset: AnyDataset, chosen: Iterable[Splits], count: int) -> dict[str, int]:
    """Return the number of views of each tile: `count` + 1 of those trained on in any of the chosen splits, else 1."""
    chosen = tuple(chosen)
    trained = {tile for splits in chosen for tile in splits.train}
    return {tile: count + 1 if tile in trained else 1 for tile in used_tiles(dataset, chosen)}


def listed_hashes(dataset: AnyDataset, tiles: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the hashes that the manifest lists for tiles; none for drawn tiles."""
    if not isinstance(dataset, FileDataset):
        return {}
    entries = {tile.id: tile for tile in dataset.tiles}
    return {id_: (entries[id_].image_sha256, entries[id_].mask_sha256) for id_ in tiles}


def bank_identity(recipe: Recipe, name: str, dataset: AnyDataset, hashes: Hashes) -> dict[str, Any]:
    """Return the identity of a view bank that holds the tiles of `hashes`."""
    ignored = dataset.ignore_values if isinstance(dataset, FileDataset) else ()
    drawn: dict[str, Any] = {}
    if isinstance(dataset, GeojsonDataset):
        # what is not given is left out, so that banks of before it could be are still the same
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
"""What of a card is in the identity of an encoder's cache."""


def with_encoder(
    identity: dict[str, Any],
    card: dict[str, Any],
    weights_sha256: str,
    random_weights: bool,
    precision: Precision,
) -> dict[str, Any]:
    """Return the whole identity of an encoder's cache: `identity` with the card, its weights and the precision."""
    encoder = {field: card[field] for field in CARD_FIELDS}
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
