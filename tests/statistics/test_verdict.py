"""The few numbers of a report's first screen agree with the tables."""

import polars as pl

from fmcache.statistics.answer import answer, answers
from fmcache.statistics.evidence import from_counts
from fmcache.statistics.verdict import Verdict, verdict


def test_the_first_is_parted_from_all_who_may_be_best(study):
    found = answer(study((0.2, 1.0, 1.05, 1.1)))
    said = verdict(found, score="pooled")
    best = found.intervals.filter(label="mean").sort("estimate", descending=True)
    assert said.first == best["encoder"][0]
    assert said.may_be_best == tuple(best.filter("may_be_best")["encoder"])
    assert "e0" not in said.may_be_best
    assert len(said.may_be_best) > 1
    pairs = found.pairs.filter(
        pl.col("label") == "mean",
        pl.col("a").is_in(said.may_be_best) & pl.col("b").is_in(said.may_be_best),
        (pl.col("a") == said.first) | (pl.col("b") == said.first),
    )
    assert len(pairs) == len(said.may_be_best) - 1
    assert said.could_see == pairs["could_see"].max()
    low, high = (None if pairs[name].null_count() else pairs[name].max() for name in ("units_low", "units_high"))
    assert (said.units_low, said.units_high) == (low, high)


def test_a_clear_winner_needs_nothing_more(study):
    found = answer(study((-1.0, 2.5), noise=0.1))
    assert verdict(found, score="pooled") == Verdict("e1", ("e1",), None, None, None, False)


def test_with_one_seed_all_may_be_best_and_nothing_is_said_of_units(study):
    said = verdict(answer(study(seeds=1)), score="pooled")
    assert set(said.may_be_best) == {"e0", "e1", "e2"}
    assert said[2:] == (None, None, None, False)


def test_a_lone_encoder_gets_no_verdict(study):
    assert verdict(answer(study((1.0,))), score="pooled") is None


def test_a_verdict_is_by_the_score_that_was_asked(counts):
    made = counts((0.5, 1.5), noise=0.05)
    made["e0"][..., 1] //= 20  # precise, but it finds less
    found = answers(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)]), ("recall", "precision"))
    assert verdict(found, score="recall").first == "e1"
    assert verdict(found, score="precision").first == "e0"
    assert verdict(found, score="iou") is None
