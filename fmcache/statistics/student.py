"""Student's t for arrays, and the two trigamma functions that the moderation of variances needs."""

from __future__ import annotations

import numpy as np
from scipy.special import polygamma, stdtr, stdtrit

from fmcache.statistics.evidence import Floats

MANY = 1e9
"""Upper limit of the degrees of freedom; beyond it t is practically normal."""


def quantile(p: Floats | float, freedom: Floats | float) -> Floats:
    """Return the quantile of Student's t; NaN where the degrees of freedom are NaN or not positive."""
    return np.asarray(stdtrit(np.minimum(freedom, MANY), p))


def two_sided(t: Floats, freedom: Floats | float) -> Floats:
    """Return the two-sided probability of a t at least this far from 0."""
    return np.asarray(2 * stdtr(np.minimum(freedom, MANY), -np.abs(t)))


def trigamma(x: float) -> float:
    """Return the second derivative of the logarithm of the gamma function."""
    return float(polygamma(1, x))


def trigamma_inverse(y: float) -> float:
    """Return the x > 0 whose trigamma is y > 0.

    References
    ----------
    Smyth 2004, Linear models and empirical Bayes methods (appendix): Newton's method on 1 / trigamma, from below.
    """
    if y > 1e7:
        return float(1 / np.sqrt(y))
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        now = trigamma(x)
        step = now * (1 - now / y) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x
