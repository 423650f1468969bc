"""The report of a sweep: settings in order, tables, Parquet, figures, page."""

import io
import xml.etree.ElementTree as ET

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from fmcache.report.document import markdown_sweep
from fmcache.report.page import SweepPart, sweep_page
from fmcache.report.sweep import (
    findings_by_setting,
    narrow,
    settings_frame,
    sweep_recipe,
    sweep_tables,
    swept_datasets,
)
from fmcache.report.sweep_figures import MOST_ROWS, has_figure, sweep_caption, sweep_figure
from fmcache.report.sweep_sentences import sweep_sentences
from fmcache.report.tables import terminal
from fmcache.scores.run_files import read_run
from fmcache.specs import Recipe
from fmcache.stages import report as stage
from fmcache.stages.report import report

KINDS = {"decoder.kind": ("paper", "linear"), "fit.passes_per_epoch": (1, 5)}
BOTH = (("x", 1.5), ("y", 0.5))


def part_of(found):
    return SweepPart(found, sweep_sentences(found), sweep_tables(found), sweep_figure(found), sweep_caption(found))


def texts_of(svg):
    return {element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314


def test_settings_have_the_order_of_the_sweep_and_numbers_rise(swept):
    sweep = {"decoder.kind": ("paper", "linear"), "fit.passes_per_epoch": (10, 2)}
    settings = [(k, n) for n in (10, 2) for k in ("linear", "paper")]
    found = swept(sweep, dict.fromkeys(settings, BOTH))
    assert [tuple(value for _, value in setting) for setting in found.settings] == [
        ("paper", 2), ("paper", 10), ("linear", 2), ("linear", 10),
    ]  # fmt: skip
    assert found.fields == ("decoder.kind", "fit.passes_per_epoch")


def test_findings_by_setting_are_those_of_the_studies(swept_findings):
    found = swept_findings({"fit.passes_per_epoch": (5, 1)}, {(5,): BOTH, (1,): BOTH})
    by_dataset = findings_by_setting(found)
    assert list(by_dataset) == ["d"]
    assert list(by_dataset["d"]) == [(("fit.passes_per_epoch", 1),), (("fit.passes_per_epoch", 5),)]
    assert by_dataset["d"][("fit.passes_per_epoch", 5),] is found[0]


def test_the_table_has_the_dice_interval_and_place_of_each_setting(swept):
    found = swept({"fit.passes_per_epoch": (1, 5)}, {(1,): BOTH, (5,): (("x", 0.5), ("y", 1.5))})
    dice, ranks, worst = sweep_tables(found)
    assert dice.columns == ranks.columns == worst.columns == ("encoder", "1", "5")
    of = {row.cells[0].text: row.cells[1:] for row in dice.rows}
    for setting, at in zip(found.settings, (0, 1), strict=True):
        for name in ("x", "y"):
            known = found.findings[setting].intervals_of()[name, "mean"]
            assert of[name][at].text == (
                f"{100 * known['estimate']:.2f} [{100 * known['low']:.2f}, {100 * known['high']:.2f}]"
            )
            assert of[name][at].may_be_best is known["may_be_best"]
    assert [of["x"][at].place for at in (0, 1)] == [1, 2]
    assert {row.cells[0].text: [cell.text[:1] for cell in row.cells[1:]] for row in ranks.rows} == {
        "x": ["1", "2"], "y": ["2", "1"],
    }  # fmt: skip
    assert [cell.text for cell in narrow(dice).rows[0].cells[1:]] == [
        f"{cell.value:.2f}" for cell in dice.rows[0].cells[1:]
    ]
    assert terminal(narrow(dice)).row_count == 2


def test_an_encoder_that_was_not_run_under_a_setting_has_no_value_there(swept):
    found = swept({"fit.passes_per_epoch": (1, 5)}, {(1,): BOTH, (5,): (("x", 1.5),)})
    of = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in sweep_tables(found)[0].rows}
    assert of["y"][1] == "–"
    assert of["y"][0] != "–"
    assert settings_frame([found]).height == 3


def test_collapsed_runs_and_controls_are_marked_and_controls_have_no_rank(swept):
    settings = {(1,): (("x", 1.5), ("raw", -9.0)), (5,): (("x", 1.5), ("raw", 0.0))}
    found = swept({"fit.passes_per_epoch": (1, 5)}, settings, controls=("raw",))
    dice, worst = sweep_tables(found)  # a single encoder has no rank
    summary = found.findings[found.settings[0]].summary
    label, value = summary.worst(summary.rows[-1])
    assert worst.rows[-1].cells[1].text == f"{label} {100 * value:.2f}"
    control = dice.rows[-1]
    assert control.is_control
    assert "†" in control.cells[1].text
    assert "†" not in control.cells[2].text
    assert any(note.startswith("† at least one run: collapsed") for note in dice.notes)


def test_many_settings_give_a_row_for_each_encoder_and_setting(swept):
    found = swept({"fit.passes_per_epoch": range(1, 10)}, {(n,): BOTH for n in range(1, 10)}, tiles=4, seeds=2)
    (table,) = sweep_tables(found)
    assert table.columns[:3] == ("encoder", "passes_per_epoch", "mean Dice")
    assert len(table.rows) == 18
    assert [row.cells[1].text for row in table.rows[:9]] == [str(n) for n in range(1, 10)]


def test_the_parquet_file_has_a_typed_column_for_each_field(swept):
    settings = {(kind, n): BOTH for kind in KINDS["decoder.kind"] for n in (1, 5)}
    frame = settings_frame([swept(KINDS, settings, controls=("y",))])
    assert dict(frame.schema) == {
        "dataset": pl.String, "encoder": pl.String, "decoder.kind": pl.String, "fit.passes_per_epoch": pl.Int64,
        "estimate": pl.Float64, "low": pl.Float64, "high": pl.Float64, "rank": pl.Int64, "may_be_best": pl.Boolean,
    }  # fmt: skip
    assert frame.select("encoder", "decoder.kind", "fit.passes_per_epoch").rows() == [
        (name, kind, n) for name in ("x", "y") for kind in ("paper", "linear") for n in (1, 5)
    ]
    assert frame.filter(pl.col("encoder") == "y")["rank"].null_count() == 4
    flags = settings_frame([swept({"folds": (False, True), "fit.learning_rate": (1e-3,)}, {(False, 1e-3): BOTH})])
    assert (flags.schema["folds"], flags.schema["fit.learning_rate"]) == (pl.Boolean, pl.Float64)


@pytest.mark.filterwarnings("error")
def test_a_numeric_field_is_drawn_as_lines_and_all_others_as_cells(swept):
    numeric = swept({"subset": (0, 5)}, {(5,): BOTH, (0,): BOTH}, trained={5: 5, 0: 15})
    assert [numeric.number(setting) for setting in numeric.settings] == [5, 15]
    assert sweep_tables(numeric)[0].columns == ("encoder", "5", "all")
    shown = texts_of(sweep_figure(numeric)["sweep.svg"])
    assert {"5", "15", "training tiles", "x", "y"} <= shown
    assert "training tiles" in sweep_caption(numeric)
    text = swept({"decoder.kind": ("paper", "linear")}, {("paper",): BOTH, ("linear",): BOTH})
    shown = texts_of(sweep_figure(text)["sweep.svg"])
    assert {"kind paper", "kind linear", "x", "y"} <= shown
    best = text.points["x", text.settings[0]]
    assert f"{100 * best.estimate:.1f} •" in shown
    both = swept(KINDS, {(kind, n): BOTH for kind in KINDS["decoder.kind"] for n in (1, 5)})
    assert "kind linear, passes_per_epoch 5" in texts_of(sweep_figure(both)["sweep.svg"])


def test_too_many_settings_have_no_figure(swept):
    found = swept({"fit.passes_per_epoch": (1, 2)}, {(1,): BOTH, (2,): BOTH})
    (first, *_) = found.findings.values()
    many = found._replace(findings={(("a", n),): first for n in range(MOST_ROWS + 1)})
    assert has_figure(found)
    assert not has_figure(many)
    assert sweep_figure(many) == {}


def test_the_recipe_of_a_sweep_is_shown_as_it_can_be_run_again(swept):
    found = swept({"fit.passes_per_epoch": (1, 5)}, {(1,): BOTH, (5,): BOTH})
    recipe = sweep_recipe([found])
    assert recipe["name"] == "toy"
    assert recipe["sweep"] == {"fit.passes_per_epoch": [1, 5]}
    text = markdown_sweep([part_of(found)], [])
    shown = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert Recipe(**{key: shown[key] for key in ("name", "sweep")}).sweep == {"fit.passes_per_epoch": (1, 5)}
    assert not {"setting", "swept", "sweep_of"} & set(shown)


def test_the_page_of_a_sweep_holds_sentences_tables_figure_and_recipe_with_names_escaped(swept):
    found = swept({"fit.passes_per_epoch": (1, 5)}, {(1,): (("<b>x", 1.5), ("y", 0.5)), (5,): BOTH})
    made = sweep_page([part_of(found)], "name: toy", ["run 1 <i>"]).decode()
    assert "&lt;b&gt;x: " in made
    assert "<b>x" not in made
    assert "run 1 &lt;i&gt;" in made
    assert "data:image/svg+xml;base64," in made
    assert "Which encoder?" not in made
    assert "By setting" in made
    assert sweep_page([part_of(found)], "name: toy", ["run 1 <i>"]).decode() == made


@pytest.fixture
def without_figures(monkeypatch):
    for name in ("figures", "study_figures", "sweep_figure", "picture_file"):
        monkeypatch.setattr(stage, name, lambda *_: {})


@pytest.fixture
def written(swept_findings, write):
    def written(results):
        found = swept_findings({"fit.passes_per_epoch": (1, 5)}, {(1,): BOTH, (5,): BOTH})
        write(results, [run for one in found for run in one.runs])
        return found

    return written


@pytest.mark.usefixtures("without_figures")
def test_a_report_knows_a_sweep_from_its_records_whatever_the_names_of_its_studies(tmp_path, written):
    written(tmp_path / "results")
    made = report(tmp_path / "results", tmp_path / "out", "toy")
    assert [one.path.parent.name for one in made] == ["study-0", "study-1", "toy"]
    assert [len(one.tables) for one in made] == [0, 0, 1]
    assert made[-1].page == tmp_path / "out" / "toy" / "report.html"
    (alone,) = report(tmp_path / "results", tmp_path / "out", "study-1")
    assert alone.path.parent.name == "study-1"
    assert_frame_equal(
        pl.read_parquet(tmp_path / "out" / "toy" / "settings.parquet"),
        settings_frame(swept_datasets("toy", written(tmp_path / "again"))),
    )


@pytest.mark.usefixtures("without_figures")
def test_studies_with_the_names_of_former_sweeps_are_plain_studies(tmp_path, many_runs, write):
    for n in (1, 5):
        runs = many_runs(study=f"toy.views-{n}", tiles=3, seeds=2)
        for run in runs:
            run.record.recipe["sweep"] = {"views": [1, 5], "passes_per_epoch": []}
        write(tmp_path / "results", runs)
    made = report(tmp_path / "results", tmp_path / "out")
    assert [one.path.parent.name for one in made] == ["toy.views-1", "toy.views-5"]
    assert all(one.tables for one in made)
    assert "passes_per_epoch: []" in made[0].path.read_text()


@pytest.mark.usefixtures("without_figures")
def test_a_plain_study_keeps_its_report_beside_that_of_a_sweep_of_the_same_name(tmp_path, written, many_runs, write):
    written(tmp_path / "results")
    write(tmp_path / "results", many_runs(study="toy", tiles=3, seeds=2))
    made = report(tmp_path / "results", tmp_path / "out", "toy")
    assert [one.path.parent.name for one in made] == ["study-0", "study-1", "toy", "toy.sweep"]
    assert "By setting" in made[-1].page.read_text()
    assert "By setting" not in made[-2].page.read_text()


@pytest.mark.usefixtures("without_figures")
def test_damaged_runs_of_a_sweep_are_left_out_and_named(tmp_path, written):
    written(tmp_path / "results")
    path = next((tmp_path / "results" / "study-0").rglob("counts.parquet"))
    path.write_bytes(b"damaged")
    made = report(tmp_path / "results", tmp_path / "out", "toy")
    assert "1 runs are left out" in made[-1].path.read_text()
    assert "left out" in made[-1].page.read_text()
    (run, *_) = [read_run(one.parent) for one in (tmp_path / "results" / "study-1").rglob("run.json")]
    assert run.record.recipe["setting"] == [["fit.passes_per_epoch", 5]]


def test_the_same_results_give_the_same_bytes(swept):
    def made():
        found = swept(KINDS, {(kind, n): BOTH for kind in KINDS["decoder.kind"] for n in (1, 5)})
        file = io.BytesIO()
        settings_frame([found]).write_parquet(file)
        return sweep_figure(found), markdown_sweep([part_of(found)], []), file.getvalue()

    assert made() == made()
