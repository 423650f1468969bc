"""The tables: schema, agreement with their parts, what is null and why, the same bytes for the same input."""

import io

import numpy as np
import polars as pl
import pytest

from fmcache.errors import SpecError
from fmcache.statistics.answer import answer, answers
from fmcache.statistics.evidence import ALL_SCORES, from_counts
from fmcache.statistics.intervals import intervals
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import differences
from fmcache.statistics.schemas import AGAINST_CONTROL, INTERVALS, PAIRS


def why(answered, encoder="e0"):
    return answered.intervals.filter(pl.col("encoder") == encoder)["cannot"].to_list()


def test_tables_have_their_schema_and_a_row_for_each_encoder_or_pair_and_label(study):
    found = answer(study((0.1, 0.5, 0.9, 1.3)), controls=["e0"])
    assert found.intervals.schema == pl.Schema(INTERVALS)
    assert found.pairs.schema == pl.Schema(PAIRS)
    assert found.against_control.schema == pl.Schema(AGAINST_CONTROL)
    assert [len(one) for one in found] == [4 * 3, 3 * 3, 3 * 3]
    assert not any(one.select(pl.col(pl.Float64).is_nan().any()).row(0).count(True) for one in found)


def test_rows_hold_what_the_parts_say(study):
    evidence = study()
    figures, found = linearise(evidence), answer(evidence)
    limits = intervals(figures)
    for column in ("low", "high"):
        assert np.allclose(found.intervals[column].to_numpy().reshape(3, 3), getattr(limits, column))
    shares = found.intervals.select("by_tiles", "by_seeds").sum_horizontal()
    assert np.allclose(shares, 1)
    of = differences(figures, np.array([0]), np.array([2]))
    (row,) = found.pairs.filter(a="e0", b="e2", label="mean").iter_rows(named=True)
    assert np.isclose(row["difference"], of.difference[0, -1])
    assert np.isclose(row["low_alone"], of.limits(0.95)[0][0, -1])


def test_controls_are_never_ranked_and_encoders_are_held_against_the_best_of_them(study):
    evidence = study((0.5, 0.9, 1.4, 2.5), noise=0.1)
    found = answer(evidence, controls=["e0", "e1"])
    ranks = found.intervals.filter(label="mean").select("encoder", "rank_low", "may_be_best").rows()
    assert ranks == [("e0", None, None), ("e1", None, None), ("e2", 2, False), ("e3", 1, True)]
    assert set(found.pairs["a"]) | set(found.pairs["b"]) == {"e2", "e3"}
    mean = found.against_control.filter(label="mean")
    assert mean["control"].to_list() == ["e1", "e1"]
    assert mean["beats"].to_list() == [True, True]
    with pytest.raises(SpecError, match="controls have no results"):
        answer(evidence, controls=["nobody"])


def test_one_encoder_has_an_interval_and_no_rank(study):
    found = answer(study((1.0,)))
    assert found.intervals["low"].null_count() == 0
    assert found.intervals["may_be_best"].null_count() == 3
    assert found.pairs.is_empty()


def test_one_seed_says_so_and_leaves_every_rank_open(study):
    found = answer(study(seeds=1))
    assert why(found) == ["one seed"] * 3
    assert found.intervals["low"].null_count() == 9
    assert found.intervals["rank_high"].to_list() == [3] * 9
    assert found.pairs["difference"].null_count() == 0
    assert (
        found.pairs.select("low", "differs", "p", "could_see", "units_low", "more_seeds").null_count().row(0)
        == (9,) * 6
    )


def test_one_unit_says_so(study):
    assert why(answer(study(groups=["patient"] * 10))) == ["too few units"] * 3


def test_a_label_absent_from_test_has_no_score_and_no_part_in_the_mean(counts):
    made = counts((0.5, 1.0))
    for one in made.values():
        one[:, :, 1] = [0, 7, 0]
    found = answer(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)]))
    assert why(found) == [None, "absent", None]
    first = found.intervals.filter(encoder="e0")["estimate"].to_list()
    assert first[0] == pytest.approx(first[2])
    assert first[1] is None


def test_a_label_of_two_units_leaves_it_and_the_mean_without_interval(counts):
    made = counts((0.5, 1.0))
    for one in made.values():
        one[:, 2:, 1] = 0
    found = answer(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)]))
    assert why(found) == [None, "too few units", "too few units"]
    assert found.intervals.filter(encoder="e0")["units"].to_list() == [10, 2, 2]
    assert found.pairs["differs"].is_null().to_list() == [False, True, True]


def test_unequal_seeds_are_counted_each_and_an_encoder_without_any_is_named(counts):
    made = counts((0.5, 1.0, 1.5), seeds=5)
    made["e1"], made["e2"] = made["e1"][:2], made["e2"][:0]
    found = answer(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)]))
    assert found.intervals.filter(label="mean")["seeds"].to_list() == [5, 2, 0]
    assert why(found, "e2") == ["no whole run"] * 3
    assert why(found, "e1") == [None] * 3
    assert set(found.pairs["b"]) == {"e1"}
    assert found.intervals.filter(encoder="e2")["rank_low"].null_count() == 3


def test_no_whole_run_at_all_is_an_answer_too(counts, recwarn):
    made = {name: one[:0] for name, one in counts((0.5, 1.0)).items()}
    found = answer(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)]))
    assert set(found.intervals["cannot"]) == {"no whole run"}
    assert found.pairs.is_empty()
    assert not recwarn.list


def test_lost_seeds_stay_in_and_the_estimate_without_them_stands_beside(counts):
    made = counts((1.0, 1.2), seeds=5)
    made["e0"][0, :, 1, 2] += made["e0"][0, :, 1, 0]
    made["e0"][0, :, 1, :2] = 0
    found = answer(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)])).intervals.filter(encoder="e0")
    assert found["lost"].to_list() == [0, 1, 1]
    kept = answer(from_counts({"e0": made["e0"][1:]}, ("a", "b"), [f"t{i}" for i in range(10)])).intervals
    assert np.allclose(found["estimate_without"][1:], kept["estimate"][1:])
    assert found["estimate"][1] < found["estimate_without"][1]


def test_nothing_that_varies_is_said_to_be_so():
    made = np.tile(np.array([50, 10, 10]), (4, 6, 1, 1))
    found = answer(from_counts({"x": made, "y": made}, ("a",), list("pqrstu")))
    assert why(found, "x") == ["nothing varied"] * 2
    assert found.pairs["differs"].null_count() == 2


@pytest.mark.parametrize("score", ALL_SCORES)
@pytest.mark.parametrize("how", [{}, {"seeds": 1}, {"units": 2}, {"units": 1}, {"labels": 1}, {"noise": 0.0}])
@pytest.mark.parametrize("folds", [(), (0, 1, 2, 3, 4) * 2])
def test_no_input_warns_and_the_same_input_gives_the_same_bytes(study, score, how, folds, recwarn):
    found = []
    for _ in range(2):
        written = io.BytesIO()
        for table in answer(study(score=score, folds=folds[: how.get("units", 10)], **how), controls=["e1"]):
            assert not any(table.select(pl.col(pl.Float64).is_nan().any()).row(0) or ())
            table.write_parquet(written)
        found.append(written.getvalue())
    assert found[0] == found[1]
    assert not recwarn.list


def test_tables_of_several_scores_are_those_of_each_one_after_another(study):
    evidence = study((0.2, 0.5, 0.9), seeds=3)
    scores = ("per_tile", "iou", "pooled", "recall")
    found = answers(evidence, scores, controls=["e0"])
    names = ["dice_per_tile", "iou", "dice_pooled", "recall"]
    for table in ("intervals", "pairs", "against_control"):
        assert getattr(found, table)["score"].unique(maintain_order=True).to_list() == names
        for score, name in zip(scores, names, strict=True):
            alone = getattr(answer(evidence.scored(score), controls=["e0"]), table)
            assert getattr(found, table).filter(score=name).equals(alone)


def test_a_label_that_a_seed_never_predicts_counts_as_precision_0(counts):
    made = counts((1.0, 1.2), seeds=4)
    made["e0"][0, :, 1, :2] = 0
    evidence = from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)], "precision")
    found = answer(evidence).intervals.filter(encoder="e0", label="b").row(0, named=True)
    tp, fp, _ = made["e0"][1:].sum(axis=1)[:, 1].T
    assert found["estimate"] == pytest.approx((tp / (tp + fp)).sum() / 4)
    assert found["estimate_without"] == pytest.approx((tp / (tp + fp)).mean())
    assert found["lost"] == 1
