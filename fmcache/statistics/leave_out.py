"""Scores without one unit, and pseudo-values: their mean over units approximates the score, a ratio of sums.

The variances by units and by the interaction of units and seeds come from the pseudo-values; the variance by seeds
comes from the scores of the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fmcache.scores.dice import mean_of_defined
from fmcache.statistics.evidence import FN, HAS_DICE, TP, Evidence, Flags, Floats, score_of

FEWEST_HOLDERS = 3
"""If fewer units hold a label, its score gets no interval."""


@dataclass(frozen=True, eq=False)
class Linearised:
    """The scores of all encoders and their sources of variance. Columns are the labels and, last, their mean.

    estimate: (encoder, column), the mean of the seeds' scores. n_seeds: (encoder,). n_units: T. units: (encoder, unit,
    column), the seed means of pseudo-values. seed_cov: (encoder, column, column), the covariance of the scores over
    seeds, divided by the number of seeds: the variance of `estimate` by seeds. crossed: (encoder, column), the variance
    by the interaction of seeds and units. folds: (encoder, fold, column), pseudo-values by fold; an empty axis without
    folds. holders: (label,), number of units that hold each label. unit_freedom: (column,), degrees of freedom of a
    variance by units. able: (column,), whether enough units (and two folds, if there are folds) hold the labels of the
    column. defined: (label,), whether any encoder has an estimate. NaN: no seed, one seed, or undefined.
    """

    estimate: Floats
    n_seeds: Floats
    n_units: int
    units: Floats
    seed_cov: Floats
    crossed: Floats
    folds: Floats
    holders: Floats
    unit_freedom: Floats
    able: Flags
    defined: Flags

    @property
    def by_seeds(self) -> Floats:
        """Variance of `estimate` by seeds, (encoder, column)."""
        return np.asarray(np.einsum("ecc->ec", self.seed_cov))

    def only(self, places: npt.NDArray[np.intp]) -> Linearised:
        """Return the figures of the encoders at `places`, in that order."""
        names = ("estimate", "n_seeds", "units", "seed_cov", "crossed", "folds")
        return replace(self, **{name: getattr(self, name)[places] for name in names})


def linearise(evidence: Evidence) -> Linearised:
    """Return the linearised scores of the evidence.

    Pseudo-values are P[s,t] = T D[s] - (T - 1) J[s,t], where D[s] is the score of seed s, and J[s,t] its score without
    unit t.

    References
    ----------
    Efron and Stein 1981, The jackknife estimate of variance. Miller 1974, The jackknife: a review.
    """
    n_columns, n_units = len(evidence.labels) + 1, len(evidence.units)
    n_folds = evidence.fold_sums[0].shape[1] if evidence.fold_sums else 0
    shape = (len(evidence.encoders), n_columns)
    estimate, crossed = np.full(shape, np.nan), np.full(shape, np.nan)
    units = np.full((shape[0], n_units, n_columns), np.nan)
    folds = np.full((shape[0], n_folds, n_columns), np.nan)
    seed_cov = np.full((*shape, n_columns), np.nan)
    held = np.asarray(evidence.holds.any(axis=0))
    others = evidence.holders - evidence.holds > 0
    for i, sums in enumerate(evidence.sums):
        if not len(sums):
            continue
        score = seed_scores(evidence, i)
        without = _with_mean(score_of(sums.sum(axis=1, keepdims=True) - sums, evidence.score, others))
        pseudo = n_units * score[:, None] - (n_units - 1) * without
        estimate[i], units[i] = score.mean(axis=0), pseudo.mean(axis=0)
        if len(sums) > 1:
            seed_cov[i] = np.cov(score, rowvar=False) / len(sums)
            crossed[i] = _crossed(pseudo)
        if n_folds:
            parts = evidence.fold_sums[i]
            left = _with_mean(score_of(parts.sum(axis=1, keepdims=True) - parts, evidence.score, held))
            folds[i] = n_folds * estimate[i] - (n_folds - 1) * left.mean(axis=0)
    defined = ~np.isnan(estimate[:, :-1]).all(axis=0)
    enough = (evidence.holders >= FEWEST_HOLDERS) & _in_two_folds(evidence)
    able = np.append(enough & defined, defined.any() and enough[defined].all())
    n_seeds = np.array([len(seeds) for seeds in evidence.seeds], dtype=float)
    unit_freedom = np.append(_contributing(evidence) - 1.0, n_units - 1.0)
    holders = evidence.holders.astype(float)
    return Linearised(estimate, n_seeds, n_units, units, seed_cov, crossed, folds, holders, unit_freedom, able, defined)


def seed_scores(evidence: Evidence, encoder: int) -> Floats:
    """Return the scores of an encoder's seeds, (seed, column); NaN where undefined."""
    held = np.asarray(evidence.holds.any(axis=0))
    return _with_mean(score_of(evidence.sums[encoder].sum(axis=1), evidence.score, held))


def _with_mean(scores: Floats) -> Floats:
    return np.concatenate([scores, mean_of_defined(scores, axis=-1)[..., None]], axis=-1)


def _crossed(pseudo: Floats) -> Floats:
    """Residual mean square of (seed, unit, column) after seed and unit effects, / (seeds x units): (column,)."""
    n_seeds, n_units, _ = pseudo.shape
    if n_units < 2:
        return np.full(pseudo.shape[2], np.nan)
    rest = pseudo - pseudo.mean(axis=0) - pseudo.mean(axis=1, keepdims=True) + pseudo.mean(axis=(0, 1))
    return np.asarray(np.square(rest).sum(axis=(0, 1)) / ((n_seeds - 1) * (n_units - 1) * n_seeds * n_units))


def _contributing(evidence: Evidence) -> npt.NDArray[np.int64]:
    """Number of units that make up the score of a label, (label,): the units that hold it.

    Dice per tile is also defined, and 0, where a label is only predicted. Then it is the number of units with a Dice,
    the smallest among the encoders. With the units that hold the label instead, intervals of a label that two of five
    tiles hold were too wide: coverage 0.98 to 0.99.
    """
    if evidence.score != "per_tile":
        return evidence.holders
    there = [sums[..., HAS_DICE].any(axis=0).sum(axis=0) for sums in evidence.sums if len(sums)]
    return np.min(there, axis=0) if there else evidence.holders


def _in_two_folds(evidence: Evidence) -> Flags:
    """Whether the truth of two folds or more has each label, (label,); True for a fixed split."""
    if not evidence.fold_sums or not evidence.fold_sums[0].shape[1]:
        return np.ones(len(evidence.labels), bool)
    there = [sums[..., [TP, FN]].any(axis=(0, 3)) for sums in evidence.fold_sums if len(sums)]
    return np.asarray(np.any(there, axis=0).sum(axis=0) >= 2)
