"""All pairs at once: Holm and moderation against slow references, ranks by hand, and what must not matter."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from fmcache.statistics.evidence import from_counts
from fmcache.statistics.family import family, holm, moderate
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import Differences, all_pairs, differences


def stated(difference, variance, freedom, unit_freedom=9.0):
    """Differences of three encoders with given variances, in one column."""
    column = [np.array(one, float)[:, None] for one in (difference, variance, freedom)]
    d, v, f = column
    return Differences(*all_pairs(np.arange(3)), d, v, f, v, f, v * 0, f, np.array([unit_freedom]))


def of_study(evidence, column=-1):
    n = len(evidence.encoders)
    return family(differences(linearise(evidence), *all_pairs(np.arange(n))), column, n)


def test_holm_by_hand():
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.zeros(0)).tolist() == []


def test_variances_that_differ_by_chance_alone_are_shrunk_to_one_value():
    variance, freedom = moderate(np.array([1.0, 1.1, 0.9]), np.full(3, 9.0), 9.0)
    assert freedom == 27.0  # the prior counts at most twice as much as the study
    assert np.ptp(variance) < 0.08
    assert np.all((variance > 0.9) & (variance < 1.3))


def test_moderation_is_that_of_a_slow_reference():
    spread = np.array([0.2, 1.0, 4.0, 9.0, 0.5, 2.5])
    variance, freedom = moderate(spread, np.full(6, 8.0), 9.0)
    z, b = np.log(spread), 8.0
    excess = z.var(ddof=1) - special.polygamma(1, b / 2)
    d0 = 2 * optimize.brentq(lambda y: special.polygamma(1, y) - excess, 1e-3, 1e3)
    prior = np.exp(z.mean() - special.psi(b / 2) + np.log(b / 2) + special.psi(d0 / 2) - np.log(d0 / 2))
    assert d0 < 2 * b
    assert np.isclose(freedom, b + d0)
    assert np.allclose(variance, (d0 * prior + b * spread) / (d0 + b))


def test_a_single_pair_or_none_is_left_as_it_is():
    assert moderate(np.array([2.0]), np.array([7.0]), 9.0) == (np.array([2.0]), 7.0)
    assert np.isnan(moderate(np.array([np.nan]), np.array([np.nan]), 9.0)[0]).all()


def test_ranks_and_who_may_be_best_by_hand():
    # 0 is far above 1 and 2, which are alike
    found = family(stated([0.3, 0.31, 0.01], [1e-4, 1e-4, 1e-4], [9, 9, 9]), 0, 3)
    assert found.differs.tolist() == [True, True, False]
    assert found.rank_low.tolist() == [1, 2, 2]
    assert found.rank_high.tolist() == [1, 3, 3]
    assert found.may_be_best.tolist() == [True, False, False]
    half = stats.t.ppf(1 - 0.025 / 3, 27) * 1e-2
    assert np.allclose(found.high - found.low, 2 * half, rtol=0.1)


def test_without_variances_nobody_is_told_apart_and_anybody_may_be_best(study, recwarn):
    found = of_study(study(seeds=1))
    assert not found.differs.any()
    assert found.rank_low.tolist() == [1, 1, 1]
    assert found.rank_high.tolist() == [3, 3, 3]
    assert found.may_be_best.all()
    assert np.isnan(found.low).all()
    assert not recwarn.list


def test_a_lone_encoder_is_first_of_one(study):
    found = of_study(study((1.0,)))
    assert (found.rank_low.tolist(), found.rank_high.tolist(), found.may_be_best.tolist()) == ([1], [1], [True])


def test_far_apart_encoders_are_told_apart_and_the_best_alone_is_kept(study):
    found = of_study(study((-1.0, 0.5, 2.0), noise=0.1))
    assert found.differs.all()
    assert found.rank_low.tolist() == found.rank_high.tolist() == [3, 2, 1]
    assert found.may_be_best.tolist() == [False, False, True]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_by_estimate_is_always_kept_and_ranks_hold_the_place_of_the_estimate(study, seed):
    evidence = study((0.5, 0.6, 0.7, 0.8, 1.2), seed=seed)
    mean, found = linearise(evidence).estimate[:, -1], of_study(evidence)
    place = (-mean).argsort().argsort() + 1
    assert found.may_be_best[mean.argmax()]
    assert ((found.rank_low <= place) & (place <= found.rank_high)).all()


def test_identical_encoders_never_differ(counts):
    made = counts((1.0,))["e0"]
    found = of_study(from_counts(dict.fromkeys("xyz", made), ("a", "b"), [f"t{i}" for i in range(10)]))
    assert not found.differs.any()
    assert found.may_be_best.all()


def test_permuted_encoders_permute_the_result(counts):
    made, names = counts((0.4, 0.8, 0.9, 1.6)), [f"t{i}" for i in range(10)]
    order = [2, 0, 3, 1]
    one = of_study(from_counts(made, ("a", "b"), names))
    other = of_study(from_counts({f"e{i}": made[f"e{i}"] for i in order}, ("a", "b"), names))
    for field in ("rank_low", "rank_high", "may_be_best"):
        assert getattr(one, field)[order].tolist() == getattr(other, field).tolist()
    assert np.allclose(sorted(one.p), sorted(other.p))
