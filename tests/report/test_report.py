import msgspec
import polars as pl
import pytest

from fmcache.errors import ResultsMismatch, ResultsNotFound
from fmcache.report import tables
from fmcache.report.summary import summarise
from fmcache.scores.parts import part_folder, whole_folder, write_part
from fmcache.scores.table import EncoderInfo, Part, RunRecord
from fmcache.specs import Recipe
from fmcache.stages.report import report


def part(name, seed, a, b, control=False, random_weights=False, **fields):
    """A run on one test tile; a and b are (tp, fp, fn) of two labels."""
    info = EncoderInfo(name, name.upper() + " 50%_", 1_000_000, 8, 16, control, random_weights, "w")
    record = RunRecord(
        study="toy", dataset="d", dataset_title="Toy", encoder=info, seed=seed,
        identity={"seed": seed, "tokens": name, "fit": {"epochs": 2}} | fields.pop("identity", {}),
        recipe=msgspec.to_builtins(Recipe(name="toy")), labels=(("a", "#ff0000"), ("b", "#0000ff")), mpp=0.5,
        tiles={"train": 15, "val": 5, "test": 1}, decoder_params=10, best_epoch=fields.pop("best_epoch", 1),
        val_dice=0.5,
        collapsed=fields.pop("collapsed", ()), fold=fields.pop("fold", None),
        still_falling=fields.pop("still_falling", False), device="cpu", threads=1,
        versions={"fmcache": "0"}, wall_s=1.0,
    )  # fmt: skip
    rows = [("test", "t", "a", *a), ("test", "t", "b", *b), ("val", "v", "a", 9, 0, 0), ("val", "v", "b", 9, 0, 0)]
    counts = pl.DataFrame(rows, schema=["split", "tile", "label", "tp", "fp", "fn"], orient="row")
    curve = {"epoch": [1, 2], "learning_rate": [0.1, 0.0], "loss": [2.0, 1.0], "cross_entropy": [1.0, 0.5]}
    return Part(record, counts, pl.DataFrame(curve | {"dice_loss": [1.0, 0.5], "val_dice": [None, 0.5]}))


STUDY = [
    part("good", 0, (8, 2, 2), (6, 4, 4)),
    part("good", 1, (9, 1, 1), (7, 3, 3)),
    part("bad", 0, (5, 5, 5), (1, 9, 9), still_falling=True),
    part("bad", 1, (5, 5, 5), (0, 0, 10), collapsed=("b",)),
    part("best", 0, (10, 0, 0), (10, 0, 0), control=True, random_weights=True),
]


def write(results, parts):
    for one in parts:
        record = one.record
        with whole_folder(part_folder(results, "toy", "d", record.encoder.name, record.seed, record.fold)) as folder:
            (folder / "decoder.safetensors").write_bytes(b"weights")
            write_part(folder, one)


def test_means_and_deviations_are_those_worked_out_by_hand():
    summary = summarise(STUDY)
    good = summary.rows[0]
    assert good.encoder.name == "good"
    assert good.mean.tolist() == pytest.approx([0.85, 0.65, 0.75])
    assert good.std.tolist() == pytest.approx([0.0707107, 0.0707107, 0.0707107], rel=1e-5)
    assert tables.cells(summary, good)[0] == tables.Cell("85.00 ± 7.07", 1)


def test_controls_stand_last_and_are_never_ranked_however_good():
    summary = summarise(STUDY)
    assert [row.encoder.name for row in summary.rows] == ["good", "bad", "best"]
    assert [summary.place(row, 2) for row in summary.rows] == [1, 2, 0]
    assert "100.00" in tables.markdown(summary)
    assert "**100.00" not in tables.markdown(summary)


def test_one_seed_has_no_deviation():
    summary = summarise(STUDY)
    assert tables.cells(summary, summary.rows[2])[0].text == "100.00"


def test_flags_and_random_weights_are_in_every_output(tmp_path):
    write(tmp_path / "results", STUDY)
    (written,) = report(tmp_path / "results", tmp_path / "out")
    folder = written.path.parent / "d"
    text = written.path.read_text()
    assert "† BAD 50%_: 1 of 2 seeds collapsed (a label was never predicted): 1." in text
    assert "‡ BAD 50%_: the training loss of 1 of 2 seeds" in text
    assert "fixed: the spread is over seeds only" in text
    for shown in (text, (folder / "table.csv").read_text(), *(p.read_text() for p in folder.glob("*.svg"))):
        assert "BEST 50%_ (random weights)" in shown
    latex = (folder / "table.tex").read_text()
    assert r"BEST 50\%\_ (random weights)" in latex
    assert r"\textbf{\underline{85.00 $\pm$ 7.07}}" in latex
    assert {p.suffix for p in folder.glob("size.*")} == {".png", ".svg"}


@pytest.mark.parametrize(("best_epoch", "says"), [(50, "1 of them had their best"), (10, "learning their training")])
def test_a_falling_loss_asks_for_a_larger_budget_only_if_validation_still_rose(best_epoch, says):
    summary = summarise([part("x", 0, (8, 2, 2), (6, 4, 4), still_falling=True, best_epoch=best_epoch)])
    assert any(note.startswith("‡") and says in note for note in tables.notes(summary))


def test_a_report_written_twice_has_the_same_bytes(tmp_path):
    write(tmp_path / "results", STUDY)
    files = []
    for out in ("one", "two"):
        report(tmp_path / "results", tmp_path / out)
        files.append(
            {p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
        )
    assert files[0] == files[1]
    assert len(files[0]) == 9


def test_a_label_absent_everywhere_is_a_dash_and_out_of_the_mean():
    summary = summarise([part("x", 0, (8, 2, 2), (0, 0, 0))])
    assert [cell.text for cell in tables.cells(summary, summary.rows[0])] == ["80.00", "–", "80.00"]


def test_runs_of_different_budgets_are_never_mixed():
    with pytest.raises(ResultsMismatch, match=r"fit\.epochs"):
        summarise([*STUDY, part("good", 2, (1, 1, 1), (1, 1, 1), identity={"fit": {"epochs": 3}})])
    with pytest.raises(ResultsMismatch, match="tokens"):
        summarise([*STUDY, part("good", 2, (1, 1, 1), (1, 1, 1), identity={"tokens": "other"})])


def test_a_study_that_is_not_there_is_told_from_those_that_are(tmp_path):
    with pytest.raises(ResultsNotFound, match="fmcache fit"):
        report(tmp_path / "results", tmp_path / "out")
    write(tmp_path / "results", STUDY)
    with pytest.raises(ResultsNotFound, match="results of toy"):
        report(tmp_path / "results", tmp_path / "out", "else")


def in_folds(*dice, encoder="x", seeds=2, **fields):
    """One run for every value, fold by fold, whose Dice of both labels is that many percent."""
    runs = [(i // seeds, i % seeds, value) for i, value in enumerate(dice)]
    return [
        part(encoder, seed, (d, 100 - d, 100 - d), (d, 100 - d, 100 - d), fold=fold,
             identity={"splits": {"test": [f"t{fold}"]}}, **fields)
        for fold, seed, d in runs
    ]  # fmt: skip


def test_the_spread_over_folds_and_that_over_seeds_are_told_apart(tmp_path):
    # fold means 50, 70, 90; within each fold the two seeds are 2 apart
    parts = in_folds(49, 51, 69, 71, 89, 91)
    (row,) = summarise(parts).rows
    assert row.runs == ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
    assert row.mean[-1] == pytest.approx(0.70)
    assert row.std_of_folds == pytest.approx(0.20)
    assert row.std_of_seeds == pytest.approx(0.01 * 2**0.5)
    write(tmp_path / "results", parts)
    (written,) = report(tmp_path / "results", tmp_path / "out")
    text = written.path.read_text()
    assert "standard deviation over 3 folds and their seeds" in text
    assert "over folds (each the mean of its seeds) 20.00; over seeds within a fold 1.41" in text
    assert "no standard error" in text
    assert "fixed" not in text.partition("## Recipe")[0]
    assert "| seeds | 2 |" in text


def test_flags_of_runs_name_fold_and_seed():
    summary = summarise(in_folds(50, 60, seeds=1, collapsed=("b",)))
    assert any("2 of 2 runs collapsed" in n and "fold 0 seed 0, fold 1 seed 0" in n for n in tables.notes(summary))


def test_rows_that_lack_a_fold_are_said_not_to_compare():
    notes = tables.notes(summarise(in_folds(50, 60, seeds=1) + in_folds(50, seeds=1, encoder="y")))
    assert any("do not compare" in note for note in notes)


def test_folds_of_two_cuts_or_of_a_fixed_split_are_never_mixed():
    folds = in_folds(50, 60, seeds=1)
    with pytest.raises(ResultsMismatch, match="fixed split"):
        summarise([*folds, part("y", 0, (1, 1, 1), (1, 1, 1))])
    again = part("x", 0, (1, 1, 1), (1, 1, 1), fold=2, identity={"splits": {"test": ["t0"]}})
    with pytest.raises(ResultsMismatch, match="two different cuts"):
        summarise([*folds, again])
    other = part("y", 0, (1, 1, 1), (1, 1, 1), fold=0, identity={"splits": {"test": ["t9"]}})
    with pytest.raises(ResultsMismatch, match=r"splits\.test"):
        summarise([*folds, other])
