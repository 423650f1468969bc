"""The files that other programs read: their columns are documented, their bytes do not vary, tables come from them."""

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fmcache.report import frames, further_scores
from fmcache.report.dataset_tables import dice_by_encoder
from fmcache.report.factor_table import FACTORS
from fmcache.report.findings import find
from fmcache.report.paper_values import PAPER
from fmcache.report.rank_agreement import AGREEMENT
from fmcache.report.sweep import SETTINGS
from fmcache.statistics.schemas import AGAINST_CONTROL, INTERVALS, PAIRS

SCHEMAS = {
    "intervals": INTERVALS, "pairs": PAIRS, "against_control": AGAINST_CONTROL, "runs": frames.RUNS,
    "costs": frames.COSTS, "paper": PAPER, "agreement": AGREEMENT, "boundary": further_scores.BOUNDARY,
    "calibration": further_scores.CALIBRATION, "settings": SETTINGS, "factors": FACTORS,
}  # fmt: skip
PAGE = Path(frames.__file__).with_name("TABLES.md").read_text(encoding="utf-8")


def documented():
    sections = re.findall(r"^## (\w+)\.parquet\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return {name: re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.M) for name, text in sections}


def test_the_page_names_every_file_and_column_with_its_type():
    expected = {name: [(column, str(kind())) for column, kind in schema.items()] for name, schema in SCHEMAS.items()}
    assert documented() == expected


@pytest.mark.parametrize("kind", [{}, {"folds": 3}, {"seeds": 1}, {"tiles": 1}, {"controls": ("y",)}])
def test_frames_have_the_documented_columns_and_the_same_bytes_each_time(many_runs, kind):
    made = frames.dataset_frames(find(many_runs(**kind)))
    elsewhere = {"paper", "agreement", "boundary", "calibration", "settings", "factors"}
    assert set(made) == set(SCHEMAS) - elsewhere
    again = frames.dataset_frames(find(many_runs(**kind)[::-1]))
    for name, frame in made.items():
        assert dict(frame.schema) == SCHEMAS[name]
        content = frames.parquet(frame)
        assert pl.read_parquet(io.BytesIO(content)).equals(frame)
        assert content == frames.parquet(again[name])


@pytest.mark.parametrize("kind", [{}, {"folds": 3}, {"lacking": ("c",), "dice": "per_tile"}, {"dice": "puma"}])
def test_means_and_deviations_of_tables_and_estimates_come_from_the_rows_of_seeds(many_runs, kind):
    found = find(many_runs(**kind))
    seeds = frames.dataset_frames(found)["runs"].filter(pl.col("fold").is_null())
    own = f"dice_{found.summary.reduction}"
    for row, shown in zip(found.summary.rows, dice_by_encoder(found).rows, strict=True):
        for i, label in enumerate(found.summary.columns):
            values = seeds.filter(
                pl.col("encoder") == row.encoder.name, pl.col("label") == label, pl.col("score") == own
            )["value"]
            assert len(values) == 5
            text = "–" if values.null_count() else f"{100 * values.mean():.2f} ± {100 * values.std():.2f}"
            assert shown.cells[1 + i].text == text
    of_all = seeds.group_by("encoder", "label", "score").agg(pl.col("value").mean())
    joined = of_all.join(found.answer.intervals, on=["encoder", "label", "score"], how="full")
    assert len(joined) == len(of_all) == len(found.answer.intervals)
    np.testing.assert_allclose(joined["value"].fill_null(-1), joined["estimate"].fill_null(-1), atol=1e-12)


def test_runs_of_folds_have_rows_of_their_own(in_folds):
    runs = frames.dataset_frames(find(in_folds(10, 90, seeds=1)))["runs"]
    pooled = runs.filter(pl.col("score") == "dice_pooled", pl.col("label") == "mean")
    assert pooled.select("fold", "value").rows() == [(0, 0.1), (1, 0.9), (None, 0.5)]


def test_agreement_of_datasets_and_with_the_paper_is_one_file_of_the_study(many_runs):
    quality = [(name, 2.0 - i / 2) for i, name in enumerate(("uni", "conch", "phikon", "virchow2"))]
    puma = (("tumour", "#d55e00"), ("stroma", "#009e73"), ("other", "#0072b2"))
    one = find(many_runs(quality, dataset="puma", labels=puma, mpp=0.23))
    other = find(many_runs([*quality[::-1], ("more", 1.0)], dataset="d2"))
    frame = frames.study_frames([one, other])["agreement"]
    assert dict(frame.schema) == AGREEMENT
    assert frame.select("a", "b", "encoders").rows() == [("puma", "d2", 4), ("puma", "paper", 4)]
    # the paper has conch and phikon between uni and virchow2, in our order
    assert frame["tau"].to_list() == [1.0, 1.0]
    assert (frame["tau_low"] <= frame["tau_high"]).all()
    assert frame["cannot"].null_count() == 2
    assert frames.study_frames([other]) == {}


def test_the_csv_keeps_its_columns_in_their_order(many_runs):
    head = frames.csv_text(find(many_runs())).splitlines()[0].split(",")
    assert head[:17] == [
        "study", "dataset", "encoder", "title", "label", "seeds", "dice_mean_percent", "dice_std_percent",
        "collapsed_seeds", "still_falling_seeds", "control", "random_weights", "params", "dice",
        "validation_rising_seeds", "training_ended_seeds", "ending_unknown_seeds",
    ]  # fmt: skip
    assert head[17:20] == ["low_percent", "high_percent", "no_interval"]


def test_a_run_has_no_score_for_a_label_that_its_fold_lacks_even_if_it_predicted_it(part):
    lacks, holds = ((8, 2, 2), (0, 5, 0)), ((8, 2, 2), (5, 5, 5))
    runs = [
        part("x", 0, *tested, fold=fold, identity={"splits": {"test": [f"t{fold}"]}})
        for fold, tested in enumerate((lacks, holds))
    ]
    rows = frames.dataset_frames(find(runs))["runs"].filter(pl.col("score") == "dice_pooled")
    assert rows.filter(label="b").select("fold", "value").rows() == [(0, None), (1, 0.5), (None, 0.4)]
    assert rows.filter(label="mean", fold=0)["value"].to_list() == [0.8]
