"""Intervals hold known truths about as often as they say: the short form of pipelines/coverage.py, with wide bounds."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fmcache.statistics.intervals import Intervals

SCRIPT = Path(__file__).parents[2] / "pipelines" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))  # as for a script: its neighbour `worlds` is imported
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.mark.parametrize("world", ["moderate", "seeds"])
def test_intervals_hold_the_truth_and_few_false_alarms_are_raised(coverage, world):
    found = coverage.simulate(world, 10, 80, 5)
    # 400 intervals that share 80 studies' tiles; three standard errors of 80 are 0.073
    assert 0.88 <= found["mean"] <= 0.995
    assert 0.88 <= found["label"] <= 0.995
    assert 0.88 <= found["pair"] <= 0.995
    assert found["family_error"] <= 0.12
    assert found["at_once"] >= 0.88
    assert found["best_kept"] >= 0.9


def test_the_check_of_coverage_can_fail(coverage, monkeypatch):
    def seeds_alone(figures):  # what mean and deviation over seeds suggest
        half = 2.26 * np.sqrt(figures.by_seeds)
        return Intervals(figures.estimate - half, figures.estimate + half, half, half)

    monkeypatch.setattr(coverage, "intervals", seeds_alone)
    assert coverage.simulate("moderate", 10, 40, 3)["mean"] < 0.6
