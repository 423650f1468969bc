import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.errors import SpecError
from fmcache.scores.counts import count
from fmcache.scores.dice import check_reduction, dice, dice_per_label, mean_of_defined


def slow_counts(prediction, truth, n_labels):
    counts = np.zeros((n_labels, 3), dtype=int)
    for p, t in zip(prediction.ravel(), truth.ravel(), strict=True):
        if t == 255:
            continue
        if p == t:
            counts[t, 0] += 1
        else:
            counts[p, 1] += 1
            counts[t, 2] += 1
    return counts


@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0, 1))
def test_counts_equal_a_slow_reference(seed, n_labels, ignored):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(0, n_labels, (2, 6, 7)).astype("uint8")
    truth[rng.random(truth.shape) < ignored] = 255
    assert np.array_equal(count(prediction, truth, n_labels), slow_counts(prediction, truth, n_labels))


def test_what_is_predicted_under_ignored_pixels_changes_nothing():
    truth = np.array([[0, 1, 255, 255]], dtype="uint8")
    one = count(np.array([[0, 1, 0, 0]], dtype="uint8"), truth, 2)
    other = count(np.array([[0, 1, 1, 1]], dtype="uint8"), truth, 2)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("bad", [np.full((2, 2), 7), np.zeros((2, 3))])
def test_wrong_labels_and_shapes_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        count(bad.astype("uint8"), np.zeros((2, 2), dtype="uint8"), 2)


def test_dice_of_a_label_absent_in_both_is_left_out_and_of_one_missed_is_zero():
    counts = np.array([[[4, 2, 2], [0, 0, 0]], [[0, 0, 5], [0, 0, 0]]])
    assert dice(counts).tolist()[0][0] == pytest.approx(8 / 12)
    pooled, per_tile = dice_per_label(counts, "pooled"), dice_per_label(counts, "per_tile")
    assert pooled[0] == pytest.approx(8 / 17)
    assert per_tile[0] == pytest.approx((8 / 12 + 0) / 2)
    assert np.isnan(pooled[1])
    assert np.isnan(per_tile[1])


def slow_puma(predictions, truths):
    """The challenge's own loop: every class but the background, over all images."""
    scores = []
    for label in range(1, 6):
        inter = a = b = 0
        for p, t in zip(predictions, truths, strict=True):
            for y in range(p.shape[0]):
                for x in range(p.shape[1]):
                    a, b = a + (p[y, x] == label), b + (t[y, x] == label)
                    inter += p[y, x] == label and t[y, x] == label
        scores.append(0.0 if inter == 0 else (2 * inter + 1e-5) / (a + b + 1e-5))
    return scores


@pytest.mark.parametrize("n_seen", [6, 4])
def test_the_challenge_metric_equals_a_slow_reference(n_seen):
    rng = np.random.default_rng(n_seen)
    predictions, truths = rng.integers(0, n_seen, (2, 3, 7, 5)).astype("uint8")
    counts = np.stack([count(p, t, 6) for p, t in zip(predictions, truths, strict=True)])
    scores, expected = dice_per_label(counts, "puma"), slow_puma(predictions, truths)
    assert np.isnan(scores[0])
    assert scores[1:].tolist() == pytest.approx(expected, abs=1e-12)
    assert mean_of_defined(scores, axis=0) == pytest.approx(np.mean(expected), abs=1e-12)
    if n_seen == 4:
        assert scores[4:].tolist() == [0, 0]  # absent in both, and 0 all the same


def test_the_challenge_metric_is_for_labels_that_begin_with_the_background():
    check_reduction("puma", ["background", "stroma"])
    check_reduction("pooled", ["tumour", "stroma"])
    with pytest.raises(SpecError, match="puma-official"):
        check_reduction("puma", ["tumour", "stroma"])
