"""Differences of two encoders: by hand, against a slow reference, and what must not matter."""

import numpy as np
import pytest
from scipy import stats

from fmcache.statistics.evidence import from_counts
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import all_pairs, differences


def pairs(evidence):
    return differences(linearise(evidence), *all_pairs(np.arange(len(evidence.encoders))))


def tiles(*dice):
    """Counts (seed, tile, 1, 3) of equal tiles of a Dice in percent each: pseudo-values are the tiles' Dice."""
    tp = np.array(dice)
    return np.stack([tp, 100 - tp, 100 - tp], axis=-1)[:, :, None]


def test_a_difference_by_hand():
    one, other = tiles([60, 70, 80], [62, 72, 82]), tiles([50, 64, 66], [50, 64, 66])
    of = pairs(from_counts({"x": one, "y": other}, ("a",), list("pqr")))
    # unit differences 0.11, 0.07, 0.15: mean 0.11, variance 0.0016 / 3; seeds of x 0.70 and 0.72: 0.0002 / 2
    u, b = 0.0016 / 3, 0.0001
    assert np.isclose(of.difference[0, 0], 0.11)
    assert np.isclose(of.variance_of_all[0, 0], u + b)
    assert np.isclose(of.variance[0, 0], u + b)  # seeds move all tiles alike: nothing is counted twice
    freedom = (u + b) ** 2 / (u**2 / 2 + b**2 / 1)
    low, high = of.limits(0.95)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(u + b)
    assert np.allclose([low[0, 0], high[0, 0]], [0.11 - half, 0.11 + half])


@pytest.mark.parametrize("unequal", [False, True])
def test_variances_are_those_of_a_slow_reference(counts, unequal):
    made = counts((0.4, 0.9), labels=1, seeds=6)
    if unequal:
        made["e1"] = made["e1"][:3]
    of = pairs(from_counts(made, ("a",), [f"t{i}" for i in range(10)]))

    def pseudo(one):
        def score(counted):
            tp, fp, fn = counted.sum(axis=0)[0]
            return 2 * tp / (2 * tp + fp + fn)

        return np.array([[10 * score(s) - 9 * score(np.delete(s, t, 0)) for t in range(10)] for s in one]), [
            score(s) for s in one
        ]

    (p, d), (q, e) = pseudo(made["e0"]), pseudo(made["e1"])
    u = np.var(p.mean(axis=0) - q.mean(axis=0), ddof=1) / 10
    vs = [np.var(x, ddof=1) / len(x) for x in (d, e)]
    crossed = 0.0
    for x in (p, q):
        rest = sum((x[s, t] - x[s].mean() - x[:, t].mean() + x.mean()) ** 2 for s in range(len(x)) for t in range(10))
        crossed += rest / ((len(x) - 1) * 9) / (len(x) * 10)
    v = max(u + sum(vs) - crossed, u, sum(vs))
    assert np.isclose(of.variance[0, 0], v)
    assert np.isclose(of.variance_of_all[0, 0], u + sum(vs))
    freedom = v**2 / (u**2 / 9 + vs[0] ** 2 / (len(d) - 1) + vs[1] ** 2 / (len(e) - 1))
    assert np.isclose(of.freedom[0, 0], freedom)


def test_turning_a_pair_round_turns_its_limits_round(study):
    figures = linearise(study())
    there, back = (differences(figures, np.array([i]), np.array([2 - i])) for i in (0, 2))
    assert np.allclose(there.limits(0.95)[0], -back.limits(0.95)[1])
    assert np.allclose(there.variance, back.variance)


def test_what_tiles_do_to_all_encoders_drops_out():
    easy = np.array([90, 70, 30])
    small, large = (
        pairs(from_counts({"x": tiles(s + 5, s + 7), "y": tiles(s, s - 2)}, ("a",), list("pqr")))
        for s in (easy * 0 + 60, easy)
    )
    assert np.allclose(small.variance[:, 0], large.variance[:, 0])
    assert np.allclose(small.difference, large.difference)


def test_identical_encoders_have_no_difference(counts):
    made = counts((1.0,))["e0"]
    of = pairs(from_counts({"x": made, "y": made}, ("a", "b"), [f"t{i}" for i in range(10)]))
    low, high = of.limits(0.95)
    assert (of.difference == 0).all()
    assert ((low < 0) & (high > 0)).all()


def test_folds_that_move_encoders_apart_make_the_difference_less_sure(counts):
    made = counts((0.5, 0.5), noise=0.02)
    folds = [0, 1, 2, 3, 4] * 2
    made["e0"][:, np.array(folds) == 0, :, 1] *= 4
    names = [f"t{i}" for i in range(10)]
    fixed, parted = (pairs(from_counts(made, ("a", "b"), names, "pooled", one)) for one in ((), folds))
    assert (parted.variance >= fixed.variance).all()
    assert parted.freedom[0, -1] == 4
    figures = linearise(from_counts(made, ("a", "b"), names, "pooled", folds))
    apart = figures.folds[0] - figures.folds[1]
    assert np.allclose(parted.variance[0, -1], apart[:, -1].var(ddof=1) / 5)


@pytest.mark.parametrize("how", [{"seeds": 1}, {"units": 1}, {"units": 2}])
def test_one_seed_or_too_few_units_give_a_difference_without_limits(study, how, recwarn):
    of = pairs(study(**how))
    assert not np.isnan(of.difference).any()
    assert all(np.isnan(one).all() for one in of.limits(0.95))
    assert not recwarn.list
