"""The interval of each encoder's score: per label on the logit scale; for the mean, from the intervals of the labels.

The variance covers which units were tested and the randomness of seeds; with folds also the choice of training tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fmcache.statistics.evidence import Floats
from fmcache.statistics.leave_out import Linearised
from fmcache.statistics.student import quantile

LEVEL = 0.95
CLIP = 0.001
"""Scores that are nearer than this to 0 or 1 are clipped before the logit."""


class Intervals(NamedTuple):
    """Limits, and the shares of the variance that are due to units and to seeds; each (encoder, column).

    NaN where there is no interval: one seed, too few units that hold the label, or no variance.
    """

    low: Floats
    high: Floats
    by_units: Floats
    by_seeds: Floats


def logit(score: Floats) -> Floats:
    """Return log(p / (1 - p)) of scores clipped to `CLIP` .. 1 - `CLIP`."""
    p = np.clip(score, CLIP, 1 - CLIP)
    return np.asarray(np.log(p / (1 - p)))


def expit(x: Floats) -> Floats:
    """Return the inverse of `logit`."""
    return np.asarray(1 / (1 + np.exp(-x)))


def intervals(figures: Linearised) -> Intervals:
    """Return the intervals of all encoders and columns.

    Per label: the variance by units is the jackknife variance of the logit, the variance by seeds comes from the delta
    method. With folds, the jackknife over folds replaces the sum of both where it is larger. An arm is the distance
    from the score to a limit. The arms of the mean are sqrt(a' R a), where a are the weighted arms of the labels, and
    R is the correlation of the labels by units and seeds.

    The degrees of freedom are Satterthwaite's, at most those of the units: the units that *hold* the label, less one.
    T - 1 instead, with T the number of units, gave too low a coverage of 95 % intervals. For a label that two of five
    tiles hold it was 0.90 at 10 tiles (0.94 with this rule). For the mean, with three seeds that vary much, it was 0.86
    at 40 tiles (0.95 with this rule).

    References
    ----------
    Zou and Donner 2008, Construction of confidence limits about effect measures (MOVER).
    """
    of_units, of_seeds = covariances(figures)
    both = of_units + of_seeds
    variance, freedom = _label_variance(figures, of_units, of_seeds)
    score, centre = figures.estimate[:, :-1], logit(figures.estimate[:, :-1])
    half = quantile((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
    low, high = np.minimum(expit(centre - half), score), np.maximum(expit(centre + half), score)
    spread = np.sqrt(np.einsum("ell->el", both))
    scale = spread[:, :, None] * spread[:, None, :]
    related = np.divide(both, scale, out=np.zeros_like(both), where=scale > 0)
    chosen = figures.defined & figures.able[-1]
    mean = figures.estimate[:, -1]
    below, above = (_arm(arm[:, chosen], related[:, chosen][:, :, chosen]) for arm in (score - low, high - score))
    low, high = np.column_stack([low, mean - below]), np.column_stack([high, mean + above])
    shares = _shares(figures, of_units, of_seeds)
    known = figures.able & (shares.sum(axis=-1) > 0)
    return Intervals(*(np.where(known, one, np.nan) for one in (low, high, shares[..., 0], shares[..., 1])))


def covariances(figures: Linearised) -> tuple[Floats, Floats]:
    """Return the covariance of the labels' logits by units and by seeds, each (encoder, label, label)."""
    n, score = figures.n_units, figures.estimate[:, :-1]
    if n < 2:
        unknown = np.full((*score.shape, score.shape[1]), np.nan)
        return unknown, unknown
    left = logit((n * score[:, None] - figures.units[:, :, :-1]) / (n - 1))
    left -= left.mean(axis=1, keepdims=True)
    slope = 1 / _slope(score)
    of_seeds = figures.seed_cov[:, :-1, :-1] * slope[:, :, None] * slope[:, None, :]
    return (n - 1) / n * np.einsum("etl,etk->elk", left, left), of_seeds


def _label_variance(figures: Linearised, of_units: Floats, of_seeds: Floats) -> tuple[Floats, Floats]:
    """Variance of the labels' logits and its degrees of freedom, each (encoder, label)."""
    u, s = np.einsum("ell->el", of_units), np.einsum("ell->el", of_seeds)
    variance = u + s
    of_unit = np.maximum(figures.unit_freedom[:-1], 1)
    below = u**2 / of_unit + s**2 / np.maximum(figures.n_seeds - 1, 1)[:, None]
    freedom = np.divide(variance**2, below, out=np.ones_like(variance), where=below > 0)
    freedom = np.minimum(freedom, of_unit)
    n_folds = figures.folds.shape[1]
    if not n_folds:
        return variance, freedom
    left = logit((n_folds * figures.estimate[:, None, :-1] - figures.folds[:, :, :-1]) / (n_folds - 1))
    of_folds = (n_folds - 1) * left.var(axis=1)
    wider = of_folds > variance
    return np.where(wider, of_folds, variance), np.where(wider, n_folds - 1.0, freedom)


def _arm(arms: Floats, related: Floats) -> Floats:
    """The arm of the mean, (encoder,), from the arms of the labels (encoder, label) and their correlation."""
    n = max(arms.shape[1], 1)
    return np.asarray(np.sqrt(np.maximum(np.einsum("el,elk,ek->e", arms, related, arms), 0)) / n)


def _shares(figures: Linearised, of_units: Floats, of_seeds: Floats) -> Floats:
    """Shares of the variance on the scale of the score, (encoder, column, 2); 0 where there is no variance."""
    slope = _slope(figures.estimate[:, :-1])
    scale = slope[:, :, None] * slope[:, None, :]
    parts = []
    for covariance in (of_units, of_seeds):
        on_score = covariance * scale
        mean = on_score[:, figures.defined][:, :, figures.defined].sum(axis=(1, 2))
        parts.append(np.column_stack([np.einsum("ell->el", on_score), mean]))
    both = np.maximum(np.stack(parts, axis=-1), 0)
    whole = both.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(both, whole, out=np.zeros_like(both), where=whole > 1e-20))


def _slope(score: Floats) -> Floats:
    p = np.clip(score, CLIP, 1 - CLIP)
    return np.asarray(p * (1 - p))
