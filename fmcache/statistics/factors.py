"""How much of the variance of a study's scores comes from encoders, from the other settings, from seeds and from tiles.

The scores of all combinations of the levels of some factors (encoder, decoder, budget, ...) are divided into effects.
Factors are fixed: their levels are those that were tried. Seeds are drawn for each combination. Test units are crossed
with all of it, since every run tests the same units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from fmcache.errors import SpecError
from fmcache.statistics.evidence import Evidence, Floats, score_of
from fmcache.statistics.leave_out import seed_scores
from fmcache.statistics.student import quantile

Effect = tuple[int, ...]
"""The axes of the factors in an effect: one axis is a main effect, several are their interaction."""

SEEDS, UNITS, UNITS_BY_SETTING = "seeds", "units", "units by setting"


class Variances(NamedTuple):
    """Variance components of a score, by source, and how far settings agree on the order of encoders.

    sources: the effects of the factors, joined by `` x `` (``encoder``, ``encoder x decoder``), then `SEEDS` (of one
    run), `UNITS` and `UNITS_BY_SETTING` (of a score over all test units of the study). variance, low, high: (source,),
    in squared score units, with 95 % limits; not cut at 0, so that they are unbiased. agreement: the share of what
    concerns encoders that is the same in all settings, Q_e / (sum of Q over the effects with the encoder), 1: their
    differences do not depend on the setting. kendall_w: Kendall's coefficient of concordance of the ranks in the
    settings; it is biased downwards where many encoders are nearly equal. The limits of both are from the same
    jackknife; NaN where they cannot be computed.
    """

    sources: tuple[str, ...]
    variance: Floats
    low: Floats
    high: Floats
    agreement: tuple[float, float, float]
    kendall_w: tuple[float, float, float]

    @property
    def shares(self) -> Floats:
        """Share of each source in the sum of all, (source,); components below 0 count as 0."""
        kept = np.maximum(self.variance, 0.0)
        return np.asarray(kept / kept.sum() if kept.sum() > 0 else np.full(len(kept), np.nan))


def mean_pseudo_values(evidence: Evidence, encoder: str) -> Floats:
    """Return the pseudo-values of an encoder's mean over labels, (seed, unit); see `leave_out.linearise`.

    A label that a single unit holds is left out of the scores without that unit.
    """
    at = evidence.encoders.index(encoder)
    sums, n_units = evidence.sums[at], len(evidence.units)
    others = evidence.holders - evidence.holds > 0
    without = np.nanmean(score_of(sums.sum(axis=1, keepdims=True) - sums, evidence.score, others), axis=-1)
    return np.asarray(n_units * seed_scores(evidence, at)[:, -1:] - (n_units - 1) * without)


def variances(pseudo: Floats, names: Sequence[str]) -> Variances:
    """Return the variance components of a study with all combinations of some factors.

    Parameters
    ----------
    pseudo
        Pseudo-values (level of the first factor, ..., level of the last factor, seed, unit). The first factor is the
        encoder. Every combination has the same number of seeds, and the same units in the same order.
    names
        One name for each factor.

    Raises
    ------
    SpecError
        When a factor has one level, or there are fewer than two seeds or units: nothing can be said then.

    References
    ----------
    Searle, Casella and McCulloch 1992, Variance components: expected mean squares. Efron and Stein 1981 for the
    jackknife.
    """
    if min(pseudo.shape) < 2:
        raise SpecError(
            "the variance cannot be divided",
            expected="at least two levels of every factor, two seeds and two test units",
            found=" x ".join(map(str, pseudo.shape)),
            next_step="run more encoders, settings, seeds or test tiles",
        )
    sources = tuple(" x ".join(names[axis] for axis in effect) for effect in _effects(len(names)))

    def statistics(values: Floats) -> Floats:
        components = list(_components(values))
        return np.array([*components, _agreement(components, len(names)), _kendall_w(values)])

    found = statistics(pseudo)
    half = _half_width(pseudo, statistics)
    low, high = found - half, found + half
    (agreement, w), n = ((found[at], max(low[at], 0.0), min(high[at], 1.0)) for at in (-2, -1)), len(found) - 2
    return Variances((*sources, SEEDS, UNITS, UNITS_BY_SETTING), found[:n], low[:n], high[:n], agreement, w)


def _effects(n_factors: int) -> list[Effect]:
    """Return all effects: main effects first, then interactions of two, and so on."""
    return list(chain.from_iterable(combinations(range(n_factors), n) for n in range(1, n_factors + 1)))


def _components(pseudo: Floats) -> Iterator[float]:
    """Yield the variance of each effect, of seeds, of units, and of units by setting."""
    *levels, n_seeds, n_units = pseudo.shape
    cells, factors = int(np.prod(levels)), len(levels)
    of_seeds = pseudo.mean(axis=-1) - pseudo.mean(axis=(-1, -2))[..., None]
    per_unit = pseudo.mean(axis=-2)
    rest = pseudo - pseudo.mean(axis=-1, keepdims=True) - per_unit[..., None, :]
    rest += pseudo.mean(axis=(-1, -2), keepdims=True)
    seeds = n_units * np.square(of_seeds).sum() / (cells * (n_seeds - 1))
    residual = np.square(rest).sum() / (cells * (n_seeds - 1) * (n_units - 1))
    by_setting = 0.0
    for effect in _effects(factors):
        alone, crossed = (_mean_square(per_unit, one, n_seeds) for one in (effect, (*effect, factors)))
        per_level = pseudo.size / np.prod([levels[axis] for axis in effect])
        by_setting += (crossed - residual) * n_units / per_level
        yield (alone - crossed - seeds + residual) / per_level
    yield (seeds - residual) / n_units
    units = _mean_square(per_unit, (factors,), n_seeds)
    yield (units - residual) / (cells * n_seeds) / n_units
    yield by_setting / n_units


def _mean_square(values: Floats, effect: Effect, n_seeds: int) -> float:
    """Return the mean square of an effect in values (factor, ..., factor, unit) that are means over seeds."""
    sizes = [values.shape[axis] for axis in effect]
    table = values.mean(axis=tuple(axis for axis in range(values.ndim) if axis not in effect))
    for axis in range(table.ndim):  # remove the effects of lower order
        table = table - table.mean(axis=axis, keepdims=True)
    observations = values.size * n_seeds / np.prod(sizes)
    return float(observations * np.square(table).sum() / np.prod([size - 1 for size in sizes]))


def _agreement(components: Sequence[float], n_factors: int) -> float:
    """Return Q_e / (sum of Q over the effects with the encoder); components below 0 count as 0."""
    of_encoder = [max(one, 0.0) for one, effect in zip(components, _effects(n_factors), strict=False) if 0 in effect]
    return of_encoder[0] / sum(of_encoder) if sum(of_encoder) > 0 else float("nan")


def _kendall_w(pseudo: Floats) -> float:
    """Return Kendall's coefficient of concordance of the encoders' ranks in all settings, corrected for ties.

    References
    ----------
    Kendall and Babington Smith 1939, The problem of m rankings.
    """
    scores = pseudo.mean(axis=(-1, -2)).reshape(len(pseudo), -1)
    ranks = rankdata(scores, axis=0)
    n, m = ranks.shape
    counts = [np.unique(one, return_counts=True)[1] for one in ranks.T]
    tied = sum(float((of**3 - of).sum()) for of in counts)
    most = m**2 * (n**3 - n) - m * tied
    spread = np.square(ranks.sum(axis=1) - m * (n + 1) / 2).sum()
    return float(12 * spread / most) if most > 0 else float("nan")


def _half_width(pseudo: Floats, statistics: Callable[[Floats], Floats]) -> Floats:
    """Return half the width of the 95 % limits: the jackknife over units plus that over the places of seeds."""
    variance = np.zeros(1)
    for axis in (-1, -2):
        n = pseudo.shape[axis]
        if n < 3:  # without one of two there is no variance left to divide
            return np.full(len(statistics(pseudo)), np.nan)
        without = np.array([statistics(np.delete(pseudo, i, axis=axis)) for i in range(n)])
        variance = variance + (n - 1) / n * np.square(without - without.mean(axis=0)).sum(axis=0)
    freedom = np.array(min(pseudo.shape[-2:]) - 1.0)
    return np.asarray(quantile(0.975, freedom) * np.sqrt(variance))
