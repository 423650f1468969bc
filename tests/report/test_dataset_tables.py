"""The tables of a dataset show the estimates of the statistics, for every kind of study."""

import msgspec
import numpy as np
import polars as pl
import pytest

from fmcache.report.dataset_tables import dataset_tables, dice_by_encoder, dice_for_terminal
from fmcache.report.findings import find
from fmcache.report.notes import notes
from fmcache.report.tables import latex, markdown
from fmcache.scores.records import COUNTS_SCHEMA, Extraction
from fmcache.statistics.schemas import MEAN

KINDS = {
    "fixed split": {},
    "folds": {"folds": 5},
    "folds of other sizes": {"folds": 3, "seeds": 2},
    "absent label": {"lacking": ("c",)},
    "puma": {"dice": "puma"},
    "puma, absent label": {"dice": "puma", "lacking": ("c",)},
    "per tile": {"dice": "per_tile"},
    "per tile, absent label, folds": {"dice": "per_tile", "lacking": ("c",), "folds": 5},
    "one seed": {"seeds": 1},
    "one tile": {"tiles": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_table_shows_is_the_estimate_of_its_interval(many_runs, kind):
    found = find(many_runs(**KINDS[kind]))
    known = found.intervals_of()
    for row in found.summary.rows:
        for label, mean in zip(found.summary.columns, row.mean, strict=True):
            estimate = known[row.encoder.name, label]["estimate"]
            assert (estimate is None) == np.isnan(mean)
            assert estimate is None or estimate == pytest.approx(mean, abs=1e-12)
    shown = {row.cells[0].text: row.cells[1 : 1 + len(found.summary.columns)] for row in dice_by_encoder(found).rows}
    for (name, label), one in known.items():
        text = shown[name][found.summary.columns.index(label)].text.partition(" ")[0]
        assert text == ("–" if one["estimate"] is None else f"{100 * one['estimate']:.2f}")


def test_all_folds_of_a_seed_are_scored_together(in_folds):
    # fold 0: 10 tp, 90 fp, 90 fn; fold 1: 90 tp, 10 fp, 10 fn, of both seeds: 2 * 100 / (2 * 100 + 200)
    (row,) = find(in_folds(10, 10, 90, 90)).summary.rows
    assert row.dice.tolist() == [[0.5] * 3] * 2
    # a fold with ten times the pixels weighs ten times as much: (10 + 900) / (10 + 900 + 90 + 100)
    runs = in_folds(10, 90, seeds=1)
    big = runs[1].counts.with_columns(pl.col("tp", "fp", "fn") * 10)
    (row,) = find([runs[0], msgspec.structs.replace(runs[1], counts=big)]).summary.rows
    assert row.mean[0] == pytest.approx(910 / 1100)


def test_the_notes_say_over_what_the_interval_goes(many_runs):
    lines = notes(find(many_runs()))
    assert "± is the standard deviation over seeds." in lines
    assert (
        "[low, high] is the 95 % interval of the mean over 10 test tiles (patients are unknown) and 5 seeds." in lines
    )
    groups = {f"t{t:02d}": f"p{t % 4}" for t in range(10)}
    grouped = [msgspec.structs.replace(r, record=msgspec.structs.replace(r.record, groups=groups)) for r in many_runs()]
    assert any("over 10 test tiles of 4 patients or slides and 5 seeds." in line for line in notes(find(grouped)))
    assert not any("Fewer than 5 seeds" in line for line in lines)
    assert any(line.startswith("Fewer than 5 seeds") and "Use 10" in line for line in notes(find(many_runs(seeds=3))))


def test_few_test_units_are_said_to_make_intervals_optimistic_or_to_allow_none(many_runs):
    def about(tiles):
        return [line for line in notes(find(many_runs(tiles=tiles))) if "hold background" in line]

    assert about(10) == []
    assert about(9) == [
        "Few test tiles hold background (9), b (9), c (9): these intervals, and that of the mean, are optimistic."
    ]
    assert about(2) == ["Fewer than 3 test tiles hold background (2), b (2), c (2): too few for an interval."]
    cells = dice_by_encoder(find(many_runs(tiles=2))).rows[0].cells
    assert cells[6].text == "–"
    assert any(
        line == "No interval (a label is in fewer than 3 test tiles)." for line in notes(find(many_runs(tiles=2)))
    )


def test_an_encoder_that_is_clearly_worse_is_not_marked_and_ranks_last(many_runs):
    found = find(many_runs([("x", 2.0), ("y", 1.9), ("z", -2.0)]))
    table = dice_by_encoder(found)
    assert table.columns == ("encoder", "background", "b", "c", "mean", "worst label", "95 % interval", "rank")
    marked = {row.cells[0].text: (row.cells[4].may_be_best, row.cells[7].text) for row in table.rows}
    assert marked["z"] == (False, "3")
    assert [marked[name][1] for name in "xy"] == ["1–2", "1–2"]
    text = markdown(table)
    first = next(line for line in text.splitlines() if line.startswith("| x"))
    assert first.count(" •") == sum(cell.may_be_best for cell in table.rows[0].cells) > 0
    assert r"\textbullet{}" in latex(table)
    assert " •" not in next(line for line in text.splitlines() if line.startswith("| z"))
    assert any("for the mean: 2 of 3 encoders" in line for line in table.notes)


def test_one_seed_has_no_interval_and_excludes_nobody(many_runs):
    table = dice_by_encoder(find(many_runs([("x", 2.0), ("z", -2.0)], seeds=1)))
    assert [row.cells[6].text for row in table.rows] == ["–", "–"]
    assert all(row.cells[4].may_be_best for row in table.rows)
    assert "No interval (one seed)." in table.notes
    assert any("all 2 encoders, none can be excluded" in line for line in table.notes)
    assert not any("±" in cell.text for row in table.rows for cell in row.cells)


def test_one_encoder_is_not_ranked(many_runs):
    for table in dataset_tables(find(many_runs([("x", 1.0)]))):
        assert "rank" not in table.columns
        assert not any(cell.place or cell.may_be_best for row in table.rows for cell in row.cells)


def test_collapsed_seeds_are_counted_and_the_mean_without_them_stands_beside(part):
    good, dead = ((8, 2, 2), (6, 4, 4)), ((8, 2, 2), (0, 0, 10))
    runs = [part("x", 0, *good), part("x", 1, *good), part("x", 2, *dead), part("y", 0, *good), part("z", 0, *dead)]
    table = dice_by_encoder(find(runs))
    assert table.columns[-2:] == ("collapsed", "mean without")
    cells = {row.cells[0].text[0]: [cell.text for cell in row.cells[-2:]] for row in table.rows}
    assert cells == {"X": ["1 of 3", "70.00"], "Y": ["0 of 1", "70.00"], "Z": ["1 of 1", "–"]}
    x = next(row for row in table.rows if row.cells[0].text.startswith("X"))
    assert x.cells[3].text.startswith("60.00 ±")  # (70 + 70 + 40) / 3: the collapsed seed stays in
    assert "collapsed" not in dice_by_encoder(find(runs[:2])).columns
    assert len(dice_for_terminal(find(runs)).columns) == len(table.columns) - 2


def test_the_worst_label_stands_beside_the_mean_with_its_dice(part):
    absent = (0, 0, 0)
    runs = [part("x", seed, (8, 2, 2), (6 - seed, 4, 4)) for seed in range(2)]  # b: Dice 60 % and 10 / 18
    runs += [part("y", 0, (1, 9, 9), (6, 4, 4)), part("z", 0, absent, (6, 4, 4))]
    for shown in (dice_by_encoder(find(runs[:3])), dice_by_encoder(find(runs[3:]))):
        assert shown.columns.index("worst label") == shown.columns.index("mean") + 1
    cells = [row.cells[4].text for row in dice_by_encoder(find(runs[:3])).rows]
    assert cells == ["b 57.78", "a 10.00"]
    assert dice_by_encoder(find(runs[3:])).rows[0].cells[4].text == "b 60.00"  # a has no Dice: no truth holds it
    assert dice_by_encoder(find([part("z", 0, absent, absent)])).rows[0].cells[4].text == "–"
    assert "worst label" in [column.header for column in dice_for_terminal(find(runs[:3])).columns]


def test_a_label_that_no_training_tile_has_collapses_no_seed(part):
    dead, unseen = ((8, 2, 2), (0, 0, 10)), {"label_pixels": {"train": (9, 0)}}
    assert "collapsed" in dice_by_encoder(find([part("x", 0, *dead)])).columns
    found = find([part("x", 0, *dead, **unseen)])
    assert "collapsed" not in dice_by_encoder(found).columns
    assert not any("ollapsed" in line for line in notes(found))
    # a label that one fold could learn and did not is lost
    folds = [part("x", 0, *dead, fold=i, label_pixels={"train": (9, i)}, identity={"splits": {"test": [f"t{i}"]}})
             for i in range(2)]  # fmt: skip
    assert find(folds).intervals_of()["x", "b"]["lost"] == 1


def test_scores_stand_side_by_side_as_worked_out_by_hand(part):
    labels = (("background", "#000000"), ("b", "#ff0000"))
    one = part("x", 0, (1, 1, 1), (1, 1, 1), labels=labels)
    rows = [
        ("test", "t0", "background", 10, 0, 0), ("test", "t0", "b", 30, 10, 0),
        ("test", "t1", "background", 0, 10, 10), ("test", "t1", "b", 10, 0, 30),
    ]  # fmt: skip
    found = find([msgspec.structs.replace(one, counts=pl.DataFrame(rows, schema=COUNTS_SCHEMA, orient="row"))])
    tables = {table.name: table for table in dataset_tables(found)}
    assert tables["scores"].columns == ("encoder", "Dice pooled", "Dice per tile", "Dice PUMA challenge", "IoU")
    # background: Dice 20/40, per tile (1 + 0)/2, IoU 10/30; b: Dice 80/120, per tile (60/70 + 20/50)/2, IoU 40/80
    by_hand = [(1 / 2 + 2 / 3) / 2, (1 / 2 + (6 / 7 + 2 / 5) / 2) / 2, 2 / 3, (1 / 3 + 1 / 2) / 2]
    assert [cell.text for cell in tables["scores"].rows[0].cells[1:]] == [f"{100 * one:.2f}" for one in by_hand]
    b = tables["labels"].rows[1]
    # b: precision 40/50, recall 40/70, held by both tiles
    assert [cell.text for cell in b.cells[1:]] == ["b", "66.67", "–", "2 of 2", "50.00", "80.00", "57.14"]


def test_places_of_a_label_are_among_the_encoders_of_that_label(many_runs):
    table = next(table for table in dataset_tables(find(many_runs())) if table.name == "labels")
    assert [row.cells[0].text for row in table.rows] == ["x"] * 3 + ["y"] * 3
    assert [row.cells[2].place for row in table.rows] == [1, 1, 1, 2, 2, 2]


def test_each_encoder_is_compared_with_the_best_control(many_runs):
    found = find(
        many_runs([("x", 2.0), ("y", 0.0), ("raw", 0.0), ("worst", -1.0)], controls=("raw", "worst"), tiles=12)
    )
    table = next(table for table in dataset_tables(found) if table.name == "controls")
    x, y = table.rows
    known = found.answer.against_control.filter(
        pl.col("encoder") == "x", pl.col("label") == MEAN, pl.col("score") == "dice_pooled"
    ).row(0, named=True)
    assert [cell.text for cell in x.cells] == [
        "x", "raw", f"+{100 * known['difference']:.2f}", f"[+{100 * known['low']:.2f}, +{100 * known['high']:.2f}]",
        "yes",
    ]  # fmt: skip
    assert y.cells[4].text == "not shown"
    assert not any(table.name == "controls" for table in dataset_tables(find(many_runs())))


def test_costs_are_those_of_the_records(many_runs):
    runs = many_runs([("x", 1.0), ("y", 0.5)], seeds=2, wall_s=30.0)
    cost = Extraction(seconds=50.0, views=2_000, bytes=10_000_000, cached_views=4_000, device="cuda: H")
    runs = [
        msgspec.structs.replace(r, record=msgspec.structs.replace(r.record, extraction=cost))
        if r.record.encoder.name == "x" else r for r in runs
    ]  # fmt: skip
    table = next(table for table in dataset_tables(find(runs)) if table.name == "costs")
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["x", "1,000,000", "25.0", "cuda: H", "2,500", "30.0", "cpu"],
        ["y", "1,000,000", "–", "–", "–", "30.0", "cpu"],
    ]
    assert any("did not record" in line for line in table.notes)


def test_seeds_that_are_missing_for_an_encoder_are_counted(many_runs):
    runs = [run for run in many_runs() if run.record.encoder.name == "x" or run.record.seed < 2]
    lines = notes(find(runs))
    assert "Seeds: x 5, y 2." in lines
    assert any("and 2 to 5 seeds." in line for line in lines)


def test_where_no_seed_tested_every_tile_nothing_has_a_number(many_runs):
    runs = [
        run for run in many_runs(folds=3)
        if (run.record.encoder.name, run.record.fold) not in {("x", 0), ("y", 2)}
    ]  # fmt: skip
    found = find(runs)
    for table in dataset_tables(found):
        assert not any(cell.place or cell.may_be_best for row in table.rows for cell in row.cells)
        for text in (markdown(table), latex(table)):
            assert "nan" not in text
    assert "No interval (no seed tested all tiles)." in notes(found)
    assert not any("nothing has a Dice" in line for line in notes(found))
