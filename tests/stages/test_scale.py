"""um/px in the manifest: no identity holds it, and no stage continues as if it had not changed."""

import msgspec
import pytest
import zarr

from fmcache.cache.header import read_header
from fmcache.errors import CacheMismatch, ResultsMismatch, TileError
from fmcache.scores.run_files import find_runs, read_run
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
