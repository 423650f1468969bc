"""Scores beyond overlap in tables and Parquet: by hand, with folds, and where runs lack them."""

import re

import msgspec
import numpy as np
import polars as pl
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
        assert any("NSD at 2 um" in line and "computed as that of Dice" in line for line in table(found, name).notes)
        assert set(column(found, name, "95 % interval of NSD")) == {"–"}  # one tile is too few for an interval
    assert any("Calibration error" in line and "without an interval" in line for line in table(found, "scores").notes)
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


@pytest.fixture
def many(part, tmp_path):
    """Write a run on eight tiles of four patients, with its pixels of labels as pixels of boundaries; read it again."""

    def store(name, seed, quality, bounded=True, **fields):
        rng = np.random.default_rng([seed, ord(name)])
        share = np.clip(quality + rng.normal(0, 0.1, (8, 2)), 0.05, 0.95)
        truth = np.random.default_rng(0).integers(50, 90, (8, 2))  # the same for all
        truth[6:, 1] = 0
        tp, fp = np.rint(share * truth).astype(np.int64), rng.integers(2, 20, (8, 2))
        if (name, seed) == ("x", 1):
            tp[:, 1] = 0  # a seed that lost a label
        run = part(name, seed, (1, 1, 1), (1, 1, 1), groups={f"t{i}": f"p{i // 2}" for i in range(8)}, **fields)
        run.record.recipe["boundary"] = "2 um"
        names = [label for label, _ in run.record.labels]
        rows = [("test", f"t{t}", names[at], int(tp[t, at]), int(fp[t, at]), int(truth[t, at] - tp[t, at]))
                for t in range(8) for at in range(2)]  # fmt: skip
        counts = pl.DataFrame(rows, schema=run.counts.columns, orient="row")
        run = msgspec.structs.replace(run, counts=counts)
        folder = run_folder(tmp_path, "toy", "d", name, seed)
        with whole_folder(folder) as unfinished:
            (unfinished / "decoder.safetensors").write_bytes(b"weights")
            if bounded:
                parts = np.stack([tp, truth, tp, tp + fp], axis=-1)
                write_boundary(unfinished, [f"t{t}" for t in range(8)], names, parts)
            write_run(unfinished, run)
        return read_run(folder)

    return store


def of_score(frame, name):
    return frame.filter(pl.col("score") == name).drop("score")


def test_intervals_pairs_and_ranks_of_surface_dice_are_those_of_dice_if_the_counts_are_those_of_labels(many):
    runs = [many(name, seed, quality) for name, quality in (("x", 0.4), ("y", 0.8), ("z", 0.75)) for seed in range(3)]
    runs += [many("c", seed, 0.3, control=True) for seed in range(2)]
    found = find(runs)
    frames = dataset_frames(found)
    for name, rows in (("intervals", 4 * 3), ("pairs", 3 * 3), ("against_control", 3 * 3)):
        nsd, dice = (of_score(frames[name], score) for score in ("nsd", "dice_pooled"))
        assert len(nsd) == rows
        assert nsd.equals(dice), name
    intervals = of_score(frames["intervals"], "nsd")
    (mean_y,) = intervals.filter(encoder="y", label="mean").to_dicts()
    assert mean_y["low"] < mean_y["estimate"] < mean_y["high"]
    assert intervals["units"].to_list() == [4, 3, 3] * 4  # patients whose truth has a boundary
    assert set(intervals.filter(encoder="x")["lost"]) == {0, 1}
    order = [row.encoder.name for row in found.summary.rows]
    shown = dict(zip(order, column(found, "scores", "95 % interval of NSD"), strict=True))
    assert shown["y"] == f"[{100 * mean_y['low']:.2f}, {100 * mean_y['high']:.2f}]"
    cells = [row.cells[table(found, "scores").columns.index("NSD at 2 um")] for row in table(found, "scores").rows]
    assert [cell.place for cell in cells] == [1, 2, 3, 0]
    assert "nsd" in next(one for one in method([found]) if "The same was computed" in one)


def test_an_encoder_of_which_a_seed_has_no_boundaries_has_no_surface_dice_and_no_place(many):
    runs = [many(name, seed, 0.6, bounded=name != "x" or seed) for name in "xyz" for seed in range(2)]
    found = find(runs)
    assert set(of_score(dataset_frames(found)["intervals"], "nsd")["encoder"]) == {"y", "z"}
    order = [row.encoder.name for row in found.summary.rows]
    for name in ("NSD at 2 um", "95 % interval of NSD"):
        assert column(found, "scores", name)[order.index("x")] == "–"
    assert set(dataset_frames(found)["boundary"].filter(encoder="x")["seed"]) == {1}
    two = find(runs[:4])  # of two encoders one has it: nothing is compared
    cells = [row.cells[table(two, "scores").columns.index("NSD at 2 um")] for row in table(two, "scores").rows]
    assert [cell.place for cell in cells] == [0, 0]


def test_a_seed_is_lost_by_its_pixels_and_not_by_its_boundaries(stored):
    found = find([stored("x", seed, [[0, 8, 0, 8], [0, 3, 0, 3]]) for seed in range(2)])
    intervals = of_score(dataset_frames(found)["intervals"], "nsd")
    assert intervals.select("estimate", "lost").rows() == [(0.0, 0)] * 3


def test_a_label_without_a_boundary_in_the_truth_has_no_surface_dice(stored):
    run = stored("x", 0, [[4, 4, 4, 4], [0, 0, 0, 5]])  # b fills its tiles, but was predicted with a boundary
    assert dataset_frames(find([run]))["boundary"]["nsd"].to_list() == [1.0, None, 1.0]
    assert column(find([run]), "labels", "NSD at 2 um") == ["100.00", "–"]


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
