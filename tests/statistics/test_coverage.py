"""Intervals hold known truths about as often as they say: the short form of pipelines/coverage.py, with wide bounds."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fmcache.statistics.evidence import ALL_SCORES
from fmcache.statistics.intervals import Intervals
from fmcache.statistics.leave_out import seed_scores

PIPELINES = Path(__file__).parents[2] / "pipelines"


def script(name):
    """Import a script with its neighbours, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PIPELINES)
        spec = importlib.util.spec_from_file_location(f"script_{name}", PIPELINES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def coverage():
    return script("coverage")


@pytest.fixture(scope="module")
def worlds():
    return script("worlds")


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


@pytest.mark.parametrize("score", ALL_SCORES)
def test_the_truth_of_a_world_is_the_score_of_a_very_large_study(worlds, score, monkeypatch):
    monkeypatch.setattr(worlds, "TOO_MUCH", 0.03 * worlds.PIXELS)  # precision and recall are far apart
    world = worlds.World(score=score, rare=0.4, seeds=12)
    quality = worlds.levels(world, 1, equal=True)
    large = worlds.draw(np.random.default_rng(0), world, quality, 6_000).evidence()
    scores = seed_scores(large, 0)
    error = 4 * scores.std(axis=0, ddof=1) / np.sqrt(12) + 0.004  # the largest of 24 labels, and 20,000 tiles of truth
    truth = worlds.truth_of(world, quality)[0]
    assert np.isnan(truth).tolist() == [score == "puma", False, False, False]
    assert (np.abs(scores.mean(axis=0) - truth) < error)[~np.isnan(truth)].all()


def test_the_check_of_coverage_can_fail(coverage, monkeypatch):
    def seeds_alone(figures):  # what mean and deviation over seeds suggest
        half = 2.26 * np.sqrt(figures.by_seeds)
        return Intervals(figures.estimate - half, figures.estimate + half, half, half)

    monkeypatch.setattr(coverage, "intervals", seeds_alone)
    assert coverage.simulate("moderate", 10, 40, 3)["mean"] < 0.6


def test_the_calibration_error_has_no_interval_because_none_holds_the_truth_often_enough():
    calibration = script("calibration_coverage")
    found = calibration.simulate("slightly too sure, tiles differ", 10, 300)
    assert max(found[method] for method in ("as Dice", "plain", "less bias")) < 0.91  # its own error: 0.02
    good = calibration.simulate("right", 10, 100)
    assert 1.4 < good["computed"] / good["truth"] < 2  # the report's note says 1.7
    assert calibration.simulate("too sure", 40, 100)["as Dice"] > 0.88  # the simulation is not just hard on all


def test_the_true_calibration_error_is_that_of_a_study_of_very_many_tiles():
    calibration = script("calibration_coverage")
    for name in ("right, tiles differ", "slightly too sure"):
        found = calibration.simulate(name, 1_000, 20)
        assert found["computed"] == pytest.approx(found["truth"], rel=0.1)
