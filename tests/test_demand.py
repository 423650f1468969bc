"""What a recipe asks of a manifest, on a small one where it can be counted by hand."""

import msgspec
import pytest
import yaml

import fmcache.demand as demand_module
from fmcache.decoders.batches import steps_per_epoch
from fmcache.demand import all_tiles, check_sweep, demand_of, demands, steps_of, tiles_of
from fmcache.errors import ManifestError, SpecError
from fmcache.manifest import Manifest, Splits
from fmcache.specs import FitSpec, Recipe, ViewSpec

LABELS = [{"name": "a", "colour": "#ff0000"}, {"name": "b", "colour": "#00ff00"}, {"name": "c", "colour": "#0000ff"}]
SPLITS = {"train": ["t1", "t0"], "val": ["t2"], "test": ["t3"], "subsets": [["t1"]]}
FOLDS = [SPLITS | {"subsets": []}, {"train": ["t2", "t3"], "val": ["t0"], "test": ["t1"]}]
RECIPE = Recipe(views=ViewSpec(count=4), datasets=("d",))


def change(**fields):
    return msgspec.structs.replace(RECIPE, **fields)


@pytest.fixture
def manifest(tmp_path):
    demo = {
        "format": "demo", "seed": 1, "size_px": 64, "labels": LABELS, "tiles": [{"id": f"t{i}"} for i in range(5)],
        "splits": SPLITS, "folds": FOLDS,
    }  # fmt: skip
    path = tmp_path / "data_manifest.yaml"
    path.write_text(yaml.safe_dump({"format": 1, "default": "other", "datasets": {"d": demo, "other": demo}}))
    return Manifest(path)


def test_training_tiles_get_all_views_others_one_and_tiles_in_no_split_none(manifest):
    (demand,) = demands(RECIPE, manifest)
    assert demand.views == {"t0": 5, "t1": 5, "t2": 1, "t3": 1}  # in the order of the manifest
    assert [entry.id for entry in demand.entries] == ["t0", "t1", "t2", "t3"]
    assert list(demand.splits) == [None]
    assert demand.listed_hashes == {}  # drawn tiles have no files


def test_folds_ask_for_all_views_of_whatever_trains_in_any_of_them(manifest):
    (demand,) = demands(change(folds=True), manifest)
    assert demand.views == dict.fromkeys(("t0", "t1", "t2", "t3"), 5)
    assert list(demand.splits) == [0, 1]
    assert all_tiles(demand.splits.values()) == ["t0", "t1", "t2", "t3"]


def test_a_subset_trains_on_its_tiles_alone(manifest):
    (demand,) = demands(change(subset=1), manifest)
    assert demand.views == {"t1": 5, "t2": 1, "t3": 1}
    assert tiles_of(demand.splits[None]) == {"t1", "t2", "t3"}
    with pytest.raises(SpecError, match="no subset of 2 training tiles in the fixed split"):
        demands(change(subset=2), manifest)


def test_a_sweep_asks_for_the_most_views_of_its_values(manifest):
    (demand,) = demands(change(sweep={"views.count": (1, 9, 2)}), manifest)
    assert demand.views["t0"] == 10


def test_a_sweep_over_subsets_and_folds_asks_for_what_all_variants_need(manifest):
    (demand,) = demands(change(sweep={"subset": (1, 0), "views.count": (2, 4)}), manifest)
    assert demand == demands(RECIPE, manifest)[0]._replace(splits=demand.splits)
    assert set(demand.splits[None].train) == {"t0", "t1"}
    (both,) = demands(change(sweep={"folds": (True, False)}), manifest)
    assert list(both.splits) == [0, 1, None]
    assert both.views == dict.fromkeys(("t0", "t1", "t2", "t3"), 5)


def test_a_subset_trains_fewer_tiles_with_all_views_than_the_sweep_that_includes_it(manifest):
    # t1 is in both; t0 only in the whole set, which has fewer views here than the recipe counts
    (small,) = demands(change(sweep={"subset": (1,)}), manifest)
    assert small.views == {"t1": 5, "t2": 1, "t3": 1}


def test_the_work_of_a_sweep_is_told_and_many_variants_need_a_yes(manifest, monkeypatch):
    recipe = change(
        encoders=("a", "b"), fit=FitSpec(seeds=3, epochs=10, batch=2),
        sweep={"subset": (1, 0), "fit.passes_per_epoch": (1, 3)},
    )  # fmt: skip
    # 2 encoders x 3 seeds; steps: one tile 1 or 2 batches, two tiles 1 or 3 batches, in 10 epochs
    line = check_sweep(recipe, manifest, yes=False)
    assert line.startswith(
        "sweep: subset (2), fit.passes_per_epoch (2): 4 variants x 6 runs = 24 runs of 10 to 30 steps"
    )
    assert f"{6 * (10 + 20 + 10 + 30)} steps in all; 1 set of caches" in line
    assert check_sweep(RECIPE, manifest, yes=False) == ""
    monkeypatch.setattr(demand_module, "MANY_VARIANTS", 3)
    assert check_sweep(recipe, manifest, yes=True) == line
    with pytest.raises(SpecError, match="4 variants") as error:
        check_sweep(recipe, manifest, yes=False)
    assert error.value.found == line
    assert "--yes" in error.value.next_step


def test_ten_thousand_variants_are_forecast_and_refused_quickly(manifest):
    recipe = change(sweep={"fit.epochs": tuple(range(1, 101)), "decoder.width": tuple(range(1, 101))})
    with pytest.raises(SpecError, match="10,000 variants") as error:
        check_sweep(recipe, manifest, yes=False)
    assert "10,000 variants x 10 runs for each encoder = 100,000 runs" in error.value.found


def test_steps_are_those_of_training():
    splits = Splits(train=("a", "b", "c"), val=(), test=())
    recipe = Recipe(fit=FitSpec(batch=4, passes_per_epoch=3, epochs=7))
    assert steps_of(recipe, splits) == 7 * steps_per_epoch(3, recipe.fit) == 21


def test_a_recipe_without_datasets_asks_for_the_default_and_one_that_is_not_there_is_named(manifest):
    assert [demand.name for demand in demands(change(datasets=()), manifest)] == ["other"]
    with pytest.raises(ManifestError, match="nowhere"):
        demands(change(datasets=("nowhere",)), manifest)


def test_folds_of_a_dataset_without_any_are_refused_with_the_way_to_make_them(manifest):
    bare = msgspec.structs.replace(manifest.dataset("d"), folds=())
    with pytest.raises(SpecError, match="lists none") as error:
        demand_of(change(folds=True), "d", bare)
    assert error.value.next_step.startswith("fmcache data split d --folds")
