import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcache.slides.resampling import plan_taps, resample


def whole(pixels, factor, height, width):
    rows = plan_taps(0, height, factor, 0.0, len(pixels))
    columns = plan_taps(0, width, factor, 0.0, pixels.shape[1])
    return resample(pixels[rows.start : rows.stop, columns.start : columns.stop], rows, columns)


def slow_means(line, factor, count, shift=0.0):
    """Means over [i, i + 1) * factor by a sum over every source pixel; positions are not rounded."""
    at = np.arange(len(line))
    means = []
    for i in range(count):
        low, high = shift + i * factor, shift + (i + 1) * factor
        weights = np.clip(np.minimum(at + 1, high) - np.maximum(at, low), 0, None)
        means.append((weights * line).sum() / weights.sum())
    return np.array(means)


def line_of(values, factor, count, first=0, shift=0.0):
    taps = plan_taps(first, count, factor, shift, len(values))
    return (taps.weights @ np.asarray(values, dtype=np.float32)[taps.start : taps.stop]) / taps.totals


def test_area_means_by_hand():
    # pixel 0 covers source 0 and half of 1; pixel 1 the other half of 1 and all of 2
    assert line_of([0, 90, 30, 60, 120, 0], 1.5, 4).tolist() == [30, 50, 80, 40]
    assert line_of([10, 20, 30, 40], 2, 2).tolist() == [15, 35]
    assert line_of([10, 20, 30, 40], 2, 1, shift=1).tolist() == [25]


def test_interpolation_by_hand():
    # centres lie at -0.25, 0.25, 0.75 and 1.25; the first is beyond the end, where the value is repeated
    assert line_of([0, 100, 200], 0.5, 4).tolist() == [0, 25, 75, 125]


@pytest.mark.parametrize("factor", [1.013, 1.9976, 3.7, 16.3])
def test_area_means_agree_with_a_slow_sum(factor):
    line = np.random.default_rng(0).integers(0, 256, 400)
    count = int(400 / factor)
    assert np.abs(line_of(line, factor, count) - slow_means(line, factor, count)).max() < 255 / 128


@settings(max_examples=60, deadline=None)
@given(
    factor=st.floats(0.05, 120),
    shift=st.floats(0, 5),
    at=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    value=st.integers(0, 255),
)
def test_a_constant_picture_stays_constant(factor, shift, at, size, value):
    rows, columns = (plan_taps(a, n, factor, shift, 100_000) for a, n in zip(at, size, strict=True))
    pixels = np.full((rows.stop - rows.start, columns.stop - columns.start, 3), value, np.uint8)
    assert (resample(pixels, rows, columns) == value).all()


@settings(max_examples=60, deadline=None)
@given(factor=st.one_of(st.floats(0.2, 9), st.sampled_from([0.5, 1.5, 2.0, 3.0])), data=st.data())
def test_a_window_is_the_same_part_of_the_whole(factor, data):
    pixels = np.random.default_rng(1).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    height, width = int(60 / factor), int(70 / factor)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows = plan_taps(top, data.draw(st.integers(1, height - top)), factor, 0.0, 60)
    columns = plan_taps(left, data.draw(st.integers(1, width - left)), factor, 0.0, 70)
    window = resample(pixels[rows.start : rows.stop, columns.start : columns.stop], rows, columns)
    expected = whole(pixels, factor, height, width)[top : top + window.shape[0], left : left + window.shape[1]]
    assert np.array_equal(window, expected)


@pytest.mark.parametrize("factor", [0.7512, 1.9976, 4.0016])
def test_positions_do_not_drift_over_100_000_pixels(factor):
    taps = plan_taps(99_990, 10, factor, 0.0, 500_000)
    assert taps.start == int(99_990 * factor - (0.5 - factor / 2 if factor < 1 else 0))
    assert taps.stop - taps.start <= 10 * factor + 3


def test_sums_are_exact_for_the_brightest_picture_at_the_largest_weights():
    for factor in (1.999, 63.99, 127.9, 255.0):
        taps = plan_taps(0, 3, factor, 0.0, 1000)
        assert 255 * int(taps.totals.max()) ** 2 < 1 << 24
        assert (taps.weights.data == np.rint(taps.weights.data)).all()
