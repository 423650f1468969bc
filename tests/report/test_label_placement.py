"""Names beside points: over nothing else, near their points, the same each time."""

import itertools

import numpy as np
import pytest

from fmcache.report.label_placement import placed, spread

FRAME = np.array([0.0, 0.0, 430.0, 250.0])
NO_LINES = np.zeros((0, 4))


def meets(a, b):
    return bool((np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all())


@pytest.mark.parametrize("seed", range(4))
def test_eighteen_names_never_overlap_also_where_points_share_an_x(seed):
    rng = np.random.default_rng(seed)
    columns = rng.choice([90.0, 200.0, 290.0, 340.0], 18)
    points = np.stack([columns, rng.uniform(100, 230, 18)], axis=-1)
    sizes = np.stack([rng.uniform(25, 75, 18), np.full(18, 11.0)], axis=-1)
    boxes = placed(points, sizes, FRAME, NO_LINES)
    assert not [pair for pair in itertools.combinations(boxes, 2) if meets(*pair)]
    assert boxes[:, 2:] - boxes[:, :2] == pytest.approx(sizes)
    assert (boxes[:, :2] >= FRAME[:2]).all()
    assert (boxes[:, 2:] <= FRAME[2:]).all()
    assert (placed(points, sizes, FRAME, NO_LINES) == boxes).all()


def test_a_lone_name_stands_right_of_its_point_and_left_of_it_at_the_right_edge():
    for x, side in ((200.0, 1), (425.0, -1)):
        ((x0, y0, x1, y1),) = placed(np.array([[x, 100.0]]), np.array([[40.0, 10.0]]), FRAME, NO_LINES)
        assert ((x0 + x1) / 2 - x) * side > 20
        assert y0 < 100 < y1


def test_a_name_avoids_a_line_beside_its_point():
    line = np.array([[200.0, 100.0, 430.0, 100.0]])
    (box,) = placed(np.array([[200.0, 100.0]]), np.array([[40.0, 10.0]]), FRAME, line)
    assert not meets(box, line[0] + [0, -0.5, 0, 0.5])


def test_no_points_have_no_names():
    assert placed(np.zeros((0, 2)), np.zeros((0, 2)), FRAME, NO_LINES).shape == (0, 4)


def test_spread_moves_values_apart_by_as_little_as_possible():
    assert spread(np.array([0.0, 10.0, 20.0]), 5, 0, 30).tolist() == [0, 10, 20]
    assert spread(np.array([11.0, 9.0]), 6, 0, 30).tolist() == [13, 7]  # around their mean, in their order
    assert spread(np.array([1.0, 1.0, 1.0]), 4, 0, 30).tolist() == [0, 4, 8]  # the limit pushes them up
    assert spread(np.array([29.0, 30.0]), 4, 0, 30).tolist() == [26, 30]
