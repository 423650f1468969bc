"""Small studies for the tests: random counts with effects of unit, encoder and seed."""

import numpy as np
import pytest

from fmcache.statistics.evidence import from_counts

LABELS = ("a", "b")


def draw_counts(quality, units=10, seeds=4, labels=2, seed=0, noise=0.3):
    """Counts by encoder, (seed, unit, label, 3), of encoders of a quality each (logit of Dice)."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.6, (units, labels))
    truth = rng.integers(2_000, 20_000, (units, labels))
    result = {}
    for i, q in enumerate(quality):
        x = q + shared + rng.normal(0, noise, (units, labels)) + rng.normal(0, noise, (seeds, 1, labels))
        x = x + rng.normal(0, noise, (seeds, units, labels))
        tp = np.rint(truth / (1 + np.exp(-x))).astype(np.int64)
        result[f"e{i}"] = np.stack([tp, truth - tp, truth - tp], axis=-1)
    return result


def draw_study(quality=(0.5, 1.0, 1.5), score="pooled", groups=(), folds=(), **how):
    """The evidence of `draw_counts`, each tile a unit unless `groups` says otherwise."""
    made = draw_counts(quality, **how)
    n, labels = next(iter(made.values())).shape[1:3]
    names = ("background", "b") if score == "puma" else LABELS
    return from_counts(made, names[:labels], groups or [f"t{i:02d}" for i in range(n)], score, folds)


@pytest.fixture
def counts():
    return draw_counts


@pytest.fixture
def study():
    return draw_study
