"""Whether two sets of scores rank the same encoders alike: two datasets, or ours and published ones.

Datasets are never pooled; their ranks are compared. The interval answers the question of a reader of two tables: would
these same encoders be ranked alike, with endless test units and seeds? It says nothing of other encoders.

The scores of encoders scatter around their true values. The observed agreement is therefore on average nearer to 0 than
the true one, and draws around the observed scores bring in the same error a second time. Hence the true scores of both
sides are modelled as normal, with unknown spreads and correlation, and agreement is taken of draws from what the model
knows after the data. The model borrows too much where encoders fall into two groups, so the limits span those of both
kinds of draws. This is the only place of this room where something is drawn; the key is fixed.

How often 95 % limits of tau held the truth in simulated pairs of studies (`pipelines/rank_agreement.py`; 5, 8 and 15
encoders; 10, 20 and 40 tiles; 60 pairs a cell, so a figure is known to about 0.06), lowest and highest cell:

======================================  =====================  =================  ============
method                                  unrelated and related  in the same order  two groups
======================================  =====================  =================  ============
this module                             0.92 to 1.00           0.95 to 1.00       0.97 to 1.00
the model alone (100 pairs)             0.93 to 1.00           0.97 to 1.00       0.48 to 1.00
draws around the observed scores        0.63 to 1.00           0.00 to 0.95       0.00 to 0.98
bootstrap over encoders                 0.93 to 1.00           0.02 to 1.00       0.00 to 1.00
jackknife over encoders, Fisher's z     0.93 to 1.00           0.00 to 0.88       0.00 to 0.98
======================================  =====================  =================  ============

The limits are somewhat too wide: 0.98 on average, 0.99 with five encoders.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from fmcache.identity import random_key
from fmcache.statistics.evidence import Evidence, Floats
from fmcache.statistics.family import moderate
from fmcache.statistics.intervals import LEVEL
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import all_pairs, differences
from fmcache.statistics.schemas import MEAN

FEWEST_ENCODERS = 4
"""If fewer encoders are on both sides, agreement gets no interval."""
DRAWS = 2000
CORRELATIONS = np.linspace(-1, 1, 21)
"""Correlations of the true scores that are tried, all equally likely before the data. Both ends count: true scores can
be in the same order exactly."""
SPREADS = np.linspace(0.05, 2, 12)
"""Standard deviations of the true scores that are tried, as multiples of that of the observed ones."""
LEAST_SHARE = 0.05
"""Smallest variance of an encoder, as a share of the mean over encoders."""


class Side(NamedTuple):
    """One score of each encoder and the variance of its error, by name; an unknown variance is NaN."""

    score: Mapping[str, float]
    variance: Mapping[str, float]


class Agreement(NamedTuple):
    """Rank agreement of `n` encoders that are on both sides: Kendall's tau-b and Spearman's rho, -1 .. 1.

    low, high: 95 % limits of the true agreement of these encoders. The observed value can be below `tau_low`, because
    errors of the scores lower it. None where it cannot be computed; cannot: why there are no limits (``too few
    encoders``; ``no variance``: one seed, or too few units; ``all equal`` scores on a side), else None.
    """

    n: int
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    rho: float | None
    rho_low: float | None
    rho_high: float | None
    cannot: str | None


def side_of(evidence: Evidence, controls: Collection[str] = (), label: str = MEAN) -> Side:
    """Return the scores of a dataset's encoders, without controls, for a label or the mean.

    What units do to all encoders alike is no part of the variances, because it does not change ranks. The variance of a
    pair's difference (`fmcache.statistics.pairs`, moderated as in `family`) is taken as the sum of those of its
    encoders, and solved for them by least squares.
    """
    figures = linearise(evidence)
    column = evidence.labels.index(label) if label != MEAN else len(evidence.labels)
    known = ~np.isnan(figures.estimate[:, column])
    ranked = np.array([i for i, name in enumerate(evidence.encoders) if known[i] and name not in controls], int)
    names = [evidence.encoders[i] for i in ranked]
    of = differences(figures, *all_pairs(np.arange(len(evidence.encoders))[ranked]))
    pairs, _ = moderate(of.variance[:, column], of.freedom[:, column], float(of.unit_freedom[column]))
    of_pairs = np.zeros((len(figures.estimate),) * 2)
    of_pairs[of.a, of.b] = of_pairs[of.b, of.a] = pairs
    sums = of_pairs[ranked][:, ranked].sum(axis=1)
    n = len(ranked)
    if n < FEWEST_ENCODERS:
        variance = np.full(n, np.nan)
    else:
        total = sums.sum() / (2 * (n - 1))
        variance = np.maximum((sums - total) / (n - 2), LEAST_SHARE * total / n)
    scores = figures.estimate[ranked, column]
    return Side(dict(zip(names, scores.tolist(), strict=True)), dict(zip(names, variance.tolist(), strict=True)))


def published(mean: Mapping[str, float], std: Mapping[str, float], seeds: int) -> Side:
    """Return published scores: means and standard deviations (n - 1) over `seeds` seeds.

    Nothing is known of the variance by test units, so agreement with them is for the test units that were used there.
    """
    return Side(mean, {name: std[name] ** 2 / seeds for name in mean})


def agreement(a: Side, b: Side) -> Agreement:
    """Return the rank agreement of the encoders that are on both sides.

    The true scores of an encoder on both sides are taken as bivariate normal over encoders, with flat priors on both
    standard deviations and on their correlation; the errors as normal with the variances of the sides, independent
    between sides. The limits span the 2.5 and 97.5 % quantiles of the agreement in draws from the posterior, and those
    in draws around the observed scores.

    References
    ----------
    Kendall 1945, The treatment of ties in ranking problems. Spearman 1904. Laird and Louis 1989, Empirical Bayes
    ranking methods.
    """
    names = sorted(
        name for name in a.score.keys() & b.score.keys() if not np.isnan([a.score[name], b.score[name]]).any()
    )
    scores, variances = (_values(names, *pair) for pair in ((a.score, b.score), (a.variance, b.variance)))
    n = len(names)
    if n < 2:
        return Agreement(n, None, None, None, None, None, None, "too few encoders")
    if (np.ptp(scores, axis=1) == 0).any():
        return Agreement(n, None, None, None, None, None, None, "all equal")
    tau, rho = float(kendalltau(*scores).statistic), float(spearmanr(*scores).statistic)
    if n < FEWEST_ENCODERS or not (variances > 0).all():
        cannot = "too few encoders" if n < FEWEST_ENCODERS else "no variance"
        return Agreement(n, tau, None, None, rho, None, None, cannot)
    sets = (_true_scores(scores, variances), _around(scores, variances))
    (tau_low, tau_high), (rho_low, rho_high) = (_limits([of(drawn) for drawn in sets]) for of in (_taus, _rhos))
    return Agreement(n, tau, tau_low, tau_high, rho, rho_low, rho_high, None)


def _values(names: Sequence[str], a: Mapping[str, float], b: Mapping[str, float]) -> Floats:
    """The values of both sides, (side, encoder)."""
    return np.array([[side[name] for name in names] for side in (a, b)], float).reshape(2, len(names))


def _limits(sets: Sequence[Floats]) -> tuple[float, float]:
    """The lower and the upper limit that span the limits of each set of draws."""
    limits = np.quantile(sets, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=1)
    return float(limits[0].min()), float(limits[1].max())


def _around(scores: Floats, variances: Floats) -> Floats:
    """Draws around the observed scores, (draw, encoder, side); arguments as for `_true_scores`."""
    noise = variances.T[:, :, None] * np.eye(2)
    return np.asarray(scores.T + _normal(np.broadcast_to(noise, (DRAWS, *noise.shape))))


def _true_scores(scores: Floats, variances: Floats) -> Floats:
    """Draws of the true scores (draw, encoder, side) from observed ones and their variances, each (side, encoder)."""
    spread = scores.std(axis=1, ddof=1)
    x, errors = (scores / spread[:, None]).T, (variances / spread[:, None] ** 2).T
    r, s, t = (one.ravel() for one in np.meshgrid(CORRELATIONS, SPREADS, SPREADS, indexing="ij"))
    prior = np.stack([s * s, r * s * t, r * s * t, t * t], axis=-1).reshape(-1, 2, 2)
    noise = errors[:, :, None] * np.eye(2)
    whole = prior[:, None] + noise  # (model, encoder, 2, 2)
    inverse = np.linalg.inv(whole)
    precision = inverse.sum(axis=1)
    middle = np.linalg.solve(precision, np.einsum("meij,ej->mi", inverse, x)[..., None])[..., 0]
    rest = x - middle[:, None]
    fit = np.einsum("mei,meij,mej->m", rest, inverse, rest)
    fit += np.log(np.linalg.det(whole)).sum(axis=1) + np.log(np.linalg.det(precision))
    weight = np.cumsum(np.exp((fit.min() - fit) / 2))
    at = np.searchsorted(weight, weight[-1] * (np.arange(DRAWS) + 0.5) / DRAWS)
    gain = prior[at][:, None] @ inverse[at]
    mean = middle[at][:, None] + np.einsum("deij,dej->dei", gain, rest[at])
    return np.asarray(mean + _normal(gain @ noise))


def _normal(covariance: Floats) -> Floats:
    """Draws of mean 0 with covariances (..., 2, 2), which may be singular: (..., 2)."""
    rng = np.random.Generator(np.random.Philox(key=random_key("rank agreement")))
    first, second = rng.standard_normal((2, *covariance.shape[:-2]))
    a = np.sqrt(np.maximum(covariance[..., 0, 0], 0))
    b = np.divide(covariance[..., 0, 1], a, out=np.zeros_like(a), where=a > 0)
    c = np.sqrt(np.maximum(covariance[..., 1, 1] - b * b, 0))
    return np.stack([a * first, b * first + c * second], axis=-1)


def _taus(drawn: Floats) -> Floats:
    """Kendall's tau of draws (draw, encoder, side) without ties: (draw,)."""
    first, second = np.triu_indices(drawn.shape[1], 1)
    ahead = drawn[:, first] > drawn[:, second]
    return np.asarray(2 * (ahead[..., 0] == ahead[..., 1]).mean(axis=1) - 1)


def _rhos(drawn: Floats) -> Floats:
    """Spearman's rho of draws (draw, encoder, side) without ties: (draw,)."""
    n = drawn.shape[1]
    ranks = rankdata(drawn, axis=1)
    return np.asarray(1 - 6 * np.square(ranks[..., 0] - ranks[..., 1]).sum(axis=1) / (n * (n * n - 1)))
