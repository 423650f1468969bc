"""From the runs of a study to maps of slides: which run, which map, what is kept, what is refused."""

import csv
import json
import os
import shutil

import cv2
import msgspec
import numpy as np
import pytest
import zarr
from PIL import Image

import fmcache
from fmcache.encoders.load import load_encoder
from fmcache.errors import NoRoom, ResultsMismatch, ResultsNotFound, SpecError, TileError, WeightsMismatch
from fmcache.maps.contract import MapOptions
from fmcache.scores import run_files
from fmcache.scores.kept_pictures import TILES as PICTURES
from fmcache.scores.predictions import read_predictions
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import places, predict
from fmcache.stages.export import export
from fmcache.stages.exported_run import Wanted
from fmcache.stages.flags import Flags
from fmcache.stages.predict_request import PredictRequest
from fmcache.stages.run_choice import RunQuery, choose_runs, tile_mpp

SIDE, MPP = 32, 0.75
TILES = "abcdefgh"
SEEDS = 3


def draw(folder, names=TILES, side=48):
    """Draw tiles of 48 px with blobs of two colours, and their masks."""
    rng = np.random.default_rng(3)
    for name in names:
        blobs = cv2.resize(rng.random((6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC) > 0.5
        image = np.where(blobs[..., None], (200, 90, 120), (120, 90, 200)) + rng.integers(-50, 50, (side, side, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(blobs.astype(np.uint8)).save(folder / "masks" / f"{name}.png")


@pytest.fixture(scope="module")
def fitted(make_study, tmp_path_factory):
    """Three seeds on tiles of 48 px that are resized to 32 px: 0.5 um/px become 0.75."""
    study = make_study(tmp_path_factory.mktemp("fitted"))
    draw(study.folder)
    study.add(replace=True)
    recipe = Recipe(
        name="toy", encoders=("colour-texture",), tile_px=SIDE, views=ViewSpec(count=2), decoder=DecoderSpec(width=8),
        fit=FitSpec(seeds=SEEDS, epochs=8, batch=2, validate_epochs=4, learning_rate=0.02, standardise="channel"),
    )  # fmt: skip
    study = study._replace(recipe=recipe)
    study.extract()
    study.fit()
    return study


def run_of(study, seed=0):
    return run_files.run_folder(places.results(study.work), "toy", "toy", "colour-texture", seed)


def small(study, name):
    tile = np.asarray(Image.open(study.folder / "images" / f"{name}.png"))
    return cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


@pytest.fixture
def slide(fitted, tmp_path):
    """A picture of all tiles, side by side in two rows of four."""
    rows = [np.concatenate([small(fitted, name) for name in names], axis=1) for names in (TILES[:4], TILES[4:])]
    Image.fromarray(np.concatenate(rows)).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def predicted(study, slides, flags=(), **fields):
    lines = []
    query = fields.pop("runs", RunQuery("toy", "colour-texture", seed=0))
    into = (slides if slides.is_dir() else slides.parent) / "maps"
    request = PredictRequest(slides, query, into=into, mpp_of_slide=MPP, tissue="off", manifest=study.path)
    folder, failures = predict.predict(
        request._replace(**fields), Flags(study.work, device="cpu", threads=1, **dict(flags)), lines.append
    )
    if failures:
        raise failures[0].error
    return folder, lines


def labels_in(folder, name="slide"):
    """Return the labels of a map, (y, x); 255 is glass."""
    return np.asarray(zarr.open_group(folder / f"{name}.ome.zarr", mode="r")["labels/map/0"]) - np.uint8(1)


def test_without_overlap_the_map_is_what_fit_predicted_on_each_tile(fitted, slide):
    folder, _ = predicted(fitted, slide, overlap=0.0)
    found, kept = labels_in(folder), read_predictions(run_of(fitted))
    assert kept.tiles
    for tile, expected in zip(kept.tiles, kept.predicted, strict=True):
        row, column = divmod(TILES.index(tile), 4)
        part = found[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        assert np.array_equal(part, expected)
        assert len(set(expected.ravel())) == 2  # a collapsed run would prove nothing


def test_a_map_comes_with_regions_areas_an_overview_and_a_record(fitted, slide):
    folder, lines = predicted(fitted, slide, outputs=MapOptions(least_um2=0))
    assert {path.name for path in folder.iterdir()} == {
        "slide.geojson", "slide.areas.csv", "slide.ome.zarr", "slide.overview.png", "slide.predict.json",
    }  # fmt: skip
    found = labels_in(folder)
    assert found.shape == (2 * SIDE, 4 * SIDE)
    rows = {row["label"]: row for row in csv.DictReader((folder / "slide.areas.csv").open())}
    mm2 = next(column for column in rows["a"] if "mm2" in column)
    assert float(rows["a"][mm2]) == pytest.approx((found == 0).sum() * MPP**2 / 1e6, rel=1e-3)
    said = json.loads((folder / "slide.predict.json").read_text())
    assert said["identity"]["runs"][0]["seed"] == 0
    assert said["label_pixels"] == [int((found == label).sum()) for label in (0, 1)]
    assert any("labels, as they were trained: a, b" in line for line in lines)


def test_from_python_a_study_predicts_slides(fitted, slide):
    study = fmcache.Study(fitted.recipe, fitted.work, fitted.path, device="cpu", threads=1)
    settings = {"into": slide.parent / "maps", "mpp_of_slide": MPP, "cache_tokens": True}
    folder = study.predict(slide, "toy", "colour-texture", seed=0, **settings)
    assert labels_in(folder).shape == (2 * SIDE, 4 * SIDE)
    assert [path.name for path in (fitted.work / "cache" / "slides").rglob("*.zarr")]
    with pytest.raises(ResultsNotFound, match="uni"):
        study.predict(slide, "toy", "uni")


def test_a_bundle_of_a_run_gives_the_map_of_the_run(fitted, slide):
    wanted = Wanted("toy", "colour-texture", 0)
    export(wanted, fitted.work, slide.parent / "bundle", lambda _: None)
    of_run, _ = predicted(fitted, slide)
    of_bundle, lines = predicted(fitted, slide, runs=None, bundle=slide.parent / "bundle", into=slide.parent / "other")
    assert (labels_in(of_run) != labels_in(of_bundle)).mean() < 1e-3  # the same up to rounding
    assert "seed 0" in lines[0]


def test_all_seeds_give_the_mean_probability_and_their_disagreement(fitted, slide):
    folder, lines = predicted(fitted, slide, runs=RunQuery("toy", "colour-texture", all_seeds=True), overlap=0.0)
    image = np.asarray(zarr.open_group(folder / "slide.ome.zarr", mode="r")["0"])
    assert image.shape == (3, 2 * SIDE, 4 * SIDE)  # two labels and the disagreement
    assert np.abs(image[:2].astype(int).sum(axis=0) - 255).max() <= 1
    assert np.array_equal(labels_in(folder)[image[0] != image[1]], (image[1] > image[0])[image[0] != image[1]])
    assert any(f"all {SEEDS} runs" in line for line in lines)


def test_the_default_seed_is_the_median_by_validation_dice_and_the_output_says_why(fitted, slide):
    scores = sorted((run_files.read_record(run_of(fitted, seed)).val_dice, seed) for seed in range(SEEDS))
    chosen = choose_runs(places.results(fitted.work), RunQuery("toy", "colour-texture"))
    assert [record.seed for record in chosen.records] == [scores[1][1]]
    _, lines = predicted(fitted, slide, runs=RunQuery("toy", "colour-texture"))
    assert f"the median of {SEEDS} runs by validation Dice ({scores[1][0]:.4f}" in lines[0]


def test_a_slide_is_resampled_to_the_um_per_pixel_that_encoders_saw_not_to_that_of_the_files(fitted, slide):
    record = run_files.read_record(run_of(fitted))
    assert record.mpp == 0.5
    assert tile_mpp(places.results(fitted.work) / "toy" / "toy", record) == pytest.approx(MPP)
    folder, _ = predicted(fitted, slide, mpp_of_slide=0.375)  # twice as fine as the tiles
    assert labels_in(folder).shape == (SIDE, 2 * SIDE)


def test_a_slide_smaller_than_a_tile_is_reflected(fitted, tmp_path):
    Image.fromarray(small(fitted, "a")[:20, :11]).save(tmp_path / "slide.png")
    folder, _ = predicted(fitted, tmp_path / "slide.png")
    assert labels_in(folder).shape == (20, 11)
    assert labels_in(folder).max() < 2


def test_a_folder_skips_complete_maps_and_one_whose_record_is_missing_is_made_again(fitted, slide):
    shutil.copy(slide, slide.with_name("other.png"))
    folder, lines = predicted(fitted, slide.parent)
    assert any("2 of 2 slides to do" in line for line in lines)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("other.*")}
    (folder / "slide.predict.json").unlink()
    _, lines = predicted(fitted, slide.parent)
    assert any("1 of 2 slides to do (1 complete)" in line for line in lines)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("other.*")}
    (folder / "slide.geojson").unlink()  # a file of a complete map was removed
    _, lines = predicted(fitted, slide.parent)
    assert any("1 of 2 slides to do (1 complete)" in line for line in lines)
    _, lines = predicted(fitted, slide.parent)
    assert any("0 of 2 slides to do (2 complete)" in line for line in lines)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"overlap": 0.25}, "overlap"), ({"runs": RunQuery("toy", "colour-texture", seed=1)}, r"runs"),
     ({"outputs": MapOptions(gzip=True)}, "gzip"), ({"tissue": "auto"}, "tissue")],
)  # fmt: skip
def test_a_map_made_in_another_way_is_refused_by_field_and_replaced_on_request(fitted, slide, fields, named):
    predicted(fitted, slide)
    with pytest.raises(ResultsMismatch, match=named):
        predicted(fitted, slide, **fields)
    _, lines = predicted(fitted, slide, flags={"recompute": True}, **fields)
    assert any("1 of 1 slides to do" in line for line in lines)


def test_only_regions_that_were_drawn_are_predicted(fitted, slide, tmp_path):
    ring = [[0, 0], [32, 0], [32, 64], [0, 64], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "drawn.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    folder, _ = predicted(fitted, slide, regions=tmp_path / "drawn.geojson")
    found = labels_in(folder)
    assert (found[:, :32] < 2).all()
    assert (found[:, 40:] == 255).all()


def test_a_worker_process_gives_the_same_map(fitted, slide):
    here, _ = predicted(fitted, slide)
    there, _ = predicted(fitted, slide, flags={"workers": 1}, into=slide.parent / "there")
    assert np.array_equal(labels_in(here), labels_in(there))
    assert (here / "slide.geojson").read_bytes() == (there / "slide.geojson").read_bytes()


def test_a_broken_slide_does_not_stop_the_others(fitted, slide):
    slide.with_name("broken.png").write_bytes(slide.read_bytes()[:2000])
    with pytest.raises(TileError, match="broken"):
        predicted(fitted, slide.parent)
    assert labels_in(slide.parent / "maps").size
    assert not [path for path in (slide.parent / "maps").iterdir() if "broken" in path.name]


@pytest.mark.parametrize(
    ("query", "known"),
    [(RunQuery("tony", "colour-texture"), "toy"), (RunQuery("toy", "uni"), "colour-texture"),
     (RunQuery("toy", "colour-texture", "mine"), "toy"), (RunQuery("toy", "colour-texture", seed=9), "0, 1, 2"),
     (RunQuery("toy", "colour-texture", fold=1), "None")],
)  # fmt: skip
def test_what_does_not_exist_is_refused_with_what_does(fitted, slide, query, known):
    with pytest.raises(ResultsNotFound) as refused:
        predicted(fitted, slide, runs=query)
    assert known in refused.value.expected


def test_slides_without_um_per_pixel_and_studies_without_them_are_refused(fitted, slide, monkeypatch):
    with pytest.raises(TileError, match="um/px"):
        predicted(fitted, slide, mpp_of_slide=None)
    monkeypatch.setattr(run_files, "read_record", run_files.read_record)
    pictures = places.results(fitted.work) / "toy" / "toy" / PICTURES
    monkeypatch.setattr("fmcache.stages.run_choice.tile_pictures", lambda _: {})
    assert pictures.exists()
    with pytest.raises(SpecError, match="um per pixel of a tile"):
        predicted(fitted, slide)
    folder, _ = predicted(fitted, slide, mpp=1.5)
    assert labels_in(folder).shape == (SIDE, 2 * SIDE)
    monkeypatch.undo()
    with pytest.raises(SpecError, match="contradicts"):
        predicted(fitted, slide, mpp=1.5)


def test_an_encoder_that_is_not_the_one_that_was_trained_is_refused_by_field(fitted, slide, monkeypatch):
    def other(*args, **options):
        encoder = load_encoder(*args, **options)
        return encoder._replace(card=change(encoder.card, mean=(0.5, 0.5, 0.5)), weights_sha256="0" * 64)

    monkeypatch.setattr("fmcache.bundles.same_encoder.load_encoder", other)
    with pytest.raises(WeightsMismatch, match=r"encoder\.mean.*\n.*encoder\.weights_sha256"):
        predicted(fitted, slide)


def change(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


def test_labels_renamed_in_the_manifest_are_reported_and_maps_keep_those_that_were_trained(fitted, slide, tmp_path):
    text = fitted.path.read_text().replace('name: "a"', 'name: "normal"')
    assert "normal" in text
    (tmp_path / "later.yaml").write_text(text)
    folder, lines = predicted(fitted, slide, manifest=tmp_path / "later.yaml", outputs=MapOptions(least_um2=0))
    assert any("has other labels or colours now (normal" in line for line in lines)
    assert "normal" not in (folder / "slide.geojson").read_text()


def test_a_full_disk_leaves_nothing_and_the_next_command_continues(fitted, slide, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fmcache.maps.writing.MapWriter.finish", full)
        with pytest.raises(NoRoom, match="slide"):
            predicted(fitted, slide)
    assert list((slide.parent / "maps").iterdir()) == []
    predicted(fitted, slide)


def test_a_folder_that_cannot_be_written_is_an_error_before_work(fitted, slide, monkeypatch):
    (slide.parent / "taken").write_text("a file")
    monkeypatch.setattr(predict, "open_canvas", None)  # nothing is opened
    with pytest.raises(OSError, match="taken"):
        predicted(fitted, slide, into=slide.parent / "taken")


def test_leftovers_of_a_killed_command_are_removed(fitted, slide):
    left = slide.parent / "maps" / f".slide.geojson.{os.getpid()}.partial"
    left.parent.mkdir()
    left.write_text("half")
    predicted(fitted, slide)
    assert not left.exists()


def test_slides_of_one_name_and_folders_without_slides_are_refused(fitted, slide, tmp_path):
    shutil.copy(slide, slide.with_name("slide.tif"))
    with pytest.raises(SpecError, match="same name"):
        predicted(fitted, slide.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="no slide"):
        predicted(fitted, tmp_path / "empty")
    with pytest.raises(SpecError, match="there is no slide"):
        predicted(fitted, tmp_path / "absent.svs")
