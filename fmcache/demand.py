"""What a recipe needs from a manifest: datasets, tiles by split and fold, the number of views of each, and files.

It is computed only here; extract, fit and plan use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fmcache.errors import SpecError
from fmcache.manifest import SPLITS, AnyDataset, FileDataset, Manifest, Splits, TileEntry
from fmcache.specs import Recipe, variants


class Demand(NamedTuple):
    """What a recipe needs from one dataset.

    `splits` are the splits that it runs on, by fold (None: the fixed split); training tiles are reduced to the recipe's
    subset. `views` are the numbers of views by tile id, in the order of the manifest. A tile that any split trains on
    has the untouched view and as many views as the recipe counts (in a sweep: the largest count). Any other tile has
    the untouched view only.
    """

    name: str
    dataset: AnyDataset
    splits: dict[int | None, Splits]
    views: dict[str, int]

    @property
    def entries(self) -> list[TileEntry]:
        """The manifest's entries of the tiles."""
        return [tile for tile in self.dataset.tiles if tile.id in self.views]

    @property
    def listed_hashes(self) -> dict[str, tuple[str, str]]:
        """(image, mask) sha256 by tile id, as the manifest lists them; none for drawn tiles."""
        if not isinstance(self.dataset, FileDataset):
            return {}
        return {tile.id: (tile.image_sha256, tile.mask_sha256) for tile in self.entries}


def demands(recipe: Recipe, manifest: Manifest) -> list[Demand]:
    """Return what a recipe needs from each of its datasets (from the manifest's default if it names none).

    Raises
    ------
    ManifestError
        When the manifest has no such dataset.
    SpecError
        When the recipe asks for folds or for a subset of n training tiles, and a dataset lists none.
    """
    return [demand_of(recipe, name, manifest.dataset(name)) for name in recipe.datasets or (manifest.default,)]


def demand_of(recipe: Recipe, name: str, dataset: AnyDataset) -> Demand:
    """Return what a recipe needs from one dataset; raises the errors of `demands`."""
    # view i does not depend on the number of views: the largest number includes the views of all smaller ones
    count = max(variant.views.count for variant in variants(recipe))
    splits = _splits(recipe, name, dataset)
    used = set().union(*(tiles_of(one) for one in splits.values()))
    trained = {tile for one in splits.values() for tile in one.train}
    views = {tile.id: count + 1 if tile.id in trained else 1 for tile in dataset.tiles if tile.id in used}
    return Demand(name, dataset, splits, views)


def tiles_of(splits: Splits) -> set[str]:
    """Return the ids of all tiles of train, val and test."""
    return {tile for split in SPLITS for tile in splits.of(split)}


def all_tiles(splits: Iterable[Splits]) -> list[str]:
    """Return the ids of all tiles in any of several splits, sorted."""
    return sorted(set().union(*(tiles_of(one) for one in splits)))


def _splits(recipe: Recipe, name: str, dataset: AnyDataset) -> dict[int | None, Splits]:
    if recipe.folds and not dataset.folds:
        raise SpecError(
            f"recipe {recipe.name!r} asks for folds, but dataset {name!r} lists none",
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
