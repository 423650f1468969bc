"""All pairs jointly: moderated t, Holm's correction, rank intervals, and which encoders may be best.

With few units the variance of a pair is a poor estimate. The pair that looks most different is then often a pair whose
variance was estimated too small. Shrinking the variances of all pairs towards a common value reduces this error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import psi

from fmcache.statistics.evidence import Flags, Floats
from fmcache.statistics.pairs import Differences
from fmcache.statistics.student import quantile, trigamma, trigamma_inverse, two_sided

ERROR = 0.05
"""Family-wise error of a column."""


class Family(NamedTuple):
    """All pairs of one column.

    low, high: (pair,), simultaneous limits of the difference; NaN where they are unknown. p: (pair,), adjusted by
    Holm. differs: (pair,). rank_low, rank_high: (encoder,), from 1. may_be_best: (encoder,).
    """

    low: Floats
    high: Floats
    p: Floats
    differs: Flags
    rank_low: Floats
    rank_high: Floats
    may_be_best: Flags


def family(of: Differences, column: int, n_encoders: int) -> Family:
    """Return limits, tests and ranks for all pairs of `n_encoders` encoders in a column.

    `of.a` and `of.b` are positions among these encoders. A pair without a variance (one seed, too few units) never
    counts as different: its encoders share ranks, and either may be best.

    References
    ----------
    Holm 1979, A simple sequentially rejective multiple test procedure. Smyth 2004. Hsu 1996, Multiple comparisons
    (comparison with the best).
    """
    variance, freedom = moderate(
        of.variance_of_all[:, column], of.freedom_of_all[:, column], float(of.unit_freedom[column])
    )
    d = of.difference[:, column]
    error = np.sqrt(variance)
    t = np.divide(d, error, out=np.zeros_like(d), where=error > 0)
    p = holm(np.where(error > 0, two_sided(t, freedom), 1.0))
    differs = p <= ERROR
    half = np.where(error > 0, quantile(1 - ERROR / 2 / max(len(d), 1), freedom) * error, np.nan)
    wins = np.zeros((n_encoders, n_encoders), bool)
    wins[of.a, of.b], wins[of.b, of.a] = differs & (d > 0), differs & (d < 0)
    ahead = np.zeros((n_encoders, n_encoders))
    ahead[of.a, of.b], ahead[of.b, of.a] = t, -t
    limit = quantile(1 - ERROR / max(n_encoders - 1, 1), freedom)
    beaten_by, beats = wins.sum(axis=0), wins.sum(axis=1)
    kept = np.asarray((ahead <= limit).all(axis=0))
    return Family(d - half, d + half, p, differs, 1.0 + beaten_by, 1.0 * n_encoders - beats, kept)


def moderate(variance: Floats, freedom: Floats, unit_freedom: float) -> tuple[Floats, float]:
    """Return the variances of pairs, shrunk towards a common value, and their degrees of freedom.

    Parameters
    ----------
    variance, freedom
        (pair,). NaN and 0 are left unchanged and are not used.
    unit_freedom
        Upper limit of the degrees of freedom of a pair before shrinking.

    References
    ----------
    Smyth 2004, Linear models and empirical Bayes methods for assessing differential expression.
    """
    good = variance > 0
    if not good.any():
        return variance, 1.0
    b = float(min(unit_freedom, np.median(freedom[good])))
    if good.sum() < 2:
        return variance, b
    z = np.log(variance[good])
    excess = float(z.var(ddof=1)) - trigamma(b / 2)
    prior = min(2 * trigamma_inverse(excess) if excess > 0 else np.inf, 2 * b)
    common = np.exp(z.mean() - psi(b / 2) + np.log(b / 2) + psi(prior / 2) - np.log(prior / 2))
    return np.where(good, (prior * common + b * variance) / (prior + b), variance), b + prior


def holm(p: Floats) -> Floats:
    """Return p-values (pair,) adjusted jointly by Holm's method."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
