"""The answer in a few numbers: who is first, who may be best, and what would part them."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from fmcache.statistics.answer import Answer
from fmcache.statistics.schemas import MEAN


class Verdict(NamedTuple):
    """What one column of an `Answer` says of the encoders that are no controls.

    first: the encoder of the highest estimate. may_be_best: those that cannot be excluded, by estimate, `first` among
    them. could_see: of the pairs of `first` and another of them, the largest difference that the study might have
    missed. units_low, units_high: test units that would part `first` from all of them, a range, each pair taken alone;
    None: no limit can be given, or there is nothing to part. more_seeds: some of the pairs are hidden by seeds alone.
    """

    first: str
    may_be_best: tuple[str, ...]
    could_see: float | None
    units_low: int | None
    units_high: int | None
    more_seeds: bool


def verdict(found: Answer, label: str = MEAN) -> Verdict | None:
    """Return the verdict on a label or on the mean; None where fewer than two encoders are ranked."""
    ranked = found.intervals.filter(pl.col("label") == label, pl.col("may_be_best").is_not_null())
    if ranked.is_empty():
        return None
    names = ranked.sort("estimate", "encoder", descending=[True, False]).filter("may_be_best")["encoder"].to_list()
    first, others = names[0], names[1:]
    between = pl.any_horizontal(
        *((pl.col(one) == first) & pl.col(other).is_in(others) for one, other in (("a", "b"), ("b", "a")))
    )
    pairs = found.pairs.filter(pl.col("label") == label, between)
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
    """The largest of a column; null where any is null, which stands for no limit."""
    return pl.when(pl.col(column).is_null().any()).then(None).otherwise(pl.col(column).max()).alias(column)
