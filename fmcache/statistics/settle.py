"""The smallest difference that this study could have found, and how many test units would be needed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import chdtri

from fmcache.statistics.evidence import Flags, Floats
from fmcache.statistics.pairs import Differences
from fmcache.statistics.student import quantile

POWER = 0.80
MOST = 100_000
"""If more test units than this are needed, no limit is given."""


class Settling(NamedTuple):
    """What is needed to find the difference of each pair, each (pair, column); NaN where there is no interval.

    could_see: the smallest difference that a study like this one finds with probability `POWER`. units_low, units_high:
    range of the number of test units needed; infinite where no limit can be given. more_seeds: no number of units would
    be enough, because the variance by seeds alone hides the present difference.
    """

    could_see: Floats
    units_low: Floats
    units_high: Floats
    more_seeds: Flags


def settle(of: Differences, n_units: int) -> Settling:
    """Return what is needed to find the difference of each pair, if the pair is tested alone.

    A difference is found when it is at least (t(.975) + t(.80)) standard errors. The variance by units falls as
    1 / units; the variance by seeds stays. The lower end of the range uses the present difference plus half its 80 %
    interval, and the lower end of the 80 % interval of the variance by seeds. The upper end uses the difference minus
    that half, and the upper end of that interval, because a few seeds give only a rough estimate of their variance.
    Among pairs that need more units than there are, the range contained the true number in 0.82 to 0.91 of simulated
    studies.
    """
    error = np.sqrt(of.variance)
    low, high = of.limits(0.80)
    half, d = (high - low) / 2, np.abs(of.difference)
    seeds = of.by_seeds
    units = np.maximum(of.variance - seeds, 0.0)
    known = error > 0
    more_seeds = known & (_factor(of.seed_freedom) * np.sqrt(seeds) >= d)
    needed = [
        np.where(known, units_needed(np.maximum(one, 0.0), units, part, of.seed_freedom, n_units), np.nan)
        for one, part in zip((d + half, d - half), _seed_range(seeds, of.seed_freedom), strict=True)
    ]
    return Settling(np.where(known, _factor(of.freedom) * error, np.nan), needed[0], needed[1], more_seeds)


def _factor(freedom: Floats) -> Floats:
    return np.asarray(quantile(0.975, freedom) + quantile(POWER, freedom))


def _seed_range(seeds: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """The variance by seeds at both ends of its 80 % interval: a few seeds give only a rough estimate of it."""
    low, high = (seeds * freedom / chdtri(freedom, tail) for tail in ((1 - POWER) / 2, (1 + POWER) / 2))
    return low, high


def units_needed(difference: Floats, units: Floats, seeds: Floats, seed_freedom: Floats, n_units: int) -> Floats:
    """Return the smallest number of units that find a difference, by bisection; infinite beyond `MOST`.

    Parameters
    ----------
    units, seeds
        Variances of the difference by units (with `n_units` of them) and by seeds.
    """

    def seen(n: Floats) -> Flags:
        of_units = units * n_units / n
        whole = of_units + seeds
        below = of_units**2 / (n - 1) + seeds**2 / seed_freedom
        freedom = np.divide(whole**2, below, out=np.ones_like(whole), where=below > 0)
        return np.asarray(_factor(freedom) * np.sqrt(whole) <= difference)

    low, high = np.full(difference.shape, 1.0), np.full(difference.shape, float(MOST))
    never = ~seen(high)
    while (high - low > 1).any():
        middle = np.maximum(np.floor((low + high) / 2), 2.0)
        enough = seen(middle)
        low, high = np.where(enough, low, np.minimum(middle, high - 1)), np.where(enough, middle, high)
    return np.where(never, np.inf, high)
