"""Labels that are not there: tiles, splits and folds without one, from annotated tiles to the results table."""

import json

import msgspec
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fmcache.cache.reader import Cache, open_cache
from fmcache.cache.verify import verify_cache
from fmcache.cli import app
from fmcache.datasets.add import add
from fmcache.errors import ManifestError
from fmcache.manifest import Manifest, Splits
from fmcache.scores.run_files import find_runs, read_run
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.stages.labelled import label_notes

SIDE = 40
SPLITS = {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]}
RECIPE = Recipe(
    name="toy",
    encoders=("raw-pixels",),
    tile_px=SIDE,
    views=ViewSpec(count=2),
    decoder=DecoderSpec(width=4),
    fit=FitSpec(seeds=1, epochs=1),
)


def mask(*labels, ignored=False):
    """Label 0 and, in a stripe each, the labels given; or no label at all."""
    values = np.full((SIDE, SIDE), 255 if ignored else 0, "uint8")
    for i, label in enumerate(labels):
        values[8 * i : 8 * i + 8] = label
    return values


BOTH, EMPTY = mask(1, 2), mask(ignored=True)


@pytest.fixture
def listed(tmp_path):
    """List tiles with the masks given as dataset `toy`, in the splits given."""

    def make(masks, splits=SPLITS, folds=()):
        rng = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        for i, values in enumerate(masks):
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3)).astype("uint8")).save(tmp_path / f"images/t{i}.png")
            Image.fromarray(values).save(tmp_path / f"masks/t{i}.png")
        path, sizes = tmp_path / "data_manifest.yaml", "/".join(str(len(tiles)) for tiles in splits.values())
        folders = (tmp_path / "images", tmp_path / "masks")
        add(
            path, "toy", *folders, labels="other=0,a=1,b=2", ignore="255", mpp=0.5, groups="", split=sizes, seed=0,
            replace=path.exists(),
        )  # fmt: skip
        return resplit(path, splits, folds)

    return make


def resplit(path, splits, folds=()):
    document = yaml.safe_load(path.read_text())
    document["datasets"]["toy"] |= {"splits": splits} | ({"folds": list(folds)} if folds else {})
    path.write_text(yaml.safe_dump(document))
    return Manifest(path)


def flags(work):
    return Flags(work, device="cpu", threads=1)


def quiet(_):
    pass


def change(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


def test_views_that_turn_every_label_out_of_sight_are_stored_and_trained_on(tmp_path, listed):
    sparse = mask(ignored=True)
    sparse[:2, :2] = 1
    manifest = listed([sparse, BOTH, BOTH, BOTH])
    recipe = change(RECIPE, views=ViewSpec(count=10))
    assert extract(recipe, manifest, flags(tmp_path), quiet) == fit(recipe, manifest, flags(tmp_path), quiet) == []
    path = places.mask_cache_path(tmp_path, "toy", recipe)
    views = open_cache(path, "view_bank", {}).read("t0", 0, 11)
    assert (views == 255).all(axis=(1, 2)).any()
    assert verify_cache(path, lambda _: None).problems == []


def test_a_training_tile_that_is_all_ignored_trains_and_is_told(tmp_path, listed):
    manifest, lines = listed([EMPTY, BOTH, BOTH, BOTH]), []
    assert extract(RECIPE, manifest, flags(tmp_path), quiet) == []
    assert fit(RECIPE, manifest, flags(tmp_path), lines.append) == []
    assert lines[0] == "toy: tiles without a labelled pixel, of no use for training or scores: t0 (train)"
    assert len(find_runs(places.results(tmp_path), "toy")) == 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_a_labelled_pixel_is_refused_before_an_encoder_runs(tmp_path, listed, split):
    manifest, lines = listed([EMPTY if f"t{i}" in SPLITS[split] else BOTH for i in range(4)]), []
    with pytest.raises(ManifestError, match=f"toy: {split} has no labelled pixel") as refused:
        extract(RECIPE, manifest, flags(tmp_path), lines.append)
    assert refused.value.found == f"all pixels are ignored in {', '.join(SPLITS[split])}"
    assert not any("Raw pixels" in line for line in lines)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_a_labelled_pixel_is_refused_before_anything_is_trained(tmp_path, listed, split):
    manifest = listed([EMPTY, BOTH, BOTH, BOTH])
    assert extract(RECIPE, manifest, flags(tmp_path), quiet) == []
    changed = resplit(manifest.path, {"train": ["t1"], "val": ["t2"], "test": ["t3"]} | {split: ["t0"]})
    with pytest.raises(ManifestError, match=f"toy: {split} has no labelled pixel"):
        fit(RECIPE, changed, flags(tmp_path), quiet)
    assert find_runs(places.results(tmp_path), "toy") == []


def test_the_way_out_of_a_split_without_a_label_works_when_typed(tmp_path, listed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = listed([EMPTY, BOTH, BOTH, BOTH], {"train": ["t1", "t2"], "val": ["t0"], "test": ["t3"]})
    with pytest.raises(ManifestError) as refused:
        extract(RECIPE, manifest, flags(tmp_path), quiet)
    command = refused.value.next_step.partition("or run fmcache ")[2].partition(";")[0]
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert extract(RECIPE, Manifest(manifest.path), flags(tmp_path), quiet) == []
    assert CliRunner().invoke(app, ["data", "check", "toy"]).exit_code == 0


def test_a_fold_without_a_labelled_pixel_is_named(tmp_path, listed):
    folds = [
        {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]},
        {"train": ["t3", "t2"], "val": ["t1"], "test": ["t0"]},
    ]
    manifest = listed([EMPTY, BOTH, BOTH, BOTH], folds=folds)
    with pytest.raises(ManifestError, match="toy, fold 1: test has no labelled pixel"):
        extract(change(RECIPE, folds=True), manifest, flags(tmp_path), quiet)


def only_part(work, study="toy"):
    (folder,) = find_runs(places.results(work), study)
    return folder, read_run(folder).record


def test_labels_that_splits_lack_are_told_in_one_line_and_pixels_are_recorded(tmp_path, listed):
    manifest, lines = listed([mask(1), BOTH, mask(1), mask(2)]), []
    extract(RECIPE, manifest, flags(tmp_path), quiet)
    fit(RECIPE, manifest, flags(tmp_path), lines.append)
    over = "a mean over 2 of 3 labels; a lacking label counts as 0 if it is predicted"
    assert lines[0] == f"toy: val lacks 'b' (weights are chosen by {over}); test lacks 'a' (test Dice is {over})"
    stripe, whole = 8 * SIDE, SIDE**2
    _, record = only_part(tmp_path)
    assert record.label_pixels == {
        "train": (2 * whole - 3 * stripe, 2 * stripe, stripe),
        "val": (whole - stripe, stripe, 0),
        "test": (whole - stripe, 0, stripe),
    }


def test_a_label_that_training_lacks_cannot_be_learnt_and_a_full_set_is_no_news(tmp_path, listed):
    lines = []
    for masks in ([mask(1), mask(1), BOTH, BOTH], [BOTH] * 4):
        manifest = listed(masks)
        work = tmp_path / f"w{len(lines)}"
        extract(RECIPE, manifest, flags(work), quiet)
        fit(RECIPE, manifest, flags(work), lines.append)
    assert [line for line in lines if "lacks" in line] == ["toy: train lacks 'b' (the decoder cannot learn it)"]


def test_results_without_label_pixels_are_read_and_not_made_again(tmp_path, listed):
    manifest, lines = listed([BOTH] * 4), []
    extract(RECIPE, manifest, flags(tmp_path), quiet)
    fit(RECIPE, manifest, flags(tmp_path), quiet)
    folder, record = only_part(tmp_path)
    fields = json.loads((folder / "run.json").read_text())
    for later in ("label_pixels", "files", "sha256"):
        del fields[later]
    (folder / "run.json").write_text(json.dumps(fields | {"format": 1}))
    fit(RECIPE, manifest, flags(tmp_path), lines.append)
    assert "0 of 1 runs to do" in lines[0]
    assert only_part(tmp_path)[1].label_pixels == {}
    assert only_part(tmp_path)[1].fingerprint == record.fingerprint
    assert "label_pixels" not in record.identity


def test_a_grid_that_crops_counts_what_it_covers(tmp_path, listed):
    rim = mask(1)
    rim[32:] = 2
    manifest, lines = listed([BOTH, BOTH, BOTH, rim]), []
    recipe = change(RECIPE, grid="crop")  # patches of 16: 32 of 40 px
    extract(recipe, manifest, flags(tmp_path), quiet)
    fit(recipe, manifest, flags(tmp_path), lines.append)
    assert lines[0].startswith("toy, in the 32 x 32 px that Raw pixels covers: test lacks 'b'")
    _, record = only_part(tmp_path)
    assert record.label_pixels["test"] == (24 * 32, 8 * 32, 0)
    counts = read_run(only_part(tmp_path)[0]).counts.filter(split="test")
    assert (counts["tp"] + counts["fn"]).to_list() == [24 * 32, 8 * 32, 0]  # what is recorded is what was scored


def test_untouched_tiles_are_counted_once_for_all_encoders_and_told_once_for_all_variants(
    tmp_path, listed, monkeypatch
):
    manifest, lines, reads = listed([BOTH, BOTH, mask(1), BOTH]), [], []
    recipe = change(RECIPE, encoders=("raw-pixels", "colour-texture"), sweep={"views.count": (1, 2)})
    extract(recipe, manifest, flags(tmp_path), quiet)
    read = Cache.read
    monkeypatch.setattr(Cache, "read", lambda self, *at: reads.append(at) or read(self, *at))
    fit(recipe, manifest, flags(tmp_path), lines.append)
    assert sum("lacks" in line for line in lines) == 1
    assert reads == [(f"t{i}", 0, 1) for i in range(4)] * 2  # per variant


def test_the_challenges_score_leaves_the_background_out_and_counts_what_is_lacking_as_0():
    pixels = {"t0": np.array([5, 5, 5]), "t1": np.array([0, 5, 5]), "t2": np.array([5, 0, 5])}
    splits = Splits(("t0",), ("t1",), ("t2",))
    labels = ("background", "a", "b")
    assert label_notes("x", splits, pixels, labels, "puma") == [
        "x: test lacks 'a' (test Dice is a mean over 2 labels, and a lacking label counts as 0)"
    ]
