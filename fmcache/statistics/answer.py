"""How certain the comparison of encoders on a dataset is, as tables.

Nothing here is random: the same results give the same bytes. A value that cannot be computed is null, and the table of
intervals gives the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.errors import SpecError
from fmcache.scores.dice import mean_of_defined
from fmcache.statistics.evidence import Evidence, Floats, Score, score_name
from fmcache.statistics.family import Family, family
from fmcache.statistics.intervals import LEVEL, intervals
from fmcache.statistics.leave_out import FEWEST_HOLDERS, Linearised, linearise, seed_scores
from fmcache.statistics.pairs import Differences, all_pairs, differences
from fmcache.statistics.schemas import AGAINST_CONTROL, INTERVALS, MEAN, PAIRS
from fmcache.statistics.settle import settle


class Answer(NamedTuple):
    """Tables by encoder and label; their columns are `INTERVALS`, `PAIRS` and `AGAINST_CONTROL` in `schemas`."""

    intervals: pl.DataFrame
    pairs: pl.DataFrame
    against_control: pl.DataFrame


def answers(evidence: Evidence, scores: Sequence[Score], controls: Collection[str] = ()) -> Answer:
    """Return the tables of several scores, one score after another; the rest is as in `answer`."""
    found = [answer(evidence.scored(score), controls) for score in scores]
    return Answer(*(pl.concat(tables) for tables in zip(*found, strict=True)))


def answer(evidence: Evidence, controls: Collection[str] = ()) -> Answer:
    """Return the tables of a dataset's evidence, for its score.

    Parameters
    ----------
    controls
        Encoders that are never ranked: controls, and those with random weights.

    Raises
    ------
    SpecError
        When a control is not an encoder of the evidence.
    """
    if unknown := sorted(set(controls) - set(evidence.encoders)):
        raise SpecError("controls have no results", expected=", ".join(evidence.encoders), found=", ".join(unknown))
    figures = linearise(evidence)
    apart = np.array([name in controls for name in evidence.encoders])
    there = figures.n_seeds > 0
    ranked = np.flatnonzero(~apart & there)
    subset = figures.only(ranked)
    of = differences(subset, *all_pairs(np.arange(len(ranked))))
    families = [family(of, column, len(ranked)) for column in range(len(evidence.labels) + 1)]
    names = tuple(evidence.encoders[i] for i in ranked)
    return Answer(
        _frame(_interval_rows(evidence, figures, names, families), INTERVALS),
        _frame(_pair_rows(evidence, names, of, families), PAIRS),
        _frame(_control_rows(evidence, figures, ranked, np.flatnonzero(apart & there)), AGAINST_CONTROL),
    )


def _interval_rows(
    evidence: Evidence, figures: Linearised, ranked: tuple[str, ...], families: list[Family]
) -> Iterator[tuple[Any, ...]]:
    limits = intervals(figures)
    place = {name: i for i, name in enumerate(ranked)} if len(ranked) > 1 else {}
    for i, name in enumerate(evidence.encoders):
        lost, without = _lost(evidence, i)
        for column, label in enumerate((*evidence.labels, MEAN)):
            estimate = figures.estimate[i, column]
            ranks: tuple[Any, ...] = (None, None, None)
            if name in place and not np.isnan(estimate):
                of = families[column]
                at = place[name]
                ranks = (int(of.rank_low[at]), int(of.rank_high[at]), bool(of.may_be_best[at]))
            values = (estimate, *(one[i, column] for one in limits))
            why = _cannot(figures, i, column) or ("nothing varied" if np.isnan(values[1]) else None)
            counts = (_holders(figures, column), len(evidence.seeds[i]), int(lost[column]))
            yield (name, label, score_name(evidence.score), *values, *ranks, why, *counts, without[column])


def _cannot(figures: Linearised, encoder: int, column: int) -> str | None:
    """Why a column of an encoder has no interval; None if only a lack of variance can be the reason."""
    if not figures.n_seeds[encoder]:
        return "no whole run"
    if np.isnan(figures.estimate[encoder, column]):
        return "absent"
    if figures.n_seeds[encoder] < 2:
        return "one seed"
    if _holders(figures, column) < FEWEST_HOLDERS:
        return "too few units"
    return None if figures.able[column] else "one fold"


def _holders(figures: Linearised, column: int) -> int:
    """Number of units that hold a label; for the mean, the smallest number among its labels."""
    if column < len(figures.holders):
        return int(figures.holders[column])
    return int(figures.holders[figures.defined].min(initial=figures.n_units)) if figures.defined.any() else 0


def _lost(evidence: Evidence, encoder: int) -> tuple[Floats, Floats]:
    """Number of lost seeds of an encoder by column, and its estimates without them; NaN if no seed is left."""
    lost = np.column_stack([evidence.lost[encoder], evidence.lost[encoder].any(axis=1)])
    scores = seed_scores(evidence, encoder)
    kept = np.where(lost, np.nan, scores)
    return lost.sum(axis=0), mean_of_defined(kept, axis=0)


def _pair_rows(
    evidence: Evidence, names: tuple[str, ...], of: Differences, families: list[Family]
) -> Iterator[tuple[Any, ...]]:
    low, high = of.limits(LEVEL)
    needs = settle(of, len(evidence.units))
    for pair, (a, b) in enumerate(zip(of.a, of.b, strict=True)):
        for column, label in enumerate((*evidence.labels, MEAN)):
            at = (pair, column)
            all_of = families[column]
            known = not np.isnan(all_of.low[pair])
            at_once = (all_of.low[pair], all_of.high[pair], bool(all_of.differs[pair]), all_of.p[pair])
            units = (int(one[at]) if np.isfinite(one[at]) else None for one in (needs.units_low, needs.units_high))
            rest = (low[at], high[at], needs.could_see[at], *units, bool(needs.more_seeds[at]))
            keys = (names[a], names[b], label, score_name(evidence.score), of.difference[at])
            yield (*keys, *(at_once if known else (None,) * 4), *(rest if known else (None,) * 6))


def _control_rows(
    evidence: Evidence, figures: Linearised, ranked: npt.NDArray[np.intp], controls: npt.NDArray[np.intp]
) -> Iterator[tuple[Any, ...]]:
    if not len(controls):
        return
    for column, label in enumerate((*evidence.labels, MEAN)):
        scores = figures.estimate[controls, column]
        best = controls[np.argmax(np.nan_to_num(scores, nan=-1.0))]
        of = differences(figures, ranked, np.full(len(ranked), best))
        low, high = (one[:, column] for one in of.limits(LEVEL))
        for i, encoder in enumerate(ranked):
            beats = None if np.isnan(low[i]) else bool(low[i] > 0)
            names = (evidence.encoders[encoder], evidence.encoders[best], label, score_name(evidence.score))
            yield (*names, of.difference[i, column], low[i], high[i], beats)


def _frame(rows: Iterator[tuple[Any, ...]], schema: dict[str, Any]) -> pl.DataFrame:
    """A table of rows, NaN as null."""
    frame = pl.DataFrame(list(rows), schema=schema, orient="row")
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))
