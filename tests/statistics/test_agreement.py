"""Rank agreement: by hand, against a slow reference, in simulated studies, and what must not matter."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from fmcache.statistics import agreement as module
from fmcache.statistics.agreement import Agreement, Side, agreement, published, side_of
from fmcache.statistics.evidence import from_counts
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import all_pairs, differences


def side(*scores, error=0.01, names="abcdefghijklmnop"):
    named = dict(zip(names, map(float, scores), strict=False))
    return Side(named, dict.fromkeys(named, error**2))


def test_tau_and_rho_by_hand():
    found = agreement(side(1, 2, 3, 4), side(1, 3, 2, 4))
    # one of six pairs is discordant; squared differences of ranks: 0, 1, 1, 0
    assert (found.n, found.tau, found.rho) == (4, pytest.approx(4 / 6), pytest.approx(1 - 6 * 2 / (4 * 15)))
    # one pair is tied on one side, the other five are concordant: tau-b
    assert agreement(side(1, 1, 2, 3), side(1, 2, 3, 4)).tau == pytest.approx(5 / np.sqrt(5 * 6))


def test_scores_without_error_leave_no_doubt_and_large_errors_leave_everything_open():
    up, down = side(1, 2, 3, 4, 5, error=1e-4), side(5, 4, 3, 2, 1, error=1e-4)
    assert agreement(up, up)[1:-1] == pytest.approx((1,) * 6)
    assert agreement(up, down)[1:-1] == pytest.approx((-1,) * 6)
    found = agreement(side(1, 2, 3, 4, 5, error=3), side(1, 2, 3, 4, 5, error=3))
    assert found.tau_low < -0.5
    assert found.tau_high > 0.9


def test_larger_errors_give_wider_limits():
    x, y = (1, 2, 3, 4, 5, 6), (1.2, 1.1, 3.5, 3.1, 5, 7)
    wide = [agreement(side(*x, error=e), side(*y, error=e)) for e in (0.1, 0.5, 1.5)]
    widths = [one.rho_high - one.rho_low for one in wide]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_fewer_than_four_common_encoders_get_no_limits():
    found = agreement(side(1, 2, 3, 4, names="abcx"), side(1, 2, 3, 9, names="abcy"))
    assert found == Agreement(3, 1.0, None, None, 1.0, None, None, "too few encoders")
    assert agreement(side(1, names="a"), side(1, names="b")) == Agreement(0, *(None,) * 6, "too few encoders")


def test_encoders_that_only_one_side_has_or_that_have_no_score_play_no_part():
    few = agreement(side(1, 2, 4, 3), side(1, 2, 3, 4))
    more = side(1, 2, 4, 3, 9, float("nan"), names="abcdzy")
    assert agreement(more, side(1, 2, 3, 4, 0, names="abcdy")) == few


def test_equal_scores_and_unknown_variances_are_named(recwarn):
    assert agreement(side(1, 1, 1, 1), side(1, 2, 3, 4)).cannot == "all equal"
    found = agreement(side(1, 2, 3, 4, error=float("nan")), side(1, 2, 3, 4))
    assert (found.tau, found.tau_low, found.cannot) == (1.0, None, "no variance")
    assert not recwarn.list


def test_order_of_names_unit_of_scores_and_repetition_do_not_matter():
    x, y = (0.61, 0.64, 0.7, 0.66, 0.75), (0.5, 0.55, 0.52, 0.58, 0.6)
    first = agreement(side(*x, error=0.02), side(*y, error=0.02))
    assert agreement(side(*x, error=0.02), side(*y, error=0.02)) == first
    turned = agreement(side(*x[::-1], error=0.02, names="edcba"), side(*y, error=0.02))
    assert turned == first
    percent = agreement(side(*(100 * one for one in x), error=2), side(*y, error=0.02))
    assert percent == pytest.approx(first)


def test_draws_have_the_mean_of_a_slow_reference(monkeypatch):
    """The reference takes all encoders and both sides as one normal vector, one model after another."""
    monkeypatch.setattr(module, "CORRELATIONS", np.array([-1, 0, 0.6, 1.0]))
    monkeypatch.setattr(module, "SPREADS", np.array([0.3, 1.0, 1.8]))
    monkeypatch.setattr(module, "DRAWS", 40_000)
    scores = np.array([[0.2, 1.0, 1.9, 3.2, 3.0], [1.0, 0.2, 2.2, 2.0, 4.0]])
    variances = np.array([[0.2, 0.4, 0.3, 0.9, 0.1], [0.5, 0.2, 0.2, 0.3, 0.6]])
    spread = scores.std(axis=1, ddof=1)
    x, errors = (scores.T / spread).ravel(), (variances.T / spread**2).ravel()  # encoder by encoder, side by side
    weights, means = [], []
    for r in module.CORRELATIONS:
        for s in module.SPREADS:
            for t in module.SPREADS:
                prior = np.kron(np.eye(5), [[s * s, r * s * t], [r * s * t, t * t]])
                prior += 1e6 * np.kron(np.ones((5, 5)), np.eye(2))  # the common mean of each side is unknown
                whole = prior + np.diag(errors)
                weights.append(multivariate_normal(np.zeros(10), whole).logpdf(x))
                means.append(prior @ np.linalg.solve(whole, x))
    weights = np.exp(np.array(weights) - max(weights))
    expected = (np.average(means, axis=0, weights=weights)).reshape(5, 2)
    assert np.allclose(module._true_scores(scores, variances).mean(axis=0), expected, atol=0.02)


def test_limits_hold_a_perfect_agreement_that_errors_hide(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 400)
    rng = np.random.default_rng(3)
    held = []
    for _ in range(25):
        true = rng.standard_normal(8)
        found = agreement(*(side(*(true + 0.5 * rng.standard_normal(8)), error=0.5) for _ in range(2)))
        held.append(found.tau_low <= 1 <= found.tau_high)
    assert np.mean(held) >= 0.88


def test_limits_allow_for_an_order_within_groups_of_encoders_that_the_model_does_not_expect():
    within = 0.1 * np.arange(7)
    a, b = (side(*np.concatenate([one, 3 + one]), error=0.3) for one in (within, within[::-1]))
    found = agreement(a, b)  # the groups are in the same order, the encoders within each in the opposite one
    assert found.tau == pytest.approx((49 - 42) / 91)
    scores, variances = (np.array([list(one[i].values()) for one in (a, b)]) for i in (0, 1))
    model, around = (np.quantile(module._taus(of(scores, variances)), (0.025, 0.975)) for of in
                     (module._true_scores, module._around))  # fmt: skip
    assert (found.tau_low, found.tau_high) == (around[0], model[1])
    assert found.tau_low < model[0] - 0.2  # the model alone takes the order within groups for an error


def test_variances_of_encoders_add_up_to_those_of_pairs(study):
    evidence = study((0.3, 0.5, 0.7, 0.9, 1.1), units=12, seeds=6)
    found = side_of(evidence)
    figures = linearise(evidence)
    assert list(found.score.values()) == pytest.approx(figures.estimate[:, -1].tolist())
    of = differences(figures, *all_pairs(np.arange(5)))
    variance = np.array(list(found.variance.values()))
    assert (variance[of.a] + variance[of.b]).mean() == pytest.approx(of.variance[:, -1].mean(), rel=0.1)


def test_a_noisy_encoder_has_the_larger_variance_and_tiles_that_move_all_alike_have_no_part(counts):
    names = [f"t{i}" for i in range(10)]
    made = {name: next(iter(counts((1.0,), noise=noise, seed=5).values())) for name, noise in
            (("a", 0.1), ("b", 0.1), ("c", 0.1), ("d", 0.9))}  # fmt: skip
    found = side_of(from_counts(made, ("a", "b"), names)).variance
    assert found["d"] > 3 * found["a"]
    calm = {
        name: next(iter(counts((q,), noise=0.001, seed=5).values()))
        for name, q in zip("abcd", (0.9, 1, 1.1, 1.2), strict=True)
    }
    shared = side_of(from_counts(calm, ("a", "b"), names)).variance
    alone = linearise(from_counts(calm, ("a", "b"), names)).units[0, :, -1].var(ddof=1) / 10
    assert max(shared.values()) < alone / 20


def test_controls_have_no_part_and_a_label_has_its_own_scores(study):
    evidence = study((0.3, 0.5, 0.7, 0.9, 1.1))
    assert set(side_of(evidence, controls=["e1"]).score) == {"e0", "e2", "e3", "e4"}
    assert side_of(evidence, label="b").score["e2"] == pytest.approx(linearise(evidence).estimate[2, 1])


@pytest.mark.parametrize("how", [{"seeds": 1}, {"units": 1}])
def test_a_dataset_that_shows_no_variance_gives_no_limits(study, how, recwarn):
    few = side_of(study((0.3, 0.5, 0.7, 0.9), **how))
    assert agreement(few, few).cannot == "no variance"
    assert not recwarn.list


def test_published_deviations_are_those_of_seeds():
    found = published({"a": 0.8, "b": 0.7}, {"a": 0.02, "b": 0.01}, 10)
    assert found.variance == pytest.approx({"a": 0.00004, "b": 0.00001})
