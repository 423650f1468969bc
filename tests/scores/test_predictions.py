"""Predictions on disk: what was kept is read, an earlier run has none, and a damaged file is named."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fmcache.errors import ResultsCorrupt
from fmcache.identity import sha256_file
from fmcache.scores import run_files
from fmcache.scores.predictions import MOST_TILES, Predictions, kept_tiles, read_predictions, write_predictions
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, RunResults
from fmcache.scores.run_files import FILES, PREDICTIONS, find_runs, read_run, whole_folder, write_run

GOLDEN = Path(__file__).parent / "golden"
SHAPE = (3, 5, 4)


def kept(seed=0):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.integers(0, 3, (2, *SHAPE)).astype(np.uint8)
    truth[:, 0] = 255
    return Predictions(("t2", "t1", "1"), predicted, truth)


@pytest.fixture
def folder(tmp_path):
    """A run with the record of the golden run, and predictions."""
    (golden,) = find_runs(GOLDEN / "results-v2", "s")
    old = read_run(golden)
    place = tmp_path / "s" / "d" / "toy" / "seed-000"
    with whole_folder(place) as unfinished:
        shutil.copy(golden / "decoder.safetensors", unfinished)
        write_predictions(unfinished, kept())
        write_run(unfinished, RunResults(old.record, old.counts, old.curve))
    return place


def test_predictions_and_truth_read_as_they_were_written(folder):
    found, wanted = read_predictions(folder), kept()
    assert found.tiles == wanted.tiles
    for field in ("predicted", "truth"):
        assert getattr(found, field).dtype == np.uint8
        assert np.array_equal(getattr(found, field), getattr(wanted, field))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_run_of_an_earlier_fmcache_reads_and_has_no_predictions(version, tmp_path):
    shutil.copytree(GOLDEN / f"results-{version}", tmp_path / "results")
    (place,) = find_runs(tmp_path / "results", "s")
    write_predictions(place, kept())  # no record lists this file: it is not of this run
    assert read_predictions(place) is None
    assert read_run(place).counts.schema == pl.Schema(COUNTS_SCHEMA)


def test_an_earlier_reader_which_checks_three_files_reads_a_run_with_predictions(folder, monkeypatch):
    (folder / PREDICTIONS).unlink()
    with pytest.raises(ResultsCorrupt):
        read_run(folder)
    monkeypatch.setattr(run_files, "OPTIONAL", ())  # the names that a reader without predictions knows
    assert read_run(folder).curve.schema == pl.Schema(CURVE_SCHEMA)


def test_a_changed_or_missing_file_of_predictions_is_named(folder):
    whole = (folder / PREDICTIONS).read_bytes()
    for damaged in (whole[:-1], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        (folder / PREDICTIONS).write_bytes(damaged)
        for read in (read_predictions, read_run):
            with pytest.raises(ResultsCorrupt, match=r"predictions\.parquet was changed"):
                read(folder)
    (folder / PREDICTIONS).unlink()
    with pytest.raises(ResultsCorrupt, match=r"predictions\.parquet is missing"):
        read_predictions(folder)


def test_predictions_whose_sizes_do_not_fit_are_damage_even_if_their_checksum_is_right(folder, monkeypatch):
    table = pl.read_parquet(folder / PREDICTIONS)
    table.with_columns(pl.lit(7, pl.Int32).alias("height")).write_parquet(folder / PREDICTIONS)
    monkeypatch.setattr(run_files, "sha256_file", lambda path: sha256_file(path) if path.name in FILES else listed)
    listed = run_files._said(folder)["files"][PREDICTIONS]
    with pytest.raises(ResultsCorrupt, match=r"predictions\.parquet cannot be read"):
        read_predictions(folder)


def test_all_tiles_are_kept_up_to_the_limit_and_evenly_spaced_ones_of_more():
    few = [f"t{i}" for i in range(MOST_TILES)]
    assert kept_tiles(few) == tuple(sorted(few))
    many = [f"{i:04d}" for i in range(250)]
    found = kept_tiles(many[::-1])
    assert len(found) == MOST_TILES
    assert found == kept_tiles(many)
    assert {int(b) - int(a) for a, b in itertools.pairwise(found)} == {2, 3}
    assert kept_tiles([]) == ()
