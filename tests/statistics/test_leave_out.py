"""Leaving a unit out by subtraction is the same as scoring without its tiles; variances come out as by hand."""

import numpy as np
import pytest

from fmcache.scores.dice import dice_per_label
from fmcache.statistics.evidence import ALL_SCORES, from_counts
from fmcache.statistics.leave_out import linearise, seed_scores


def slow_score(tiles, score):
    """The score of each label, (label,), from the counts (tile, label, 3), one label after another."""
    if score in ("pooled", "per_tile", "puma"):
        return dice_per_label(tiles, score)
    found = []
    for label in range(tiles.shape[1]):
        tp, fp, fn = (int(tiles[:, label, part].sum()) for part in range(3))
        counted = {"iou": tp + fp + fn, "precision": tp + fp, "recall": tp + fn}[score]
        found.append(tp / counted if counted else 0.0)
    return np.array(found)


@pytest.mark.parametrize("score", ALL_SCORES)
def test_pseudo_values_are_those_of_a_loop_over_units(score, counts):
    made = counts((0.5, 1.0), units=12, seeds=3)
    for one in made.values():
        one[..., 1] *= 3  # else as many are missed as are found too much, and IoU, precision and recall agree in pairs
    made["e1"][0, :, 1, :2] = 0  # a seed that never predicts a label
    groups = [f"p{i % 5}" for i in range(12)]
    figures = linearise(from_counts(made, ("background", "b"), groups, score))
    for i, one in enumerate(made.values()):
        whole = np.array([slow_score(tiles, score) for tiles in one])
        assert np.allclose(figures.estimate[i, :2], whole.mean(axis=0), equal_nan=True)
        assert np.isclose(figures.estimate[i, 2], np.nanmean(whole, axis=1).mean())
        for unit in range(5):
            kept = [at for at, group in enumerate(groups) if group != f"p{unit}"]
            left = np.array([slow_score(tiles[kept], score) for tiles in one])
            assert np.allclose(figures.units[i, unit, :2], (5 * whole - 4 * left).mean(axis=0), equal_nan=True)


def test_the_mean_of_a_single_label_is_that_label(study):
    figures = linearise(study(labels=1))
    assert np.allclose(figures.units[..., 0], figures.units[..., 1], rtol=1e-12)
    assert np.allclose(figures.seed_cov, figures.seed_cov[:, :1, :1], rtol=1e-12)


def test_variances_by_seeds_are_those_of_the_scores(study):
    evidence = study(seeds=5)
    figures = linearise(evidence)
    for i in range(3):
        scores = seed_scores(evidence, i)
        assert np.allclose(figures.by_seeds[i], scores.var(axis=0, ddof=1) / 5)


def test_what_seeds_and_units_share_is_the_residual_of_a_two_way_table():
    # one label, Dice 0.5 or 0.6 in equal tiles: leaving one out of equal sizes makes pseudo-values the tiles' Dice
    tp = np.array([[50, 60, 50, 60], [60, 50, 50, 60]])
    made = np.stack([tp, 100 - tp, 100 - tp], axis=-1)[:, :, None]
    figures = linearise(from_counts({"x": made}, ("a",), list("pqrs")))
    assert np.allclose(figures.units[0, :, 0], [0.55, 0.55, 0.5, 0.6])
    # residuals are -0.05 and 0.05 in the first two tiles, 0 in the others; (2 - 1) (4 - 1) degrees of freedom
    assert np.isclose(figures.crossed[0, 0], 4 * 0.05**2 / 3 / (2 * 4))


def test_folds_are_left_out_like_units(counts):
    made = counts((1.0,), units=10, seeds=2)
    folds = [0, 1, 2, 3, 4] * 2
    figures = linearise(from_counts(made, ("a", "b"), [f"t{i}" for i in range(10)], "pooled", folds))
    whole = np.mean([dice_per_label(tiles, "pooled") for tiles in made["e0"]], axis=0)
    for fold in range(5):
        kept = np.array(folds) != fold
        left = np.mean([dice_per_label(tiles[kept], "pooled") for tiles in made["e0"]], axis=0)
        assert np.allclose(figures.folds[0, fold, :2], 5 * whole - 4 * left)


def test_a_column_bears_an_interval_only_if_three_units_hold_what_it_is_made_of(counts):
    made = counts((1.0,), units=6)["e0"]
    made[:, 2:, 1] = 0
    figures = linearise(from_counts({"x": made}, ("a", "b"), list("pqrstu")))
    assert figures.holders.tolist() == [6, 2]
    assert figures.able.tolist() == [True, False, False]
    made[:, :2, 1] = 0  # a label that is nowhere is no part of the mean
    figures = linearise(from_counts({"x": made}, ("a", "b"), list("pqrstu")))
    assert figures.able.tolist() == [True, False, True]
    assert np.isclose(figures.estimate[0, 0], figures.estimate[0, 2])


@pytest.mark.parametrize("score", ["pooled", "per_tile", "recall"])
def test_a_label_that_one_fold_holds_bears_no_interval(score, counts):
    made = counts((1.0,), units=8)["e0"]
    made[:, 4:, 1] = (0, 9, 0)  # predicted, but not in the truth
    for folds, able in (([0] * 4 + [1] * 4, False), ([0, 1] * 4, True)):
        figures = linearise(from_counts({"x": made}, ("a", "b"), list("pqrstuvw"), score, folds))
        assert figures.able.tolist() == [True, able, able]


def test_units_that_only_predict_a_label_count_for_its_dice_per_tile(counts):
    made = counts((1.0, 1.2), units=8)
    for one in made.values():
        one[:, 4:, 1] = 0
    made["e0"][:, 4:, 1] = (0, 9, 0)  # predicted, but not in the truth
    made["e1"][:, 4:6, 1] = (0, 9, 0)
    freedom = {
        score: linearise(from_counts(made, ("a", "b"), list("pqrstuvw"), score)).unit_freedom.tolist()
        for score in ("pooled", "per_tile")
    }
    assert freedom == {"pooled": [7, 3, 7], "per_tile": [7, 5, 7]}
