"""Scores beyond overlap in tables and Parquet: by hand, with folds, and where runs lack them."""

import re

import msgspec
import numpy as np
import pytest

from fmcache.report.dataset_tables import dataset_tables
from fmcache.report.findings import find
from fmcache.report.frames import dataset_frames
from fmcache.report.method import bibtex, method
from fmcache.scores.boundary import write_boundary
from fmcache.scores.calibration import BINS, write_calibration
from fmcache.scores.run_files import read_run, run_folder, whole_folder, write_run

GOOD, HALF = ((8, 2, 2), (6, 4, 4)), [[3, 4, 4, 4], [1, 2, 0, 2]]
"""tp, fp, fn by label; and of the boundaries of a and b 7 of 8 and 1 of 4 pixels agree."""


@pytest.fixture
def stored(part, tmp_path):
    """Write a run with counts of boundaries, (label, 4), and of bins, {bin: counts}, and read it again."""

    def store(name, seed, boundary=None, bins=None, tested=GOOD, **fields):
        run = part(name, seed, *tested, **fields)
        if boundary:
            run.record.recipe["boundary"] = "2 um"
        at = run.record
        folder = run_folder(tmp_path, at.study, at.dataset, name, seed, at.fold)
        tiles = [f"t{at.fold or 0}"]
        with whole_folder(folder) as unfinished:
            (unfinished / "decoder.safetensors").write_bytes(b"weights")
            if boundary:
                write_boundary(unfinished, tiles, [label for label, _ in at.labels], np.array([boundary]))
            if bins:
                counts = np.zeros((1, BINS, 3), np.int64)
                for bin_, parts in bins.items():
                    counts[0, bin_] = parts
                write_calibration(unfinished, tiles, counts)
            write_run(unfinished, run)
        return read_run(folder)

    return store


def table(found, name):
    return next(one for one in dataset_tables(found) if one.name == name)


def column(found, name, head):
    shown = table(found, name)
    return [row.cells[shown.columns.index(head)].text for row in shown.rows]


def test_surface_dice_and_calibration_error_stand_in_the_tables_as_worked_out_by_hand(stored):
    bins = {8: (10, 6_000_000, 4), 14: (10, 10_000_000, 9)}  # gaps 2 and 1 of 20 pixels
    perfect = [[4, 4, 4, 4], [2, 2, 2, 2]]
    runs = [stored("x", 0, HALF, bins), stored("x", 1, perfect, {14: (10, 10_000_000, 10)})]
    found = find(runs)
    assert column(found, "labels", "NSD at 2 um") == ["93.75 ± 8.84", "62.50 ± 53.03"]  # a: 7/8 and 1, b: 1/4 and 1
    assert column(found, "scores", "NSD at 2 um") == ["78.12 ± 30.94"]  # means 0.5625 and 1
    assert column(found, "scores", "calibration error") == ["7.50 ± 10.61"]  # 3 / 20 and 0
    for name in ("labels", "scores"):
        assert any("NSD at 2 um" in line and "without an interval" in line for line in table(found, name).notes)
    (text,) = (one for one in method([found]) if "surface Dice" in one)
    assert "[@nikolov2021surface] at a tolerance of 2 um" in text
    assert "[@guo2017calibration]" in text
    assert {"nikolov2021surface", "guo2017calibration"} <= set(re.findall(r"{(\w+),", bibtex([found])))
    frames = dataset_frames(found)
    assert frames["boundary"].filter(seed=0)["nsd"].to_list() == [7 / 8, 1 / 4, 9 / 16]
    assert frames["calibration"].filter(seed=0, bin=8).row(0) == ("x", 0, 8, 10, 6_000_000, 4)
    assert len(frames["calibration"]) == 2 * BINS


def test_folds_of_a_seed_are_added_before_the_score_is_computed(stored):
    folds = [
        stored("x", 0, [parts, [0, 1, 0, 1]], {14: (n, 10**6 * n, right)}, fold=at,
               identity={"splits": {"test": [f"t{at}"]}})
        for at, (parts, n, right) in enumerate((([1, 1, 1, 1], 10, 10), ([0, 9, 0, 9], 90, 0)))
    ]  # fmt: skip
    found = find(folds)
    assert dataset_frames(found)["boundary"].filter(label="a")["nsd"].to_list() == [2 / 20]
    assert column(found, "scores", "calibration error") == ["90.00"]
    other = stored("y", 0, HALF, fold=1, identity={"splits": {"test": ["t1"]}})
    assert "boundary" not in dataset_frames(find([folds[0], other]))  # neither seed tested every tile
    older = msgspec.structs.replace(folds[1], folder=None)  # has no counts of its own
    assert {"boundary", "calibration"}.isdisjoint(dataset_frames(find([folds[0], older])))


def test_a_label_that_no_truth_holds_has_no_surface_dice(stored):
    run = stored("x", 0, [[4, 4, 4, 4], [0, 0, 0, 5]], tested=((8, 2, 0), (0, 2, 0)))
    assert dataset_frames(find([run]))["boundary"]["nsd"].to_list() == [1.0, None, 1.0]
    assert column(find([run]), "labels", "NSD at 2 um") == ["100.00", "–"]


def test_an_encoder_of_which_a_seed_lacks_the_counts_shows_none_and_runs_without_have_no_columns(stored, part):
    bins = {14: (10, 10_000_000, 10)}
    runs = [stored("x", 0, bins=bins), stored("x", 1), stored("y", 0, bins=bins)]
    found = find(runs)
    order = [row.encoder.name for row in found.summary.rows]
    assert dict(zip(order, column(found, "scores", "calibration error"), strict=True)) == {"x": "–", "y": "0.00"}
    assert set(dataset_frames(found)["calibration"]["seed"]) == {0}
    assert not any("NSD" in head for name in ("scores", "labels") for head in table(found, name).columns)
    bare = find([part("x", 0, *GOOD), msgspec.structs.replace(runs[1], folder=None)])
    assert {"boundary", "calibration"}.isdisjoint(dataset_frames(bare))
    assert not any("calibration" in one or "surface" in one for one in method([bare]))
    assert "calibration error" not in table(bare, "scores").columns
