"""The difference of two encoders on the same test units, for each pair separately.

Encoders share units, so that an effect of a tile on all encoders cancels. Seeds are not paired, although a seed gives
every encoder the same order of tiles: decoders of different widths start from different weights, so that little of what
a seed does can be common, and pairing costs degrees of freedom. In simulated studies it widened the limits of all pairs
by 2 to 23 % where seeds were independent and narrowed them only above a correlation of 0.2 (ten seeds) or 0.35 (five);
without pairing the limits stay valid (coverage 0.95 to 0.97 up to a correlation of 0.3, and higher above it).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.statistics.evidence import Floats
from fmcache.statistics.leave_out import Linearised
from fmcache.statistics.student import quantile

Places = npt.NDArray[np.intp]


class Differences(NamedTuple):
    """Differences a - b, each (pair, column); a and b are positions of encoders, (pair,).

    variance, freedom: for one pair alone. variance_of_all, freedom_of_all: for all pairs jointly. by_seeds: variance by
    seeds alone, without the interaction of seeds and units; seed_freedom: its degrees of freedom. unit_freedom:
    (column,), the degrees of freedom by units. NaN where there is no interval.
    """

    a: Places
    b: Places
    difference: Floats
    variance: Floats
    freedom: Floats
    variance_of_all: Floats
    freedom_of_all: Floats
    by_seeds: Floats
    seed_freedom: Floats
    unit_freedom: Floats

    def limits(self, level: float) -> tuple[Floats, Floats]:
        """Return lower and upper limits, each (pair, column), for each pair alone."""
        half = quantile((1 + level) / 2, self.freedom) * np.sqrt(self.variance)
        return self.difference - half, self.difference + half


def all_pairs(places: Places) -> tuple[Places, Places]:
    """Return the first and the second encoder of all pairs of the encoders at `places`."""
    first, second = np.triu_indices(len(places), 1)
    return places[first], places[second]


def differences(figures: Linearised, a: Places, b: Places) -> Differences:
    """Return the differences of the encoders at `a` and those at `b`, (pair,).

    U is the variance of the mean pseudo-value difference over units. B is the variance by seeds. I is the variance by
    the interaction of units and seeds, which U and B both contain. The variance of a pair alone is
    v = max(U + B - I, U, B); for all pairs jointly it is U + B. Degrees of freedom are Satterthwaite's; the variance of
    a label by units has those of the units that hold it, less one. T - 1 instead, with T the number of units, gave a
    coverage of 0.88 instead of 0.95 for a label that two of five tiles hold, at 10 tiles; with this rule it is 0.925.
    Where the jackknife over folds is larger, it replaces this variance, because it contains seeds and units.

    References
    ----------
    Satterthwaite 1946, An approximate distribution of estimates of variance components.
    """
    unknown = np.where(figures.able & (figures.n_units > 1), 0.0, np.nan)  # NaN where a column allows no interval
    units = (figures.units[a] - figures.units[b]).var(axis=1) / max(figures.n_units - 1, 1) + unknown
    crossed = figures.crossed[a] + figures.crossed[b] + unknown
    of_a, of_b = figures.by_seeds[a] + unknown, figures.by_seeds[b] + unknown
    seeds = of_a + of_b
    rest_a, rest_b = (np.maximum(figures.n_seeds[side] - 1, 1)[:, None] for side in (a, b))
    seed_squares = of_a**2 / rest_a + of_b**2 / rest_b
    squares = units**2 / np.maximum(figures.unit_freedom, 1) + seed_squares
    alone = np.maximum(units + seeds - crossed, np.maximum(units, seeds))
    chosen = [_with_folds(figures, a, b, one, _ratio(one**2, squares)) for one in (alone, units + seeds)]
    return Differences(
        a,
        b,
        figures.estimate[a] - figures.estimate[b],
        *chosen[0],
        *chosen[1],
        np.maximum(seeds - crossed, 0.0),
        _ratio(seeds**2, seed_squares),
        figures.unit_freedom,
    )


def _with_folds(figures: Linearised, a: Places, b: Places, variance: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """The larger of a variance and the jackknife over folds, and its degrees of freedom."""
    n_folds = figures.folds.shape[1]
    if not n_folds:
        return variance, freedom
    by_folds = (figures.folds[a] - figures.folds[b]).var(axis=1) / (n_folds - 1)
    wider = by_folds > variance
    return np.where(wider, by_folds, variance), np.where(wider, n_folds - 1.0, freedom)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below; 1 where both are 0, NaN where either is NaN."""
    result = np.where(np.isnan(above + below), np.nan, 1.0)
    return np.divide(above, below, out=result, where=below > 0)
