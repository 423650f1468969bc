"""Intervals of an encoder: by hand, against a slow reference, in the limits, and where nothing can be said."""

import numpy as np
import pytest
from scipy import stats

from fmcache.scores.dice import dice_per_label
from fmcache.statistics.evidence import from_counts
from fmcache.statistics.intervals import covariances, intervals
from fmcache.statistics.leave_out import linearise


def slow(made, folds=()):
    """Limits of a label of one encoder, (seed, tile, 1, 3), by loops and scipy.stats."""
    seeds, tiles = made.shape[:2]

    def score(keep):
        return np.array([dice_per_label(one[keep], "pooled")[0] for one in made])

    def logit(p):
        return np.log(p / (1 - p))

    every = np.ones(tiles, bool)
    scores = score(every)
    m = scores.mean()
    left = np.array([logit(score(np.arange(tiles) != t).mean()) for t in range(tiles)])
    units = (tiles - 1) / tiles * ((left - left.mean()) ** 2).sum()
    by_seeds = scores.var(ddof=1) / seeds / (m * (1 - m)) ** 2
    variance = units + by_seeds
    freedom = min(variance**2 / (units**2 / (tiles - 1) + by_seeds**2 / (seeds - 1)), tiles - 1)
    if len(folds):
        k = len(set(folds))
        left = np.array([logit(score(np.array(folds) != fold).mean()) for fold in sorted(set(folds))])
        of_folds = (k - 1) / k * ((left - left.mean()) ** 2).sum()
        variance, freedom = (of_folds, k - 1) if of_folds > variance else (variance, freedom)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return [1 / (1 + np.exp(-(logit(m) + side * half))) for side in (-1, 1)]


@pytest.mark.parametrize("folds", [(), (0, 1, 2, 3, 4) * 2, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_limits_of_a_label_are_those_of_the_slow_reference(counts, folds, seed):
    made = counts((1.0,), labels=1, seed=seed)["e0"]
    figures = linearise(from_counts({"x": made}, ("a",), [f"t{i}" for i in range(10)], "pooled", folds))
    found = intervals(figures)
    assert np.allclose([found.low[0, 0], found.high[0, 0]], slow(made, folds), rtol=1e-9)
    assert np.allclose(found.low[0, 0], found.low[0, 1])  # the mean of one label is that label


def test_three_seeds_that_vary_much_make_the_interval_wider_than_the_units_degrees_of_freedom_do(counts):
    made = counts((1.0,), labels=1, seeds=3, units=40, noise=0.01)["e0"]
    made[0, :, :, 0] //= 2
    made[0, :, :, 1:] = made[1, :, :, :1] + made[1, :, :, 1:2] - made[0, :, :, :1]
    found = intervals(linearise(from_counts({"x": made}, ("a",), [f"t{i}" for i in range(40)])))
    assert np.allclose([found.low[0, 0], found.high[0, 0]], slow(made))
    assert found.by_seeds[0, 0] > 0.9


def test_arms_of_the_mean_are_those_of_two_labels_and_their_correlation(study):
    figures = linearise(study())
    found = intervals(figures)
    both = sum(covariances(figures))
    for i in range(3):
        r = both[i, 0, 1] / np.sqrt(both[i, 0, 0] * both[i, 1, 1])
        for limit, sign in ((found.low, -1), (found.high, 1)):
            a, b = np.abs(limit[i, :2] - figures.estimate[i, :2]) / 2
            assert np.isclose(limit[i, 2], figures.estimate[i, 2] + sign * np.sqrt(a * a + b * b + 2 * r * a * b))


def test_limits_lie_on_both_sides_between_0_and_1_and_shares_add_up_to_1(study):
    for quality in (-9.0, -3.0, 0.0, 3.0, 6.0):
        evidence = study((quality,))
        figures, found = linearise(evidence), intervals(linearise(evidence))
        known = ~np.isnan(found.low)
        assert (found.low <= figures.estimate)[known].all()
        assert (figures.estimate <= found.high)[known].all()
        assert ((found.low >= 0) & (found.high <= 1))[known].all()
        assert np.allclose((found.by_units + found.by_seeds)[known], 1)


def test_counts_ten_times_as_large_give_the_same_limits(counts):
    made = counts((0.3, 1.2))
    names = [f"t{i}" for i in range(10)]
    one, ten = (
        intervals(linearise(from_counts({k: v * by for k, v in made.items()}, ("a", "b"), names))) for by in (1, 10)
    )
    assert np.allclose(one, ten, rtol=1e-9)


def test_a_tile_cut_in_two_of_one_patient_changes_nothing(counts):
    made = {name: one // 2 * 2 for name, one in counts((0.3, 1.2)).items()}
    halves = {name: np.concatenate([one // 2, one // 2], axis=1) for name, one in made.items()}
    names = [f"t{i}" for i in range(10)]
    one, two = from_counts(made, ("a", "b"), names), from_counts(halves, ("a", "b"), names * 2)
    assert np.array_equal(intervals(linearise(one)), intervals(linearise(two)))


@pytest.mark.parametrize("how", [{"seeds": 1}, {"units": 1}, {"units": 2}])
def test_one_seed_or_too_few_units_give_no_interval_and_no_warning(study, how, recwarn):
    found = intervals(linearise(study(**how)))
    assert all(np.isnan(one).all() for one in found)
    assert not recwarn.list


def test_what_never_varies_gives_no_interval(recwarn):
    made = np.tile(np.array([50, 10, 10]), (4, 6, 1, 1))
    assert np.isnan(intervals(linearise(from_counts({"x": made}, ("a",), list("pqrstu")))).low).all()
    assert not recwarn.list
