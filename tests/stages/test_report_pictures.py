"""What the results hold for pictures: those of tiles, token grids as colours, predictions; and facts beside a run."""

import io
import shutil

import msgspec
import numpy as np
import pytest
from PIL import Image

from fmcache.cache.header import read_header
from fmcache.cache.verify import disk_bytes
from fmcache.scores.counts import count
from fmcache.scores.kept_pictures import TOKENS, tile_pictures, token_pictures
from fmcache.scores.predictions import read_predictions
from fmcache.scores.run_files import PREDICTIONS, RECORD, find_runs, read_run
from fmcache.stages import fit as fit_stage
from fmcache.stages import places
from fmcache.stages.shards import write_token_shards


def dataset_folder(study):
    return places.results(study.work) / "toy" / "toy"


def pictures(study):
    return sorted((places.caches(study.work) / "toy" / "pictures").rglob("*.jpg"))


def test_the_results_alone_hold_picture_truth_predictions_and_token_colours_of_the_test_tiles(study):
    study.edit(lambda entry: [tile.update(group=f"patient of {tile['id']}") for tile in entry["tiles"]])
    study.extract()
    study.fit()
    header = read_header(places.tokens_path(study.work, "toy", "raw-pixels", study.recipe, "last"))
    size = disk_bytes(places.tokens_path(study.work, "toy", "raw-pixels", study.recipe, "last"))
    shutil.rmtree(places.caches(study.work))
    (test,) = study.manifest.dataset("toy").splits.test
    (place,) = find_runs(places.results(study.work), "toy")
    run, kept = read_run(place), read_predictions(place)
    assert kept.tiles == (test,)
    assert kept.predicted.shape == kept.truth.shape == (1, 32, 32)
    rows = run.counts.filter(split="test").select("tp", "fp", "fn").to_numpy()
    assert np.array_equal(rows, count(kept.predicted[0], kept.truth[0], 2))
    image = np.asarray(Image.open(study.folder / "images" / f"{test}.png"))
    assert np.array_equal(kept.truth[0], image[..., 0] > 127)
    photo = Image.open(io.BytesIO(tile_pictures(dataset_folder(study))[test]))
    assert photo.info["comment"] == f"side_px {len(image)}".encode()  # the report's scale bar needs it
    shown = np.asarray(photo)
    assert np.abs(shown.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 3  # JPEG has a loss
    assert token_pictures(place.parent)[test].shape == (2, 2, 3)
    record = run.record
    assert record.groups == {test: f"patient of {test}"}
    assert record.origin == header.about["origin"]
    assert record.origin["card"] == "raw-pixels"
    cost = header.about["extraction"]
    assert msgspec.to_builtins(record.extraction) == cost | {"bytes": size, "cached_views": sum(header.stored)}
    assert cost["views"] == sum(header.stored) == 2 * 2 + 1 + 1
    assert cost["seconds"] > 0


def test_extract_writes_missing_pictures_again_and_nothing_else(study):
    study.extract()
    (picture,) = pictures(study)
    (test,) = study.manifest.dataset("toy").splits.test
    assert picture.stem == {tile.id: tile.image_sha256 for tile in study.manifest.dataset("toy").tiles}[test]
    content = picture.read_bytes()
    picture.unlink()
    before = {path: path.stat().st_mtime_ns for path in places.caches(study.work).rglob("*.zarr/**/*")}
    assert "toy · tile pictures: 1 written" in study.extract()
    assert picture.read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in places.caches(study.work).rglob("*.zarr/**/*")} == before
    assert not any("pictures" in line for line in study.extract())


def test_fit_without_pictures_says_so_once_and_adds_them_when_they_are_there(study):
    study.extract()
    shutil.rmtree(pictures(study)[0].parent)
    lines = [line for line in study.fit() if "pictures" in line]
    assert len(lines) == 1
    assert "1 of 1 test tiles are missing" in lines[0]
    assert tile_pictures(dataset_folder(study)) == {}
    study.extract()
    lines = study.fit()
    assert any("0 of 1 runs" in line for line in lines)
    assert len(tile_pictures(dataset_folder(study))) == 1
    shutil.rmtree(pictures(study)[0].parent)  # pictures that the results hold stay
    assert not any("pictures" in line for line in study.fit())
    assert len(tile_pictures(dataset_folder(study))) == 1


def test_a_run_of_an_earlier_fmcache_is_not_trained_again_but_gets_token_colours(study):
    study.extract()
    study.fit()
    (place,) = find_runs(places.results(study.work), "toy")
    colours = (place.parent / TOKENS).read_bytes()
    (place.parent / TOKENS).unlink()
    record = (place / RECORD).read_bytes()
    assert any("0 of 1 runs" in line for line in study.fit())
    assert (place.parent / TOKENS).read_bytes() == colours
    assert (place / RECORD).read_bytes() == record


def test_a_run_whose_predictions_are_damaged_is_trained_again(study):
    study.extract()
    study.fit()
    (place,) = find_runs(places.results(study.work), "toy")
    content = (place / PREDICTIONS).read_bytes()
    (place / PREDICTIONS).write_bytes(content[:-1])
    lines = study.fit()
    assert any("predictions.parquet was changed" in line and "trained again" in line for line in lines)
    assert (place / PREDICTIONS).read_bytes() == content


def test_token_colours_of_another_cache_do_not_stay_when_runs_are_trained_anew(study):
    study.extract()
    study.fit()
    (place,) = find_runs(places.results(study.work), "toy")
    colours = (place.parent / TOKENS).read_bytes()
    (place.parent / TOKENS).write_bytes(b"of other tokens")
    study.fit(recompute=True)
    assert (place.parent / TOKENS).read_bytes() == colours


def test_the_forecast_names_the_size_of_predictions_only_when_it_is_large(study, monkeypatch):
    study.extract()
    monkeypatch.setattr(fit_stage, "MANY_BYTES", 2 * 32 * 32 - 1)
    (line,) = (line for line in study.fit() if line.startswith("fit:"))
    assert line.endswith("predictions of test tiles on disk: at most 0.0 MB")
    (line,) = (line for line in study.fit() if line.startswith("fit:"))  # nothing is left to do
    assert "predictions" not in line


def cost(study):
    return read_header(places.tokens_path(study.work, "toy", "raw-pixels", study.recipe, "last")).about["extraction"]


def test_the_cost_of_an_extraction_is_the_sum_over_commands_that_stopped_and_resumed(study, monkeypatch):
    def stop_after_two(encoding, tasks, tick):
        write_token_shards(encoding, tasks[:2], tick)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fmcache.stages.filling.write_token_shards", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            study.extract()
    first = cost(study)
    assert 0 < first["views"] < 6
    study.extract()
    second = cost(study)
    assert second["views"] == 6
    assert second["seconds"] > first["seconds"]
    path = places.tokens_path(study.work, "toy", "raw-pixels", study.recipe, "last")
    before = (path / "zarr.json").stat().st_mtime_ns
    study.extract()
    assert (path / "zarr.json").stat().st_mtime_ns == before
    more = msgspec.structs.replace(study.recipe, views=msgspec.structs.replace(study.recipe.views, count=3))
    study.extract(more)
    assert cost(study)["views"] == 6 + 2 * 2
    study.extract(more, recompute=True)
    assert cost(study)["views"] == 2 * 4 + 2
    assert cost(study)["device"] == second["device"]
