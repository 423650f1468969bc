"""um/px in the manifest: no identity holds it, and no stage continues as if it had not changed."""

import msgspec
import pytest
import zarr

from fmcache.cache.header import read_header
from fmcache.decoders import train
from fmcache.errors import CacheMismatch, ResultsMismatch, SpecError, TileError
from fmcache.scores.boundary import PARTS, boundary_counts, read_boundary
from fmcache.scores.calibration import read_calibration
from fmcache.scores.predictions import read_predictions
from fmcache.scores.run_files import CALIBRATION, find_runs, read_run, write_run
from fmcache.specs import FitSpec, ViewSpec
from fmcache.stages import places
from fmcache.stages.report import report


def files(study):
    return {
        path: path.stat().st_mtime_ns
        for path in places.caches(study.work).rglob("*")
        if path.is_file() and path.name.isdigit()
    }


def test_a_changed_um_per_px_is_refused_by_fit_until_extract_has_recorded_it_and_the_runs_are_trained_again(study):
    study.extract()
    study.fit()
    shards = files(study)
    study.edit(lambda entry: entry.update(mpp=0.25))
    with pytest.raises(CacheMismatch, match=r"mpp: expected 0\.25, found 0\.5") as refused:
        study.fit()
    assert "extract again: it runs no encoder" in refused.value.next_step
    assert all("complete" in line for line in study.extract())
    assert files(study) == shards
    assert read_header(places.mask_cache_path(study.work, "toy", study.recipe)).about["mpp"] == 0.25
    with pytest.raises(ResultsMismatch, match=r"mpp: expected 0\.25, found 0\.5") as refused:
        study.fit()
    assert "`name:`" in refused.value.next_step
    assert "--recompute" in refused.value.next_step
    study.fit(recompute=True)
    assert all("0 of 1 runs" in line for line in study.fit())
    (place,) = find_runs(places.results(study.work), "toy")
    assert read_run(place).record.mpp == 0.25


def test_an_um_per_px_that_is_restored_is_as_if_nothing_had_been(study):
    study.extract()
    study.fit()
    study.edit(lambda entry: entry.pop("mpp"))
    with pytest.raises(CacheMismatch, match=r"mpp: expected null, found 0\.5"):
        study.fit()
    study.edit(lambda entry: entry.update(mpp=0.5))
    assert all("0 of 1 runs" in line for line in study.fit())


def test_a_view_bank_that_says_nothing_of_um_per_px_is_taken_as_it_is(study):
    study.extract()
    path = places.mask_cache_path(study.work, "toy", study.recipe)
    header = read_header(path)
    older = msgspec.structs.replace(header, about={"versions": header.about["versions"]})
    zarr.open_group(path, mode="r+").attrs.put(older.attributes())
    study.edit(lambda entry: entry.update(mpp=0.25))
    study.fit()


def test_what_encoders_must_see_is_asked_of_all_tiles_again_when_the_manifest_says_another(study):
    study.extract()
    study.edit(lambda entry: entry.update(view_mpp=1.0))
    with pytest.raises(CacheMismatch, match=r"view_mpp: expected 1\.0, found null"):
        study.fit()
    with pytest.raises(TileError, match="give a wrong um/px"):
        study.extract()
    study.edit(lambda entry: entry.update(view_mpp=0.5))
    assert all("complete" in line for line in study.extract())
    study.fit()


def test_runs_of_two_um_per_px_are_not_reported_as_one_study(study):
    study.extract()
    study.fit()
    study.edit(lambda entry: entry.update(mpp=0.25))
    other = msgspec.structs.replace(study.recipe, encoders=("colour-texture",))
    study.extract(other)
    study.fit(other)
    with pytest.raises(ResultsMismatch, match=r"mpp: expected 0\.\d+, found 0\.\d+"):
        report(places.results(study.work), places.reports(study.work))


def measured(study, boundary, **changes):
    """The recipe at half the size of the images, so that a pixel is 1 um wide, with a tolerance of boundaries."""
    return msgspec.structs.replace(study.recipe, tile_px=16, boundary=boundary, **changes)


def test_a_tolerance_in_um_is_that_of_the_resized_tile_and_counts_follow_from_the_kept_predictions(study, monkeypatch):
    used = []

    def counted(*maps_and_tolerance):
        used.append(maps_and_tolerance[-1])
        return boundary_counts(*maps_and_tolerance)

    monkeypatch.setattr(train, "boundary_counts", counted)
    for boundary, tolerance in (("2 um", 2), ("1px", 1)):
        recipe = measured(study, boundary, name=boundary.replace(" ", "-"))
        study.extract(recipe)
        study.fit(recipe)
        (place,) = find_runs(places.results(study.work), recipe.name)
        kept = read_predictions(place)
        by_hand = boundary_counts(kept.predicted[0], kept.truth[0], 2, tolerance)
        assert read_boundary(place).select(PARTS).rows() == list(map(tuple, by_hand.tolist()))
        assert by_hand[:, 1].all()
    assert used == [2, 1]
    assert any("0 of 1 runs" in line for line in study.fit(recipe))


def test_sides_of_images_are_recorded_by_the_next_extract_which_encodes_nothing_and_stay_there(study):
    study.extract(measured(study, ""))
    shards, recipe = files(study), measured(study, "2 um")
    with pytest.raises(CacheMismatch, match="does not record the size of the image") as refused:
        study.fit(recipe)
    assert "runs no encoder" in refused.value.next_step
    assert any("complete" in line for line in study.extract(recipe))
    path = places.mask_cache_path(study.work, "toy", recipe)
    assert set(read_header(path).about["sides_px"].values()) == {32}
    study.extract(measured(study, "", views=ViewSpec(count=2)))  # the cache grows for a recipe that needs no sides
    assert set(read_header(path).about["sides_px"].values()) == {32}
    assert shards.items() <= files(study).items()
    study.fit(recipe)


def test_a_tolerance_in_um_without_um_per_px_is_refused_before_anything_runs(study):
    study.edit(lambda entry: entry.pop("mpp"))
    for stage in (study.extract, study.fit):
        if stage == study.fit:
            study.extract(measured(study, ""))
        with pytest.raises(SpecError, match="um per pixel of dataset 'toy'") as refused:
            stage(measured(study, "2 um"))
        assert "4 px" in refused.value.next_step
    study.extract(measured(study, "2 px"))
    study.fit(measured(study, "2 px"))


def test_boundaries_are_in_the_identity_of_a_run_only_when_they_are_counted(study):
    study.extract()
    study.fit()
    (place,) = find_runs(places.results(study.work), "toy")
    identity = read_run(place).record.identity
    assert set(identity) == {"tokens", "view_bank", "views", "splits", "decoder", "fit", "dice", "seed"}
    assert set(identity["fit"]) == set(FitSpec.__struct_fields__) - {"seeds", "precision"}  # which is at its default
    assert read_boundary(place) is None
    with pytest.raises(ResultsMismatch, match="boundary"):
        study.fit(msgspec.structs.replace(study.recipe, boundary="1 px"))


def test_a_run_that_was_finished_before_calibration_was_counted_is_still_done(study):
    study.extract()
    study.fit()
    (place,) = find_runs(places.results(study.work), "toy")
    assert read_calibration(place)["pixels"].sum() == 32 * 32
    run = read_run(place)
    (place / CALIBRATION).unlink()
    write_run(place, run)
    assert read_calibration(place) is None
    assert any("0 of 1 runs" in line for line in study.fit())
