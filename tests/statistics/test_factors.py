"""Variance components of studies whose components are known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fmcache.errors import SpecError
from fmcache.statistics.evidence import from_counts
from fmcache.statistics.factors import mean_pseudo_values, variances
from fmcache.statistics.leave_out import linearise


@pytest.fixture(scope="module")
def script():
    """The script that draws studies from known components."""
    path = Path(__file__).parents[2] / "pipelines" / "factor_coverage.py"
    spec = importlib.util.spec_from_file_location("factor_coverage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_components_are_unbiased_and_their_limits_hold_the_truth(script):
    for source, (truth, mean, coverage) in script.cover(script.World(), 5, 10, 60).items():
        assert mean == pytest.approx(truth, rel=0.25, abs=0.4), source
        assert coverage >= 0.85, source


def test_agreement_is_one_without_interactions_and_falls_with_them(script):
    rng = np.random.default_rng(13)
    worlds = [script.World(interaction) for interaction in (0.0, 2.0, 6.0)]
    means = [
        np.mean([variances(one.study(rng, 5, 10), script.NAMES).agreement[0] for _ in range(20)]) for one in worlds
    ]
    assert means[0] > 0.95
    assert means[0] > means[1] > means[2]
    assert means[2] == pytest.approx(worlds[2].agreement(), abs=0.1)


def test_kendalls_w_of_equal_and_of_opposite_orders():
    scores = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    noise = np.random.default_rng(1).normal(0, 1e-3, (3, 2, 4, 5))
    assert variances(scores[..., None, None] + noise, ("encoder", "decoder")).kendall_w[0] == pytest.approx(1)
    scores[:, 1] = scores[::-1, 1]
    assert variances(scores[..., None, None] + noise, ("encoder", "decoder")).kendall_w[0] == pytest.approx(0)


def test_shares_add_up_to_one_and_are_never_negative(script):
    shares = variances(script.World().study(np.random.default_rng(2), 5, 10), script.NAMES).shares
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()


def test_two_units_or_seeds_give_components_without_limits(script):
    found = variances(script.World().study(np.random.default_rng(3), 2, 2), script.NAMES)
    assert np.isfinite(found.variance).all()
    assert np.isnan(found.low).all()


@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 1, 3, 3), (2, 2, 1, 3), (2, 2, 3, 1)])
def test_what_cannot_be_divided_is_refused(shape):
    with pytest.raises(SpecError, match="cannot be divided"):
        variances(np.zeros(shape), ("encoder", "decoder"))


def test_pseudo_values_are_those_of_the_intervals():
    rng = np.random.default_rng(4)
    counts = {name: rng.integers(1, 500, (3, 6, 2, 3)) for name in ("x", "y")}
    evidence = from_counts(counts, ("a", "b"), [f"t{i}" for i in range(6)])
    assert np.allclose(mean_pseudo_values(evidence, "y").mean(axis=0), linearise(evidence).units[1, :, -1])
