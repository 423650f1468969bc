"""The answer in a few numbers: which encoder is first, which may be best, and how many units would separate them."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from fmcache.statistics.answer import Answer
from fmcache.statistics.evidence import Score, score_name
from fmcache.statistics.schemas import MEAN


class Verdict(NamedTuple):
    """The verdict of one column of an `Answer` on the encoders that are not controls.

    first: the encoder with the highest estimate. may_be_best: the encoders that may be best, sorted by estimate,
    including `first`. could_see: the largest `could_see` of the pairs of `first` and another of these encoders; the
    study may have missed a difference up to it. units_low, units_high: range of the number of test units that would
    separate `first` from all of them, with each pair taken alone; None: no limit can be given, or no other encoder may
    be best. more_seeds: in some of the pairs, the variance by seeds alone hides the difference.
    """

    first: str
    may_be_best: tuple[str, ...]
    could_see: float | None
    units_low: int | None
    units_high: int | None
    more_seeds: bool


def verdict(found: Answer, label: str = MEAN, *, score: Score) -> Verdict | None:
    """Return the verdict on a label or on the mean, by one score; None where fewer than two encoders are ranked."""
    asked = (pl.col("label") == label) & (pl.col("score") == score_name(score))
    ranked = found.intervals.filter(asked, pl.col("may_be_best").is_not_null())
    if ranked.is_empty():
        return None
    names = ranked.sort("estimate", "encoder", descending=[True, False]).filter("may_be_best")["encoder"].to_list()
    first, others = names[0], names[1:]
    between = pl.any_horizontal(
        *((pl.col(one) == first) & pl.col(other).is_in(others) for one, other in (("a", "b"), ("b", "a")))
    )
    pairs = found.pairs.filter(asked, between)
    known = pairs.filter(pl.col("could_see").is_not_null())
    if known.is_empty() or len(known) < len(pairs):
        return Verdict(first, tuple(names), None, None, None, False)
    needs = known.select(
        pl.col("could_see").max(),
        *(_most(column) for column in ("units_low", "units_high")),
        pl.col("more_seeds").any(),
    )
    return Verdict(first, tuple(names), *needs.row(0))


def _most(column: str) -> pl.Expr:
    """The largest value of a column; null if any value is null, because null means no limit."""
    return pl.when(pl.col(column).is_null().any()).then(None).otherwise(pl.col(column).max()).alias(column)
