"""What a recipe needs from a manifest: datasets, tiles by split and fold, the number of views of each, and files.

It is computed only here; extract, fit and plan use it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from fmcache.errors import SpecError
from fmcache.manifest import SPLITS, AnyDataset, FileDataset, Manifest, Splits, TileEntry
from fmcache.specs import Recipe, cache_recipes, variants

MANY_VARIANTS = 200
"""A sweep with more variants is run only if the user agrees."""


class Demand(NamedTuple):
    """What a recipe needs from one dataset.

    `splits` are the splits that it runs on, by fold (None: the fixed split); training tiles are reduced to the recipe's
    subset. `views` are the numbers of views by tile id, in the order of the manifest. A tile that any split trains on
    has the untouched view and as many views as the recipe counts (in a sweep: the largest count of the variants that
    train on it). Any other tile has the untouched view only.
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
    """Return what a recipe needs from one dataset; raises the errors of `demands`.

    For a sweep this is what all its variants need jointly: a split trains on the tiles of all its subsets.
    """
    counts: dict[tuple[bool, int], int] = {}
    for one in variants(recipe):
        # view i does not depend on the number of views: the largest number includes the views of all smaller ones
        counts[one.folds, one.subset] = max(one.views.count, counts.get((one.folds, one.subset), 0))
    joint: dict[int | None, Splits] = {}
    views: dict[str, int] = {}
    for (folds, subset), count in counts.items():
        one = msgspec.structs.replace(recipe, folds=folds, subset=subset)
        for fold, splits in splits_of(one, name, dataset).items():
            earlier = joint[fold].train if fold in joint else ()
            joint[fold] = Splits(tuple(dict.fromkeys((*earlier, *splits.train))), splits.val, splits.test)
            for tile in tiles_of(splits):
                views[tile] = max(views.get(tile, 1), count + 1 if tile in splits.train else 1)
    return Demand(name, dataset, joint, {tile.id: views[tile.id] for tile in dataset.tiles if tile.id in views})


def steps_of(recipe: Recipe, splits: Splits) -> int:
    """Return the number of steps of a run."""
    fit = recipe.fit
    return -(-len(splits.train) * fit.passes_per_epoch // fit.batch) * fit.epochs


def check_sweep(recipe: Recipe, manifest: Manifest, yes: bool) -> str:
    """Return how much work the sweep of a recipe is, as a line of text; '' without a sweep.

    Raises
    ------
    SpecError
        When there are more than `MANY_VARIANTS` and the user did not agree (`yes`).
    """
    if not recipe.sweep:
        return ""
    swept = variants(recipe)
    line = _forecast(recipe, swept, manifest)
    if len(swept) > MANY_VARIANTS and not yes:
        raise SpecError(
            f"the sweep of recipe {recipe.name!r} has {len(swept):,} variants",
            expected=f"at most {MANY_VARIANTS}, or --yes",
            found=line,
            next_step="list fewer values, or repeat the command with --yes; fmcache plan RECIPE estimates the cost",
        )
    return line


def _forecast(recipe: Recipe, swept: Sequence[Recipe], manifest: Manifest) -> str:
    datasets = {name: manifest.dataset(name) for name in recipe.datasets or (manifest.default,)}
    encoders = len(recipe.encoders) or 1
    runs, total, steps = [], 0, set()
    for one in swept:
        each = [
            steps_of(one, splits)
            for name, dataset in datasets.items()
            for splits in splits_of(one, name, dataset).values()
        ]
        decoders = encoders * len(one.taps_of_decoders) * one.fit.seeds
        runs.append(decoders * len(each))
        total += decoders * sum(each)
        steps |= set(each)
    n_caches = len(cache_recipes(recipe))
    fields = ", ".join(f"{field} ({len(values)})" for field, values in recipe.sweep.items())
    whose = "" if recipe.encoders else " for each encoder"
    return (
        f"sweep: {fields}: {len(swept):,} variants x {_span(runs)} runs{whose} = {sum(runs):,} runs of "
        f"{_span(steps)} steps, {total:,} steps in all; {n_caches} set{'s' * (n_caches > 1)} of caches"
    )


def _span(numbers: Collection[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def tiles_of(splits: Splits) -> set[str]:
    """Return the ids of all tiles of train, val and test."""
    return {tile for split in SPLITS for tile in splits.of(split)}


def all_tiles(splits: Iterable[Splits]) -> list[str]:
    """Return the ids of all tiles in any of several splits, sorted."""
    return sorted(set().union(*(tiles_of(one) for one in splits)))


def splits_of(recipe: Recipe, name: str, dataset: AnyDataset) -> dict[int | None, Splits]:
    """Return the splits of a recipe without a sweep, by fold; raises the errors of `demands`."""
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
