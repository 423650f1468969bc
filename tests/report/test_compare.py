"""What moved between two reports: known answers on tables written by hand, and on those of drawn studies."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from fmcache.cli import app
from fmcache.errors import ResultsCorrupt, ResultsNotFound
from fmcache.report.compare import compare, markdown_comparison
from fmcache.report.findings import find
from fmcache.report.frames import csv_text, parquet
from fmcache.statistics.schemas import INTERVALS, PAIRS

ROW = {"score": "dice_pooled", "by_tiles": 0.5, "by_seeds": 0.5, "units": 10, "seeds": 3, "lost": 0}


def interval(encoder, label, estimate, low, high, ranks=(1, 2), best=True):
    first, last = ranks or (None, None)
    return ROW | {"encoder": encoder, "label": label, "estimate": estimate, "low": low, "high": high,
                  "rank_low": first, "rank_high": last, "may_be_best": best if ranks else None}  # fmt: skip


def pair(a, b, label, difference, differs):
    limits = {"low": difference - 0.03, "high": difference + 0.03}
    return {
        "a": a,
        "b": b,
        "label": label,
        "score": "dice_pooled",
        "difference": difference,
        "differs": differs,
        **limits,
    }


def write_tables(folder, intervals, pairs=(), random=(), dice="pooled"):
    folder.mkdir(parents=True)
    pl.DataFrame(intervals, schema=INTERVALS).write_parquet(folder / "intervals.parquet")
    pl.DataFrame(list(pairs), schema=PAIRS).write_parquet(folder / "pairs.parquet")
    names = list(dict.fromkeys(row["encoder"] for row in intervals))
    flags = [str(name in random) for name in names]
    table = pl.DataFrame({"encoder": names, "dice": [dice] * len(names), "random_weights": flags})
    table.write_csv(folder / "table.csv")
    return folder


OLD = [
    interval("uni", "a", 0.70, 0.60, 0.80), interval("uni", "mean", 0.75, 0.70, 0.80),
    interval("conch", "a", 0.60, 0.50, 0.70, best=False), interval("conch", "mean", 0.72, 0.66, 0.78),
    interval("noise", "a", 0.20, 0.10, 0.30, ranks=None), interval("noise", "mean", 0.30, 0.20, 0.40, ranks=None),
]  # fmt: skip
NEW = [
    interval("uni", "a", 0.70, 0.60, 0.80), interval("uni", "mean", 0.81, 0.77, 0.85, ranks=(1, 1)),
    interval("conch", "a", 0.60, 0.50, 0.70, best=False),
    interval("conch", "mean", 0.71, 0.66, 0.78, ranks=(2, 2), best=False),
    interval("noise", "a", 0.20, None, None, ranks=None), interval("noise", "mean", 0.30, 0.20, 0.40, ranks=None),
]  # fmt: skip


def texts(table):
    return [[cell.text for cell in row.cells] for row in table.rows]


def test_what_moved_is_that_worked_out_by_hand(tmp_path):
    write_tables(tmp_path / "old/s/d", OLD, [pair("conch", "uni", "mean", -0.03, False)], random=["noise"])
    write_tables(tmp_path / "new/s/d", NEW, [pair("conch", "uni", "mean", -0.10, True)], random=["noise"])
    (one,) = compare(tmp_path / "old", tmp_path / "new")
    assert one.title == "s: d"
    estimates, pairs = one.tables
    assert texts(estimates) == [
        ["uni", "mean", "75.00", "[70.00, 80.00]", "1–2", "81.00", "[77.00, 85.00]", "1", "+6.00", "yes"],
        ["conch", "mean", "72.00", "[66.00, 78.00]", "1–2", "71.00", "[66.00, 78.00]", "2", "−1.00", "no"],
        ["noise (random weights)", "a", "20.00", "[10.00, 30.00]", "–", "20.00", "–", "–", "0.00", "no"],
    ]
    assert texts(pairs) == [
        ["conch", "uni", "mean", "−3.00", "[−6.00, 0.00]", "no", "−10.00", "[−13.00, −7.00]", "yes"]
    ]
    lines = "\n".join(one.lines)
    assert "3 of 6 rows" in lines
    assert "May be best by mean: uni, conch in the old report, uni in the new one." in lines
    assert "by a:" not in lines
    assert "cannot show whether a change is larger than chance" in lines
    assert "does not show that the difference itself changed" in lines
    assert "Ranks, and who may be best, depend" not in lines


def test_equal_reports_say_that_nothing_moved(tmp_path):
    for side in ("old", "new"):
        write_tables(tmp_path / side / "s/d", OLD, [pair("conch", "uni", "mean", -0.03, False)])
    (one,) = compare(tmp_path / "old", tmp_path / "new")
    assert (one.tables, len(one.lines)) == ((), 1)
    assert one.lines[0].startswith("Nothing moved")


@pytest.mark.parametrize(("change", "moved"), [(0.00004, False), (0.00006, True), (-0.00006, True)])
def test_what_no_table_would_show_did_not_move(tmp_path, change, moved):
    write_tables(tmp_path / "old/s/d", [interval("uni", "mean", 0.5, 0.4, 0.6)])
    write_tables(tmp_path / "new/s/d", [interval("uni", "mean", 0.5, 0.4, 0.6 + change)])
    (one,) = compare(tmp_path / "old", tmp_path / "new")
    assert bool(one.tables) is moved


def test_encoders_labels_datasets_and_studies_of_one_side_are_named(tmp_path):
    write_tables(tmp_path / "old/s/d", [interval("uni", "mean", 0.5, 0.4, 0.6), interval("uni", "x", 0.5, 0.4, 0.6)])
    write_tables(tmp_path / "new/s/d", [interval(name, "mean", 0.5, 0.4, 0.6) for name in ("uni", "new")])
    write_tables(tmp_path / "old/s/gone", OLD)
    write_tables(tmp_path / "new/s/came", OLD)
    write_tables(tmp_path / "new/other/d", OLD)
    moves = compare(tmp_path / "old", tmp_path / "new")
    text = markdown_comparison(moves)
    for line in (
        "- Only the new report has encoder new.", "- Only the old report has label x.",
        "- May be best by mean: uni in the old report, uni, new in the new one.",
        "- Ranks, and who may be best, depend on which encoders and labels a report has.",
        "- Only the old report has dataset gone.", "- Only the new report has dataset came.",
        "- Only the new report has study other.",
    ):  # fmt: skip
        assert line in text
    assert moves[0].tables == ()  # what both have did not move


def test_single_studies_are_compared_whatever_their_names_and_study_folders_can_be_given(tmp_path, monkeypatch):
    write_tables(tmp_path / "report/first/d", OLD)
    write_tables(tmp_path / "report/second/d", NEW)
    one = compare(tmp_path / "report/first", tmp_path / "report/second")[0]
    assert one.title == "first (old), second (new): d"
    assert [move.title for move in compare(tmp_path, tmp_path / "report")] == ["first: d", "second: d"]
    assert [move.title for move in compare(tmp_path, tmp_path, "second")] == ["second: d"]
    monkeypatch.chdir(tmp_path / "report/first")
    assert compare(Path(), tmp_path, "first")[0].title == "first: d"


def test_other_scores_of_the_recipe_are_not_set_against_each_other(tmp_path):
    per_tile = [row | {"score": "dice_per_tile"} for row in NEW]
    write_tables(tmp_path / "old/s/d", OLD)
    write_tables(tmp_path / "new/s/d", per_tile, dice="per_tile")
    (one,) = compare(tmp_path / "old", tmp_path / "new")
    assert one.tables == ()
    assert "different scores (dice_pooled, dice_per_tile)" in one.lines[0]
    write_tables(tmp_path / "both/s/d", [*OLD, *[row | {"score": "dice_per_tile"} for row in OLD]])
    (one,) = compare(tmp_path / "both", tmp_path / "new")
    assert one.lines[0] == "Score: dice_per_tile; the old report's own is dice_pooled."
    assert len(one.tables[0].rows) == 3


def test_tables_of_real_findings_are_compared(tmp_path, large_study):
    chosen = ("uni", "hibou-l", "virchow2", "random-vits16")
    runs = [run for run in large_study["puma"] if run.record.encoder.name in chosen]
    for side, seeds in (("old", range(3)), ("same", range(3)), ("new", range(3, 6))):
        one = find([run for run in runs if run.record.seed in seeds])
        folder = tmp_path / side / "large/puma"
        folder.mkdir(parents=True)
        (folder / "intervals.parquet").write_bytes(parquet(one.answer.intervals))
        (folder / "pairs.parquet").write_bytes(parquet(one.answer.pairs))
        (folder / "table.csv").write_text(csv_text(one))
    (same,) = compare(tmp_path / "old", tmp_path / "same")
    assert same.lines[0].startswith("Nothing moved")
    (one,) = compare(tmp_path / "old", tmp_path / "new")
    first = one.tables[0].rows[0].cells
    old, new = (
        pl.read_parquet(tmp_path / side / "large/puma/intervals.parquet")
        .filter(pl.col("score") == "dice_pooled", pl.col("label") == "mean", pl.col("encoder") == "hibou-l")["estimate"]
        .item()
        for side in ("old", "new")
    )
    assert [cell.text for cell in first[:2]] == ["hibou-l", "mean"]
    assert first[8].value == pytest.approx(100 * (new - old))
    assert any("random-vits16 (random weights)" in row.cells[0].text for row in one.tables[0].rows)
    assert any(line.startswith("By other scores (dice_per_tile, iou, precision, recall), ") for line in one.lines)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "a folder such as work/report/STUDY"),
        (
            lambda folder: (folder / "s").mkdir(parents=True) or (folder / "s/report.md").touch(),
            "run fmcache report again",
        ),
        (lambda folder: write_tables(folder / "other/d", OLD), "reports of other"),
    ],
)
def test_a_folder_without_reports_is_named_with_the_next_step(tmp_path, prepare, said):
    write_tables(tmp_path / "good/s/d", OLD)
    prepare(tmp_path / "x")
    with pytest.raises(ResultsNotFound, match=said):
        compare(tmp_path / "good", tmp_path / "x", "s")


def test_reports_of_different_studies_are_refused(tmp_path):
    for side, names in (("old", "ab"), ("new", "cd")):
        for name in names:
            write_tables(tmp_path / side / name / "d", OLD)
    with pytest.raises(ResultsNotFound, match="different studies"):
        compare(tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize("name", ["intervals.parquet", "pairs.parquet", "table.csv"])
@pytest.mark.parametrize("how", ["cut", "other", "columns", "absent"])
def test_a_damaged_table_is_named(tmp_path, name, how):
    write_tables(tmp_path / "old/s/d", OLD)
    file = write_tables(tmp_path / "new/s/d", OLD) / name
    if how == "cut":
        file.write_bytes(file.read_bytes()[:40] if name.endswith("parquet") else b"")
    elif how == "other":
        file.write_bytes(b"\xff\x00 PAR1")
    elif how == "columns":
        frame = pl.DataFrame({"encoder": [1]})
        frame.write_parquet(file) if name.endswith("parquet") else frame.write_csv(file)
    elif name != "intervals.parquet":
        file.unlink()
    else:
        return  # a folder without intervals is no report
    with pytest.raises(ResultsCorrupt, match=name) as error:
        compare(tmp_path / "old", tmp_path / "new")
    assert "run fmcache report again" in str(error.value)


def test_a_table_that_would_crash_its_reader_is_an_error(tmp_path, monkeypatch):
    write_tables(tmp_path / "s/d", OLD)
    monkeypatch.setattr("fmcache.report.written.ends_its_reader", lambda path: path.name == "pairs.parquet")
    with pytest.raises(ResultsCorrupt, match=r"pairs\.parquet"):
        compare(tmp_path, tmp_path)


def test_names_are_escaped_in_markdown(tmp_path):
    for side, estimate in (("old", 0.5), ("new", 0.6)):
        write_tables(tmp_path / side / "s/d", [interval("a|b_*", "mean", estimate, 0.4, 0.7)])
    assert r"| a\|b\_\* | mean |" in markdown_comparison(compare(tmp_path / "old", tmp_path / "new"))


def test_the_command_prints_tables_or_markdown_and_ends_well(tmp_path):
    write_tables(tmp_path / "old/s/d", OLD)
    write_tables(tmp_path / "new/s/d", NEW)
    sides = ["report", "--compare", str(tmp_path / "old"), str(tmp_path / "new")]
    shown = CliRunner().invoke(app, [*sides, "--markdown", str(tmp_path / "moved.md")])
    assert shown.exit_code == 0, shown.output
    assert "s: d" in shown.output
    assert "cannot show whether" in " ".join(shown.output.split())
    text = (tmp_path / "moved.md").read_text()
    assert text.startswith("# What moved\n\n## s: d\n")
    printed = CliRunner().invoke(app, [*sides, "--markdown", "-"])
    assert printed.output == text
    assert (
        CliRunner().invoke(app, ["report", "--markdown", "x.md"]).exception.args[0].startswith("--markdown goes with")
    )
