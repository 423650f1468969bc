import json
from pathlib import Path

import numpy as np
import pytest

from fmcache.errors import TileError
from fmcache.slides.canvas import Canvas
from fmcache.slides.tissue import region_cells, tissue_cells

PINK = (205, 120, 170)
PALE = (228, 214, 226)


class Picture:
    """A slide in memory with one level of 1 um/px."""

    def __init__(self, pixels):
        self._pixels, self.size, self.mpp, self.key = pixels, pixels.shape[1::-1], 1.0, "key"
        self.origin, self.sizes, self.factors = (0, 0), [self.size], [1.0]

    def region(self, level, place, size):
        return self._pixels[place[1] : place[1] + size[1], place[0] : place[0] + size[0]]


def glass(height=1600, width=2400):
    """Glass as scanners show it: nearly white, a little yellow, with noise."""
    noise = np.random.default_rng(0).normal((242, 241, 237), 2, (200, 200, 3)).astype(np.uint8)
    return np.tile(noise, (height // 200, width // 200, 1))


def stained(pixels, rows, columns, colour=PINK, spread=25):
    part = pixels[rows, columns]
    noise = np.clip(np.random.default_rng(1).normal(colour, spread, (200, 200, 3)), 0, 255).astype(np.uint8)
    part[:] = np.tile(noise, (len(part) // 200 + 1, part.shape[1] // 200 + 1, 1))[: len(part), : part.shape[1]]


def canvas_of(pixels, mpp=1.0):
    return Canvas(Path("a.svs"), Picture(pixels), mpp)


def cells_of(pixels, cell_px=160, mpp=1.0):
    return tissue_cells(canvas_of(pixels, mpp), cell_px, lambda n: None)


def test_cells_with_tissue_and_their_neighbours_are_found():
    pixels = glass()
    stained(pixels, slice(640, 960), slice(800, 1440))  # cells 4 to 5 and 5 to 8
    expected = np.zeros((10, 15), bool)
    expected[3:7, 4:10] = True
    rows = []
    assert np.array_equal(tissue_cells(canvas_of(pixels), 160, rows.append), expected)
    assert rows == [1] * 10


@pytest.mark.parametrize(("cell_px", "mpp"), [(80, 2.0), (320, 0.5), (7, 25.0)])
def test_the_map_is_the_same_at_every_um_per_pixel(cell_px, mpp):
    pixels = glass()
    stained(pixels, slice(700, 960), slice(810, 1430))
    found = cells_of(pixels, cell_px, mpp)
    edge = cell_px * mpp
    y, x = np.argwhere(found).min(axis=0), np.argwhere(found).max(axis=0)
    assert y.tolist() == [int(700 // edge) - 1, int(810 // edge) - 1]
    assert x.tolist() == [int(959 // edge) + 1, int(1429 // edge) + 1]


def test_glass_alone_is_not_halved():
    assert not cells_of(glass()).any()
    assert not cells_of(np.full((800, 800, 3), 255, np.uint8)).any()


def test_tissue_alone_is_not_halved():
    pixels = glass()
    stained(pixels, slice(None), slice(None))
    stained(pixels, slice(None), slice(1200, None), colour=(120, 40, 110))  # half of it darker, where Otsu would split
    assert cells_of(pixels).all()


def test_pale_tissue_is_found_beside_strong_stain():
    pixels = glass()
    stained(pixels, slice(320, 480), slice(320, 480), colour=(120, 20, 110))
    stained(pixels, slice(1120, 1280), slice(1600, 1760), colour=(220, 190, 215), spread=3)
    found = cells_of(pixels)
    assert found[2, 2]
    assert found[7, 10]
    assert found.sum() == 18


def test_pale_tissue_alone_is_found():
    pixels = glass()
    stained(pixels, slice(320, 480), slice(320, 480), colour=PALE, spread=3)
    assert cells_of(pixels).sum() == 9


def test_black_borders_are_no_tissue():
    pixels = glass()
    pixels[:, :330] = pixels[1400:] = 0
    noise = np.random.default_rng(2).integers(0, 9, pixels.shape)  # dark noise has random, full saturation
    pixels[:, :330] += noise[:, :330].astype(np.uint8)
    stained(pixels, slice(640, 800), slice(1600, 1760))
    found = cells_of(pixels)
    assert found.sum() == 9
    assert found[3:6, 9:12].all()


def test_the_last_cells_may_reach_beyond_the_canvas():
    pixels = glass(1000, 1000)
    stained(pixels, slice(970, None), slice(970, None))
    found = cells_of(pixels, 480)
    assert found.tolist() == [[False, False, False], [False, True, True], [False, True, True]]


def test_dust_is_no_tissue():
    pixels = glass()
    pixels[400:404, 400:404] = PINK
    assert not cells_of(pixels).any()


# regions


def write_regions(path, *rings):
    features = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": list(polygon)}}
        for polygon in rings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def test_cells_that_regions_touch_are_found_in_pixels_of_level_0(tmp_path):
    canvas = canvas_of(glass(), mpp=2.0)  # cells of 80 px are 160 px of level 0
    path = write_regions(tmp_path / "r.geojson", [box(170, 330, 470, 640)], [box(2000, 10, 2001, 1590)])
    expected = np.zeros((10, 15), bool)
    expected[2:4, 1:3] = True
    expected[:, 12] = True  # also a region thinner than a cell
    assert np.array_equal(region_cells(canvas, 80, path), expected)


def test_a_hole_leaves_out_the_cells_inside_it(tmp_path):
    path = write_regions(tmp_path / "r.geojson", [box(10, 10, 1590, 1590), box(300, 300, 1300, 1300)])
    found = region_cells(canvas_of(glass()), 160, path)
    assert not found[2:8, 2:8].any()
    assert found[:10, :10].sum() == 64


def test_no_region_or_none_on_the_slide_is_refused(tmp_path):
    canvas = canvas_of(glass())
    with pytest.raises(TileError, match="holds no regions") as caught:
        region_cells(canvas, 160, write_regions(tmp_path / "r.geojson"))
    assert caught.value.next_step
    with pytest.raises(TileError, match="no region lies on the image"):
        region_cells(canvas, 160, write_regions(tmp_path / "s.geojson", [box(9000, 9000, 9100, 9100)]))
