"""Quantiles against tables, and the inverse of the trigamma against itself."""

import numpy as np
import pytest

from fmcache.statistics.student import quantile, trigamma, trigamma_inverse, two_sided


def test_quantiles_are_those_of_the_table():
    assert np.allclose(quantile(0.975, np.array([2.0, 9.0, np.inf])), [4.302653, 2.262157, 1.959964], atol=1e-6)
    assert np.isclose(two_sided(np.array(-2.262157), 9.0), 0.05)


@pytest.mark.parametrize("y", [1e-9, 1e-3, 0.1, 1.0, 30.0, 1e5, 1e9])
def test_the_inverse_of_trigamma_gives_it_back(y):
    assert trigamma(trigamma_inverse(y)) == pytest.approx(y, rel=1e-3 if y in (1e-9, 1e9) else 1e-8)


def test_trigamma_of_one_is_pi_squared_over_six():
    assert trigamma(1.0) == pytest.approx(np.pi**2 / 6)
