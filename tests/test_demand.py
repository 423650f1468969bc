"""What a recipe asks of a manifest, on a small one where it can be counted by hand."""

import msgspec
import pytest
import yaml

from fmcache.demand import all_tiles, demand_of, demands, tiles_of
from fmcache.errors import ManifestError, SpecError
from fmcache.manifest import Manifest
from fmcache.specs import Recipe, Sweep, ViewSpec

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
    (demand,) = demands(change(sweep=Sweep(views=(1, 2, 9))), manifest)
    assert demand.views["t0"] == 10


def test_a_recipe_without_datasets_asks_for_the_default_and_one_that_is_not_there_is_named(manifest):
    assert [demand.name for demand in demands(change(datasets=()), manifest)] == ["other"]
    with pytest.raises(ManifestError, match="nowhere"):
        demands(change(datasets=("nowhere",)), manifest)


def test_folds_of_a_dataset_without_any_are_refused_with_the_way_to_make_them(manifest):
    bare = msgspec.structs.replace(manifest.dataset("d"), folds=())
    with pytest.raises(SpecError, match="lists none") as error:
        demand_of(change(folds=True), "d", bare)
    assert error.value.next_step.startswith("fmcache data split d --folds")
