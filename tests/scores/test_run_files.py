"""Results on disk: what was written is read, and nothing else is taken for it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fmcache.errors import FmcacheError, ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.identity import remove_folder, sweep
from fmcache.scores.predictions import Predictions, write_predictions
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, EncoderInfo, RunRecord, RunResults
from fmcache.scores.run_files import (
    FILES,
    PREDICTIONS,
    check_same_run,
    find_runs,
    read_run,
    studies,
    whole_folder,
    write_run,
)

IDENTITY = {"recipe": {"epochs": 2}, "seed": 0}
GOLDEN = Path(__file__).parent / "golden"


def toy():
    encoder = EncoderInfo("toy", "Toy", 10, 4, 16, False, False, "0" * 64)
    record = RunRecord(
        study="s", dataset="d", dataset_title="D", encoder=encoder, seed=0, identity=IDENTITY,
        recipe={"dice": "pooled"},
        labels=(("a", "#d55e00"), ("b", "#009e73")), mpp=0.5, tiles={"train": 1, "val": 1, "test": 1}, decoder_params=7,
        best_epoch=2, val_dice=0.5, collapsed=(), still_falling=False, device="cpu", threads=1,
        versions={"fmcache": "0"}, wall_s=1.0,
    )  # fmt: skip
    counts = pl.DataFrame(
        [("test", "t", "a", 3, 2, 1), ("test", "t", "b", 4, 0, 0)], schema=COUNTS_SCHEMA, orient="row"
    )
    curve = pl.DataFrame(
        [(1, 0.1, 2.0, 1.0, 1.0, None), (2, 0.0, 1.0, 0.5, 0.5, 0.5)], schema=CURVE_SCHEMA, orient="row"
    )
    return RunResults(record, counts, curve)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "results" / "s" / "d" / "toy" / "seed-000"
    with whole_folder(place) as unfinished:
        (unfinished / "decoder.safetensors").write_bytes(b"weights of the decoder")
        write_predictions(unfinished, Predictions(("t",), *np.array([[[[0, 1]]], [[[0, 255]]]], np.uint8)))
        write_run(unfinished, toy())
    return place


def test_a_part_reads_as_it_was_written(folder):
    part = read_run(folder)
    assert part.record == toy().record
    assert part.counts.equals(toy().counts)
    assert part.curve.equals(toy().curve)
    assert check_same_run(folder, IDENTITY)


@pytest.mark.parametrize("name", ["run.json", *FILES, PREDICTIONS])
def test_no_flipped_bit_of_any_file_is_taken_for_a_result(folder, name):
    file = folder / name
    good = file.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        file.write_bytes(bad)
        try:
            again = read_run(folder)
        except FmcacheError:
            continue
        # white space of run.json is nobody's fact
        assert name == "run.json" and json.loads(bad) == json.loads(good), f"byte {at} of {name}"
        assert again.record == toy().record


@pytest.mark.parametrize("name", ["run.json", *FILES, PREDICTIONS])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "a folder"])
def test_a_missing_or_cut_file_is_named_with_the_repair(folder, name, damage):
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    for ask in (read_run, lambda place: check_same_run(place, IDENTITY)):
        with pytest.raises(ResultsCorrupt, match=re.escape(name)) as raised:
            ask(folder)
        assert "fmcache fit" in raised.value.next_step
    assert find_runs(folder.parents[3], "s") == [folder]  # it is there, and is not passed over in silence


def test_a_part_of_a_later_format_is_refused_by_name(folder):
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"format": 2', '"format": 3'))
    with pytest.raises(ResultsMismatch, match="later fmcache"):
        read_run(folder)


def test_another_run_of_the_same_name_is_refused_and_none_is_not_there(folder, tmp_path):
    with pytest.raises(ResultsMismatch, match=r"recipe\.epochs: expected 3, found 2"):
        check_same_run(folder, {"recipe": {"epochs": 3}, "seed": 0})
    assert not check_same_run(tmp_path / "nowhere", IDENTITY)
    with pytest.raises(ResultsNotFound):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_results_of_every_format_so_far_still_read(version):
    results = GOLDEN / f"results-{version}"
    assert studies(results) == ["s"]
    (place,) = find_runs(results, "s")
    part = read_run(place)
    assert part.record == toy().record
    assert part.counts.equals(toy().counts)
    assert check_same_run(place, IDENTITY)


def test_a_part_of_the_first_format_is_not_done_when_a_file_is_missing(tmp_path):
    shutil.copytree(GOLDEN / "results-v1", tmp_path / "results")
    (place,) = find_runs(tmp_path / "results", "s")
    (place / "counts.parquet").unlink()
    with pytest.raises(ResultsCorrupt, match=r"counts\.parquet is missing"):
        check_same_run(place, IDENTITY)


@pytest.mark.parametrize(
    ("name", "was", "is_now"),
    [
        ("run.json", b'"dice"', b'"dicd"'),
        ("run.json", b'"pooled"', b'"ponled"'),
        ("run.json", b'"a",', b'"b",'),
        ("run.json", b'"a",', b'"A",'),
        ("run.json", b'"seed": 0', b'"seed": x'),
        ("counts.parquet", b"PAR1", b"PAR2"),
    ],
)
def test_damage_that_shows_in_a_part_without_checksums_is_named(tmp_path, name, was, is_now):
    shutil.copytree(GOLDEN / "results-v1", tmp_path / "results")
    (place,) = find_runs(tmp_path / "results", "s")
    content = (place / name).read_bytes()
    assert was in content
    (place / name).write_bytes(content.replace(was, is_now))
    with pytest.raises(ResultsCorrupt, match=re.escape(name)):
        read_run(place)


def test_a_reader_that_panics_on_damage_is_damage_that_is_named(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "results-v1", tmp_path / "results")
    (place,) = find_runs(tmp_path / "results", "s")

    def panic(_):  # a real damaged page may also end the process: the library believes the sizes it finds
        raise pl.exceptions.PanicException("assertion failed: offset + length <= self.length")

    monkeypatch.setattr(pl, "read_parquet", panic)
    with pytest.raises(ResultsCorrupt, match=r"counts\.parquet cannot be read"):
        read_run(place)


@pytest.mark.parametrize(("at", "byte"), [(704, 123), (164, 17), (404, 1), (42, 5)])
def test_one_byte_that_ends_every_process_that_reads_it_does_not_end_this_one(tmp_path, at, byte):
    shutil.copytree(GOLDEN / "results-v1", tmp_path / "results")
    (place,) = find_runs(tmp_path / "results", "s")
    content = bytearray((place / "counts.parquet").read_bytes())
    content[at] = byte
    (place / "counts.parquet").write_bytes(content)
    with pytest.raises(ResultsCorrupt, match=r"counts\.parquet (is damaged|cannot be read)"):
        read_run(place)
    shutil.copytree(GOLDEN / "results-v1", tmp_path / "sound")
    assert read_run(*find_runs(tmp_path / "sound", "s")).counts.equals(toy().counts)


def test_a_folder_is_removed_whole_and_what_was_left_by_a_kill_is_swept(tmp_path):
    place = tmp_path / "here"
    (place / "inner").mkdir(parents=True)
    remove_folder(place)
    remove_folder(place)  # nothing there: nothing to do
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "deep" / ".x.1.removed" / "inner").mkdir(parents=True)
    (tmp_path / "deep" / ".run.json.1.partial").write_text("half")
    (tmp_path / "deep" / "run.json").write_text("whole")
    sweep(tmp_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.json"]
