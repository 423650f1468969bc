"""Windows over a picture: what the model sees, how windows blend, what is read and left out."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.manifest import Label
from fmcache.prediction import blending
from fmcache.prediction.lattice import Axis, Coverage, axis_of, everywhere
from fmcache.prediction.windowing import Settings, predict_bands, tiles_at_a_time, windows_over

LABELS = (Label("a", "#ff0000"), Label("b", "#00ff00"), Label("c", "#0000ff"))
IGNORED = 255


class Drawn:
    """A picture in memory that counts what is read of it."""

    def __init__(self, pixels):
        self.pixels, self.height, self.width = pixels, *pixels.shape[:2]
        self.reads = np.zeros(pixels.shape[:2], int)

    def read(self, top, left, height, width):
        assert top >= 0 and top + height <= self.height and left >= 0 and left + width <= self.width
        self.reads[top : top + height, left : left + width] += 1
        return self.pixels[top : top + height, left : left + width]


class Model(NamedTuple):
    """A model whose label is a function of each pixel's colour: exact, wherever the pixel lies in a tile."""

    tile_px: int = 16
    covered_px: int = 16
    shares: object = None
    mpp: float = 0.5
    labels: tuple = LABELS

    def __call__(self, tiles):
        assert tiles.shape[1:] == (self.tile_px, self.tile_px, 3)
        seen = tiles[:, : self.covered_px, : self.covered_px]
        if self.shares is not None:
            return [
                np.broadcast_to(np.float32(s)[None, :, None, None], (len(seen), 3, *seen.shape[1:3]))
                for s in self.shares
            ]
        return [np.moveaxis(np.float32(seen) / np.float32(seen.sum(axis=-1, keepdims=True)), -1, 1)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3)).astype(np.uint8)


def mapped(picture, model, tmp_path, overlap=0.5, coverage=None, batch=3, shares=False):
    coverage = coverage or everywhere(picture.height, picture.width)
    windows = windows_over(picture, model.tile_px, model.covered_px, overlap, coverage)
    received, ticks = [], []
    predict_bands(picture, model, windows, Settings(batch, 2, tmp_path, shares), received.append, ticks.append)
    assert [r.top for r in received] == list(np.cumsum([0, *(len(r.labels) for r in received)])[:-1])
    assert sum(ticks) == windows.tiles
    return received


def labels_of(received):
    return np.concatenate([r.labels for r in received])


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("size", [(64, 48), (5, 70), (1, 1), (33, 3), (200, 17)])
def test_a_model_of_single_pixels_gives_the_same_map_wherever_windows_lie(tmp_path, size, overlap):
    picture = Drawn(noise(*size))
    received = mapped(picture, Model(), tmp_path, overlap)
    assert np.array_equal(labels_of(received), picture.pixels.argmax(axis=-1))
    assert np.array_equal(np.concatenate([r.picture for r in received]), picture.pixels)
    assert picture.reads.max() == 1  # each pixel is read once


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([(16, 16), (16, 13), (9, 9), (8, 5)]),
    st.floats(0, 0.75),
    st.lists(st.floats(0.001, 1), min_size=3, max_size=3),
    st.integers(1, 3),
)
def test_a_constant_decoder_gives_exactly_a_constant(tmp_path_factory, size, sides, overlap, shares, seeds):
    # the second label is larger by the last bit: any rounding in the blend would show somewhere
    least = np.float32(shares[0])
    shares = [least, np.nextafter(least, np.float32(2)), np.float32(0)]
    model = Model(*sides, shares=[shares] * seeds)
    received = mapped(Drawn(noise(*size)), model, tmp_path_factory.getbasetemp(), overlap, shares=True)
    for of_rows in received:
        assert set(of_rows.labels.ravel()) == {1}
        for label in range(3):
            assert set(of_rows.probability[label].ravel()) == {np.rint(255 * np.float64(shares[label]))}
        assert len(set(of_rows.disagreement.ravel())) == 1


class Uneven(Model):
    """A model that depends on the place in the tile and on the tile's content."""

    def __call__(self, tiles):
        side = self.covered_px
        at = np.add.outer(np.arange(side) * 3, np.arange(side) * 5) % 17 + 1
        seen = (
            tiles[:, :side, :side].astype(np.float64)
            + at[None, :, :, None] * tiles.mean(axis=(1, 2, 3))[:, None, None, None]
        )
        return [np.float32(np.moveaxis(seen / seen.sum(axis=-1, keepdims=True), -1, 1))]


def slow_map(picture, model, overlap):
    """The same map, on the whole picture: reflected by NumPy, windows added one by one."""
    side, step = model.covered_px, max(1, round(model.covered_px * (1 - overlap)))
    rim = side - step
    wide = np.pad(picture, ((rim, 3 * model.tile_px), (rim, 3 * model.tile_px), (0, 0)), mode="reflect")
    ramp = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1.0 if overlap else np.ones(side)
    weight = np.outer(ramp, ramp)
    total, weights = np.zeros((3, *wide.shape[:2])), np.zeros(wide.shape[:2])
    for top in range(0, rim + picture.shape[0], step):
        for left in range(0, rim + picture.shape[1], step):
            (one,) = model(wide[None, top : top + model.tile_px, left : left + model.tile_px])
            total[:, top : top + side, left : left + side] += weight * one[0]
            weights[top : top + side, left : left + side] += weight
    inside = np.s_[rim : rim + picture.shape[0], rim : rim + picture.shape[1]]
    return total[:, *inside] / weights[inside]


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.6])
@pytest.mark.parametrize("sides", [(16, 16), (16, 14)])
def test_the_map_is_the_weighted_mean_of_all_windows_of_a_pixel(tmp_path, sides, overlap):
    picture, model = noise(70, 45), Uneven(*sides)
    expected = slow_map(picture, model, overlap)
    received = mapped(Drawn(picture), model, tmp_path, overlap, shares=True)
    assert np.array_equal(labels_of(received), expected.argmax(axis=0))
    found = np.concatenate([r.probability for r in received], axis=1)
    assert np.abs(found / 255 - expected).max() <= 0.5 / 255 + 1e-6
    entropy = -(expected * np.log(expected)).sum(axis=0) / np.log(3)
    found = np.concatenate([r.disagreement for r in received])
    assert np.abs(found / 255 - entropy).max() <= 0.5 / 255 + 1e-6


def test_glass_costs_no_tile_is_not_read_and_is_not_predicted(tmp_path):
    picture = Drawn(noise(160, 160))
    cells = np.zeros((20, 20), bool)
    cells[10:12, 3] = True  # rows 80 to 95, columns 24 to 31
    coverage = Coverage(8, cells)
    received = mapped(picture, Model(), tmp_path, 0.5, coverage)
    labels, tissue = labels_of(received), np.kron(cells, np.ones((8, 8))).astype(bool)
    assert (labels[~tissue] == IGNORED).all()
    assert np.array_equal(labels[tissue], picture.pixels.argmax(axis=-1)[tissue])
    windows = windows_over(picture, 16, 16, 0.5, coverage)
    assert windows.tiles == 3 * 2  # starts 72, 80, 88 and 16, 24
    assert not picture.reads[:64].any() and not picture.reads[112:].any() and not picture.reads[:, 48:].any()
    seen = np.concatenate([r.picture for r in received])
    assert (seen[picture.reads == 0] == 255).all()


def test_a_picture_without_tissue_calls_no_model(tmp_path):
    received = mapped(Drawn(noise(40, 40)), Model(), tmp_path, 0.5, Coverage(8, np.zeros((5, 5), bool)))
    assert (labels_of(received) == IGNORED).all()


def test_what_is_predicted_does_not_depend_on_glass_beside_it(tmp_path):
    picture, model = Drawn(noise(64, 64)), Uneven()
    cells = np.random.default_rng(1).random((8, 8)) < 0.3
    part = labels_of(mapped(picture, model, tmp_path, 0.5, Coverage(8, cells)))
    whole = labels_of(mapped(picture, model, tmp_path, 0.5))
    tissue = np.kron(cells, np.ones((8, 8))).astype(bool)
    assert np.array_equal(part[tissue], whole[tissue])


def test_the_mean_over_seeds_is_blended_and_its_entropy_is_their_disagreement(tmp_path):
    of_seeds = [(1, 0, 0), (0, 1, 0)]
    (first, *_) = mapped(Drawn(noise(20, 20)), Model(shares=of_seeds), tmp_path, shares=True)
    assert set(first.probability[:2].ravel()) == {128}  # 127.5, to even
    assert set(first.probability[2].ravel()) == {0}
    assert set(first.disagreement.ravel()) == {round(255 * np.log(2) / np.log(3))}


def test_sums_that_are_mapped_from_a_file_give_the_same_map(tmp_path, monkeypatch):
    picture = Drawn(noise(70, 45))
    expected = labels_of(mapped(picture, Uneven(), tmp_path))
    monkeypatch.setattr(blending, "SPILL_BYTES", 0)
    assert np.array_equal(labels_of(mapped(picture, Uneven(), tmp_path)), expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["picture", "model", "receive"])
def test_an_error_anywhere_ends_the_map_with_this_error(tmp_path, broken):
    picture, model = Drawn(noise(64, 64)), Model()

    def fail(*_):
        raise TileErrorHere

    class TileErrorHere(Exception): ...

    if broken == "picture":
        picture.read = fail
    windows = windows_over(picture, 16, 16, 0.5, everywhere(64, 64))
    failing = type("Failing", (Model,), {"__call__": fail})() if broken == "model" else model
    receive = fail if broken == "receive" else lambda _: None
    with pytest.raises(TileErrorHere):
        predict_bands(picture, failing, windows, Settings(3, 2, tmp_path), receive)


def test_batches_are_smaller_when_there_are_many_seeds():
    assert tiles_at_a_time(32, 1, 3, 512) == 32
    assert tiles_at_a_time(32, 10, 3, 512) == 4
    assert tiles_at_a_time(4, 100, 50, 8192) == 1


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 39), st.floats(0, 0.75))
def test_every_pixel_lies_in_as_many_windows_as_any_other(size, tile, cut, overlap):
    axis = axis_of(size, tile, max(1, tile - cut), overlap)
    counts = np.zeros(size, int)
    for start in axis.starts:
        counts[max(start, 0) : max(start + axis.covered_px, 0)] += 1
    whole, rest = divmod(axis.covered_px, axis.stride_px)
    assert set(counts) <= {whole, whole + (rest > 0)}
    # no window could be left out: the first and the last one predict a pixel of the picture
    assert axis.starts[0] + axis.covered_px > 0 and axis.starts[-1] < size


def test_pixels_outside_are_reflected_without_the_edge_itself():
    assert Axis(4, 8, 8, 4).pixels(0).tolist() == [2, 3, 2, 1, 0, 1, 2, 3]
    assert Axis(1, 3, 3, 3).pixels(0).tolist() == [0, 0, 0]
