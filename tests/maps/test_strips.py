"""Bands of any height become strips of one height, and bands that do not fit are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.manifest import Label
from fmcache.maps.contract import GLASS, STRIP_PX, Band, MapGeometry
from fmcache.maps.strips import Strips

LABELS = (Label("a", "#000000"), Label("b", "#ffffff"))


def geometry(height, width=3):
    return MapGeometry("m", height, width, 0.5, 1.0, LABELS)


def a_band(top, rows, width=3, **parts):
    return Band(top, np.zeros((rows, width), np.uint8), **parts)


@given(st.lists(st.integers(1, 2 * STRIP_PX + 1), min_size=1, max_size=5), st.booleans())
def test_strips_are_the_rows_of_the_bands_in_steps_of_one_height(heights, probability):
    height = sum(heights)
    rng = np.random.default_rng(height)
    labels, shares = rng.integers(0, 2, (height, 3), np.uint8), rng.integers(0, 256, (2, height, 3), np.uint8)
    strips, found, top = Strips(geometry(height)), [], 0
    for rows in heights:
        part = slice(top, top + rows)
        for strip in strips.add(Band(top, labels[part], shares[:, part] if probability else None)):
            found.append((strip.top, strip.labels.copy(), strip.probability.copy() if probability else None))
        top += rows
    strips.finish()
    assert [top for top, _, _ in found] == list(range(0, height, STRIP_PX))
    assert {len(rows) for _, rows, _ in found[:-1]} <= {STRIP_PX}
    assert (np.concatenate([rows for _, rows, _ in found]) == labels).all()
    if probability:
        assert (np.concatenate([rows for _, _, rows in found], axis=1) == shares).all()


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([a_band(1, 2)], "expected row 0"),
        ([a_band(0, 4), a_band(5, 2)], "expected row 4"),
        ([a_band(0, 4), a_band(3, 2)], "expected row 4"),
        ([a_band(0, 11)], "expected row 0 of 10"),
        ([a_band(0, 4, width=4)], "labels of a band"),
        ([a_band(0, 4, probability=np.zeros((3, 4, 3), np.uint8))], "probability of a band"),
        ([a_band(0, 4, disagreement=np.zeros((4, 3), np.float32))], "disagreement of a band: expected uint8"),
        ([a_band(0, 4, picture=np.zeros((4, 3, 4), np.uint8))], "picture of a band"),
        ([a_band(0, 4), a_band(4, 4, disagreement=np.zeros((4, 3), np.uint8))], "the first band has"),
        ([Band(0, np.full((4, 3), 2, np.uint8))], "ids"),
    ],
)
def test_a_band_that_does_not_fit_is_refused(bands, message):
    strips = Strips(geometry(10))
    with pytest.raises(ValueError, match=message):
        for band in bands:
            list(strips.add(band))


def test_missing_bands_are_refused_at_the_end_and_glass_is_a_value_like_others():
    strips = Strips(geometry(10))
    assert list(strips.add(Band(0, np.full((9, 3), GLASS, np.uint8)))) == []
    with pytest.raises(ValueError, match="end at row 9"):
        strips.finish()
