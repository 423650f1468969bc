import pytest

from fmcache.errors import ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.report.dataset_tables import dice_by_encoder
from fmcache.report.findings import find
from fmcache.report.notes import notes
from fmcache.report.summary import summarise
from fmcache.report.tables import markdown
from fmcache.stages.report import report


def test_means_and_deviations_are_those_worked_out_by_hand(study):
    found = find(study)
    good = found.summary.rows[0]
    assert good.encoder.name == "good"
    assert good.mean.tolist() == pytest.approx([0.85, 0.65, 0.75])
    assert good.std.tolist() == pytest.approx([0.0707107, 0.0707107, 0.0707107], rel=1e-5)
    assert dice_by_encoder(found).rows[0].cells[1].text == "85.00 ± 7.07"
    assert dice_by_encoder(found).rows[0].cells[1].place == 1


def test_controls_stand_last_and_are_never_ranked_however_good(study):
    found = find(study)
    summary = found.summary
    assert [row.encoder.name for row in summary.rows] == ["good", "bad", "best"]
    assert [summary.place(row, 2) for row in summary.rows] == [1, 2, 0]
    assert "100.00" in markdown(dice_by_encoder(found))
    assert "**100.00" not in markdown(dice_by_encoder(found))


def test_one_seed_has_no_deviation(study):
    assert dice_by_encoder(find(study)).rows[2].cells[1].text == "100.00"


def test_flags_and_random_weights_are_in_every_output(tmp_path, study, write):
    write(tmp_path / "results", study)
    (written,) = report(tmp_path / "results", tmp_path / "out")
    folder = written.path.parent / "d"
    text = written.path.read_text()
    assert "| BAD 50%\\_† |" in text
    assert (
        r"- † collapsed (a label of the test tiles never predicted, or with a Dice below 5%): BAD 50%\_: 1 of 2" in text
    )
    assert "fixed: neither ± nor the interval covers other training tiles" in text
    assert r"BEST 50%\_ (random weights)" in text
    with_controls = [folder / f"{name}.svg" for name in ("size", "cost", "intervals", "labels", "curves")]
    for shown in ((folder / "table.csv").read_text(), *(path.read_text() for path in with_controls)):
        assert "BEST 50%_ (random weights)" in shown
    latex = (folder / "table.tex").read_text()
    assert r"BEST 50\%\_ (random weights)" in latex
    assert r"\textbf{\underline{85.00 $\pm$ 7.07}}" in latex
    assert {p.suffix for p in folder.glob("size.*")} == {".png", ".svg"}


def test_the_method_and_its_references_are_files_and_the_report_holds_the_method(tmp_path, study, write):
    write(tmp_path / "results", study)
    (written,) = report(tmp_path / "results", tmp_path / "out")
    text = (written.path.parent / "method.md").read_text()
    assert r"BAD 50%\_ (1.0 million parameters" in text
    assert text.removeprefix("# Method") in written.path.read_text()
    assert "@inproceedings{dozat2016nadam," in (written.path.parent / "references.bib").read_text()


def test_a_report_written_twice_has_the_same_bytes(tmp_path, study, write):
    write(tmp_path / "results", study)
    files = []
    for out in ("one", "two"):
        report(tmp_path / "results", tmp_path / out)
        files.append(
            {p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
        )
    assert files[0] == files[1]
    assert {p.name for p in files[0] if p.suffix == ".parquet"} == {
        f"{stem}.parquet" for stem in ("intervals", "pairs", "against_control", "runs", "costs")
    }


def test_what_a_killed_report_left_is_swept_by_the_next(tmp_path, study, write, monkeypatch):
    monkeypatch.setattr("fmcache.stages.report.figures", lambda _: {})  # seconds, and nothing to do with it
    write(tmp_path / "results", study)
    (one,) = report(tmp_path / "results", tmp_path / "out")
    left = [one.path.with_name(".report.md.77.partial"), one.path.parent / "toy" / ".table.csv.77.partial"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    report(tmp_path / "results", tmp_path / "out")
    assert not any(file.exists() for file in left)


def test_a_label_absent_everywhere_is_a_dash_and_out_of_the_mean(part):
    (row,) = dice_by_encoder(find([part("x", 0, (8, 2, 2), (0, 0, 0))])).rows
    assert [cell.text for cell in row.cells[1:4]] == ["80.00", "–", "80.00"]


def test_runs_of_different_budgets_are_never_mixed(study, part):
    with pytest.raises(ResultsMismatch, match=r"fit\.epochs"):
        summarise([*study, part("good", 2, (1, 1, 1), (1, 1, 1), identity={"fit": {"epochs": 3}})])
    with pytest.raises(ResultsMismatch, match="tokens"):
        summarise([*study, part("good", 2, (1, 1, 1), (1, 1, 1), identity={"tokens": "other"})])


def test_a_missing_study_is_reported_with_the_existing_ones(tmp_path, study, write):
    with pytest.raises(ResultsNotFound, match="fmcache fit"):
        report(tmp_path / "results", tmp_path / "out")
    write(tmp_path / "results", study)
    with pytest.raises(ResultsNotFound, match="results of toy"):
        report(tmp_path / "results", tmp_path / "out", "else")


def test_the_spread_over_folds_and_the_spread_over_seeds_are_separate(tmp_path, write, in_folds):
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
    assert "trained on 3 folds and is scored on the test tiles of all folds together" in text
    assert "over folds (each the mean of its seeds) 20.00; over seeds within a fold 1.41" in text
    assert "not a standard error" in text
    assert "fixed" not in text.partition("## Recipe")[0]
    assert "| seeds | 2 |" in text


def test_an_encoder_that_lacks_a_fold_has_no_dice_and_is_named(in_folds):
    found = find(in_folds(50, 60, seeds=1) + in_folds(50, seeds=1, encoder="y"))
    assert [row.cells[3].text for row in dice_by_encoder(found).rows] == ["55.00", "–"]
    assert any(line.startswith("Left out") and "Y 50%_ (seed 0)" in line for line in notes(found))
    assert any(line == "No interval (no seed tested all tiles): Y 50%_." for line in notes(found))


def test_folds_of_two_cuts_or_of_a_fixed_split_are_never_mixed(part, in_folds):
    folds = in_folds(50, 60, seeds=1)
    with pytest.raises(ResultsMismatch, match="fixed split"):
        summarise([*folds, part("y", 0, (1, 1, 1), (1, 1, 1))])
    again = part("x", 0, (1, 1, 1), (1, 1, 1), fold=2, identity={"splits": {"test": ["t0"]}})
    with pytest.raises(ResultsMismatch, match="two different divisions"):
        summarise([*folds, again])
    other = part("y", 0, (1, 1, 1), (1, 1, 1), fold=0, identity={"splits": {"test": ["t9"]}})
    with pytest.raises(ResultsMismatch, match=r"splits\.test"):
        summarise([*folds, other])


@pytest.mark.parametrize("name", ["counts.parquet", "curve.parquet", "run.json"])
def test_a_damaged_run_is_left_out_by_name_and_the_others_are_reported(part, write, tmp_path, name):
    write(tmp_path / "results", [part("x", 0, (8, 2, 2), (6, 4, 4)), part("y", 0, (5, 5, 5), (1, 9, 9))])
    file = next((tmp_path / "results").glob(f"*/*/y/*/{name}"))
    good = file.read_bytes()
    file.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    (one,) = report(tmp_path / "results", tmp_path / "report")
    assert [name in str(error) and "fmcache fit" in str(error) for error in one.damaged] == [True]
    page = one.path.read_text()
    assert "1 runs are left out" in page
    assert "y/seed-000" in page.replace("\\", "")
    assert "Y 50" not in page
    assert "X 50" in page


def test_a_study_of_damaged_runs_alone_is_refused_with_the_reason(part, write, tmp_path):
    write(tmp_path / "results", [part("x", 0, (8, 2, 2), (6, 4, 4))])
    next((tmp_path / "results").rglob("counts.parquet")).unlink()
    with pytest.raises(ResultsCorrupt, match=r"counts\.parquet is missing"):
        report(tmp_path / "results", tmp_path / "report")
