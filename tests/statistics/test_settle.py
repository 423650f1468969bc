"""What would settle it: by hand, against a slow search, and where no number of units would do."""

import numpy as np
from scipy import stats

from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import Differences, all_pairs, differences
from fmcache.statistics.settle import MOST, settle, units_needed


def one_pair(difference, variance, by_seeds, freedom=9.0, seed_freedom=18.0):
    cell = [np.array([[value]]) for value in (difference, variance, freedom, variance, freedom, by_seeds, seed_freedom)]
    return Differences(np.array([0]), np.array([1]), *cell, np.array([9.0]))


def test_the_smallest_difference_is_where_power_is_80_percent():
    found = settle(one_pair(0.02, 1e-4, 0.0), 10)
    assert np.isclose(found.could_see[0, 0], (2.262157 + stats.t.ppf(0.8, 9)) * 0.01)


def test_units_needed_are_those_of_a_slow_search():
    for difference, units, seeds in ((0.03, 4e-4, 0.0), (0.03, 4e-4, 2e-5), (0.004, 1e-4, 0.0), (0.2, 1e-4, 1e-5)):

        def seen(n, d=difference, u=units, s=seeds):
            of_units = u * 10 / n
            freedom = (of_units + s) ** 2 / (of_units**2 / (n - 1) + s**2 / 18)
            return (stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * np.sqrt(of_units + s) <= d

        slow = next(n for n in range(2, 10_000) if seen(n))
        fast = units_needed(*(np.array([[x]]) for x in (difference, units, seeds, 18.0)), 10)
        assert fast.tolist() == [[slow]]


def test_the_range_lies_around_what_the_present_difference_needs_and_may_have_no_end():
    sure = settle(one_pair(0.05, 1e-4, 0.0), 10)
    assert 2 <= sure.units_low[0, 0] < sure.units_high[0, 0] < 30
    unsure = settle(one_pair(0.01, 1e-4, 0.0), 10)
    assert unsure.units_low[0, 0] > 10
    assert np.isinf(unsure.units_high[0, 0])


def test_where_seeds_hide_the_difference_more_seeds_are_asked_for_not_more_tiles():
    found = settle(one_pair(0.01, 2e-4, 1e-4), 10)
    assert found.more_seeds[0, 0]
    assert np.isinf(found.units_high[0, 0])
    assert not settle(one_pair(0.01, 2e-4, 1e-7), 10).more_seeds[0, 0]


def test_no_difference_at_all_needs_units_without_end():
    assert units_needed(*(np.array([x]) for x in (0.0, 1e-4, 0.0, 9.0)), 10).tolist() == [np.inf]
    assert units_needed(*(np.array([x]) for x in (1e-9, 1e-4, 0.0, 9.0)), 10).tolist() == [np.inf]
    assert MOST >= 10_000


def test_nothing_is_said_where_there_is_no_variance(study, recwarn):
    figures = linearise(study(seeds=1))
    found = settle(differences(figures, *all_pairs(np.arange(3))), figures.n_units)
    assert np.isnan(found.could_see).all()
    assert np.isnan(found.units_low).all()
    assert not found.more_seeds.any()
    assert not recwarn.list


def test_few_seeds_widen_the_range_since_they_tell_little_of_what_more_tiles_cannot_mend():
    few, many = (settle(one_pair(0.03, 1e-4, 2e-5, seed_freedom=n), 10) for n in (4.0, 400.0))
    assert few.units_low[0, 0] <= many.units_low[0, 0]
    assert few.units_high[0, 0] > many.units_high[0, 0]
    low, high = (2e-5 * 4 / stats.chi2.ppf(p, 4) for p in (0.9, 0.1))
    half = stats.t.ppf(0.9, 9) * 0.01
    for part, d, found in ((low, 0.03 + half, few.units_low), (high, 0.03 - half, few.units_high)):
        assert units_needed(*(np.array([[x]]) for x in (d, 8e-5, part, 4.0)), 10).tolist() == found.tolist()
