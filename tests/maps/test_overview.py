"""The overview picture: reduced labels over the slide, legend and scale bar."""

import numpy as np
import pytest
from PIL import Image

from fmcache.manifest import Label
from fmcache.maps import overview
from fmcache.maps.contract import GLASS, MapGeometry
from fmcache.maps.overview import scale_bar


def shown(folder):
    return np.asarray(Image.open(folder / "slide.overview.png")).astype(int)


def test_labels_lie_over_the_mean_of_the_slide_and_glass_shows_the_slide(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(overview, "SIDE_PX", 100)  # 10 px become one
    labels = np.full((1000, 500), GLASS, np.uint8)
    labels[:500] = 0
    picture = np.zeros((1000, 500, 3), np.uint8)
    picture[::2] = 200  # a mean of 100
    maps.write(tmp_path, labels, 77, picture=picture)
    found = shown(tmp_path)
    assert (found[50:100, :50] == 100).all()
    inner = found[5:45, 5:45]
    assert np.abs(inner - (0.6 * 100 + 0.4 * np.array([200, 0, 0]))).max() <= 1
    assert (found[100:] == [200, 0, 0]).all(-1).sum() > 100  # the legend
    assert (found[100:] == 0).all(-1).sum() > 100  # the scale bar


def test_an_odd_end_is_the_mean_of_what_there_is(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(overview, "SIDE_PX", 10)
    labels = np.full((95, 41), GLASS, np.uint8)
    maps.write(tmp_path, labels, 3, picture=np.full((95, 41, 3), 77, np.uint8))
    assert (shown(tmp_path)[:10, :5] == 77).all()


def test_the_picture_does_not_depend_on_the_height_of_bands(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(overview, "SIDE_PX", 100)
    labels = maps.blobs(700, 130)
    picture = np.random.default_rng(0).integers(0, 256, (700, 130, 3), np.uint8)
    for band_px in (1, 100, 600):
        maps.write(tmp_path / str(band_px), labels, band_px, picture=picture)
    assert len({(tmp_path / str(n) / "slide.overview.png").read_bytes() for n in (1, 100, 600)}) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_long_and_tiny_maps_have_a_picture_of_limited_size(tmp_path, maps, shape):
    maps.write(tmp_path, np.zeros(shape, np.uint8))
    assert max(Image.open(tmp_path / "slide.overview.png").size) <= 2200


def test_long_names_names_of_any_script_and_many_labels_fit(tmp_path, maps):
    names = ["x" * 10_000, "肿瘤", "$a_b$ <b>", "a\nb", *(f"label {i}" for i in range(60))]
    geometry = MapGeometry("slide", 100, 100, 0.5, 1.0, tuple(Label(name, "#123456") for name in names))
    maps.write(tmp_path, np.zeros((100, 100), np.uint8), geometry=geometry)
    width, height = Image.open(tmp_path / "slide.overview.png").size
    assert width < 1000
    assert height < 3000


@pytest.mark.parametrize(
    ("mpp", "most_px", "expected"),
    [(10, 120, (1000, 100)), (10, 99, (500, 50)), (0.5, 120, (50, 100)), (50, 500, (20_000, 400)), (5, 0.1, (1, 0.2))],
)
def test_the_scale_bar_is_the_longest_round_length_that_fits(mpp, most_px, expected):
    assert scale_bar(mpp, most_px) == expected
