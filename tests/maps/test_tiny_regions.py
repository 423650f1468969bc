"""Specks get the label of what is around them."""

import numpy as np
import pytest

from fmcache.maps.contract import GLASS
from fmcache.maps.tiny_regions import without_specks


def test_specks_are_replaced_and_counted_and_the_rest_is_unchanged():
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = 1
    labels[5:7, 3:5] = 2  # 4 px in label 0
    labels[10, 20] = GLASS  # a hole of 1 px in label 1
    labels[12:15, 20:23] = 2  # 9 px: large enough
    expected = labels.copy()
    expected[5:7, 3:5] = 0
    expected[10, 20] = 1
    found, specks = without_specks(labels, 3, 9)
    assert (found == expected).all()
    assert specks == ((0, 0), (0, 0), (1, 4), (1, 1))


def test_a_speck_between_two_labels_is_shared_by_them():
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    labels[9:11, 8:12] = 2
    found, _ = without_specks(labels, 3, 9)
    assert (found[9:11, 8:12] == [0, 0, 1, 1]).all()


@pytest.mark.parametrize("row", [0, 19])
def test_what_may_continue_in_other_rows_stays(row):
    labels = np.zeros((20, 20), np.uint8)
    labels[row, 5] = 1
    found, specks = without_specks(labels, 2, 9)
    assert (found == labels).all()
    assert specks == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 3)])
def test_maps_as_small_as_a_speck_are_kept_where_nothing_is_around(shape):
    found, _ = without_specks(np.ones(shape, np.uint8), 2, 1e6)
    assert (found == 1).all()
