"""Boundary agreement: shifted squares by hand, properties, and every distance computed one by one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fmcache.errors import ResultsCorrupt
from fmcache.scores.boundary import boundary_counts, read_boundary, surface_dice, write_boundary
from fmcache.scores.records import RunResults
from fmcache.scores.run_files import BOUNDARY, find_runs, read_run, whole_folder, write_run

GOLDEN = Path(__file__).parent / "golden"
MAPS = arrays(np.uint8, (7, 8), elements=st.sampled_from((0, 1, 1, 2, 255)))
TOLERANCES = st.sampled_from((0.0, 1.0, 1.5, 2.0, 3.0))


def square(left, side=6, size=20):
    """A square of label 1 on label 0, 5 rows from the top."""
    labels = np.zeros((size, size), np.uint8)
    labels[5 : 5 + side, left : left + side] = 1
    return labels


@pytest.mark.parametrize(
    ("shift", "tolerance", "near"),
    [
        (0, 0, 20),
        (1, 0, 10),  # of 6 + 6 pixels in a row, 5 + 5 stay on the rows; no pixel of a side stays
        (1, 1, 20),
        (2, 0, 8),
        (2, 1, 12),  # one more on each row, and the ends of the one side that lies inside the other square
        (2, 1.4, 12),
        (2, 2, 20),
        (10, 3, 0),
    ],
)
def test_a_square_that_is_shifted_by_some_pixels_as_worked_out_by_hand(shift, tolerance, near):
    """A square of 6 has 4 * 6 - 4 = 20 boundary pixels."""
    of_square = boundary_counts(square(2 + shift), square(2), 2, tolerance)[1]
    assert of_square.tolist() == [near, 20, near, 20]
    assert surface_dice(of_square) == near / 20


def test_the_edge_of_a_tile_and_pixels_without_a_truth_are_no_boundary():
    truth = np.zeros((6, 6), np.uint8)
    truth[:, 3:] = 1
    assert boundary_counts(truth, truth, 2, 0).tolist() == [[6] * 4] * 2
    truth[:, 3] = 255  # between the labels lies what nobody knows
    assert boundary_counts(np.full_like(truth, 1), truth, 2, 0).tolist() == [[0] * 4] * 2
    predicted = np.zeros((6, 6), np.uint8)
    predicted[:, 3] = 1  # only where there is no truth
    assert boundary_counts(predicted, truth, 2, 0)[0].tolist() == [0] * 4


def test_a_label_that_only_one_side_has_agrees_nowhere_and_one_that_neither_has_is_undefined():
    empty, one = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    one[4, 4] = 1
    assert boundary_counts(empty, one, 3, 99)[1:].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    scores = surface_dice(boundary_counts(empty, one, 3, 99))
    assert scores[1] == 0
    assert np.isnan(scores[2])


def test_a_tolerance_that_is_a_whole_number_of_pixels_up_to_rounding_is_that_number():
    assert 0.6 / 0.2 < 3
    assert boundary_counts(square(5), square(2), 2, 0.6 / 0.2)[1, 0] == 20


@settings(max_examples=60, deadline=None)
@given(MAPS, MAPS, TOLERANCES)
def test_counts_equal_those_of_all_distances_computed_one_by_one(prediction, truth, tolerance):
    prediction = np.where(prediction == 255, 0, prediction).astype(np.uint8)
    found = boundary_counts(prediction, truth, 3, tolerance)
    for label in range(3):
        real, said = slow_boundary(truth, truth, label), slow_boundary(prediction, truth, label)
        near = [
            sum(any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in b) for y, x in a)
            for a, b in ((real, said), (said, real))
        ]
        assert found[label].tolist() == [near[0], len(real), near[1], len(said)]


def slow_boundary(labels, truth, label):
    height, width = truth.shape
    found = []
    for y, x in np.argwhere((labels == label) & (truth != 255)).tolist():
        beside = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        known = [(v, u) for v, u in beside if 0 <= v < height and 0 <= u < width and truth[v, u] != 255]
        if any(labels[at] != label for at in known):
            found.append((y, x))
    return found


@settings(max_examples=60, deadline=None)
@given(MAPS, MAPS, TOLERANCES)
def test_identical_maps_agree_and_prediction_and_truth_can_change_places(one, other, tolerance):
    same = surface_dice(boundary_counts(np.where(one == 255, 0, one).astype(np.uint8), one, 3, tolerance))
    assert set(same[~np.isnan(same)]) <= {1.0}
    one, other = (np.where(labels == 255, 0, labels).astype(np.uint8) for labels in (one, other))
    there, back = boundary_counts(one, other, 3, tolerance), boundary_counts(other, one, 3, tolerance)
    assert np.array_equal(there, back[:, [2, 3, 0, 1]])
    wider = boundary_counts(one, other, 3, tolerance + 1)
    assert (wider >= there).all()


def test_a_run_without_boundaries_has_none_and_one_that_wrote_them_reads_them(tmp_path):
    (golden,) = find_runs(GOLDEN / "results-v2", "s")
    assert read_boundary(golden) is None
    old, place = read_run(golden), tmp_path / "s" / "d" / "toy" / "seed-000"
    counts = np.arange(16).reshape(2, 2, 4)
    with whole_folder(place) as unfinished:
        shutil.copy(golden / "decoder.safetensors", unfinished)
        write_boundary(unfinished, ["t1", "t2"], ["a", "b"], counts)
        write_run(unfinished, RunResults(old.record, old.counts, old.curve))
    rows = [("t1", "a", 0, 1, 2, 3), ("t1", "b", 4, 5, 6, 7), ("t2", "a", 8, 9, 10, 11), ("t2", "b", 12, 13, 14, 15)]
    assert read_boundary(place).rows() == rows
    (place / BOUNDARY).unlink()
    with pytest.raises(ResultsCorrupt, match=r"boundary\.parquet is missing"):
        read_run(place)
