"""Regions that reach across strips become one polygon, and memory for them is limited."""

import cv2
import numpy as np
import pytest
import shapely
from rasterio.features import rasterize

from fmcache.maps import joining, polygons
from fmcache.maps.joining import Joiner
from fmcache.maps.polygons import Polygons


def joined(labels, strip_px):
    """Return (label, polygon, strip at which it was finished) of all regions."""
    made, joiner, found = Polygons(), Joiner(labels.shape[1]), []
    for top in range(0, len(labels), strip_px):
        rows = labels[top : top + strip_px]
        for region in joiner.add(made.of(rows, top), top, top + len(rows)):
            found += [(region.label, polygon, top // strip_px) for polygon in region.polygons()]
    for region in joiner.finish():
        found += [(region.label, polygon, -1) for polygon in region.polygons()]
    return found


def components(labels):
    return sum(
        cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=4)[0] - 1
        for label in np.unique(labels)
    )


@pytest.mark.parametrize("seed", range(12))
def test_joined_polygons_are_the_4_connected_regions_of_the_map(maps, monkeypatch, seed):
    monkeypatch.setattr(polygons, "TOLERANCES_PX", polygons.TOLERANCES_PX[-1:])
    rng = np.random.default_rng(seed)
    height, width, strip_px = (int(n) for n in rng.integers(1, 60, 3))
    labels = maps.blobs(height, width, count=2 + seed % 3, blur_px=[0.4, 1, 2, 4][seed % 4], seed=seed)
    found = joined(labels, strip_px)
    assert len(found) == components(labels)
    assert (rasterize([one[1::-1] for one in found], labels.shape, fill=77, dtype="uint8") == labels).all()
    assert shapely.is_valid([polygon for _, polygon, _ in found]).all()


@pytest.mark.parametrize("seed", range(6))
def test_simplified_polygons_fit_across_strips_without_gap_and_overlap(maps, monkeypatch, seed):
    monkeypatch.setattr(polygons, "TOLERANCES_PX", (3.0,))
    labels = maps.blobs(150, 120, blur_px=[0.5, 2, 6][seed % 3], seed=seed)
    shapes = [polygon for _, polygon, _ in joined(labels, 23)]
    assert sum(shape.area for shape in shapes) == labels.size
    assert shapely.union_all(shapes).area == pytest.approx(labels.size, abs=1e-6)
    assert shapely.is_valid(shapes).all()


def test_a_region_is_returned_when_no_strip_can_add_to_it():
    labels = np.zeros((40, 20), np.uint8)
    labels[2:5, 3:6] = 1  # inside strip 0
    labels[8:23, 10:12] = 2  # from strip 0 to strip 2
    assert {label: at for label, _, at in joined(labels, 10)} == {1: 0, 2: 2, 0: -1}


def test_regions_that_meet_at_a_corner_of_the_seam_stay_apart():
    labels = np.array([[1, 0], [0, 1]], np.uint8)
    assert sorted(label for label, _, _ in joined(labels, 1)) == [0, 0, 1, 1]


def test_two_arms_that_meet_later_are_one_region_with_its_hole():
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8] = 1
    labels[3:6, 3:6] = 2
    ring = next(polygon for label, polygon, _ in joined(labels, 2) if label == 1)
    assert len(ring.interiors) == 1
    assert ring.area == 49 - 9


def test_too_many_vertices_are_returned_early_and_nothing_is_lost(maps, monkeypatch):
    monkeypatch.setattr(joining, "MOST_VERTICES", 60)
    kept = []
    cut = Joiner._cut
    monkeypatch.setattr(
        Joiner, "_cut", lambda self: [*cut(self), *(kept.append(sum(one.vertices for one in self._open)) or ())]
    )
    labels = maps.blobs(200, 100, blur_px=3)
    found = joined(labels, 20)
    assert len(found) > components(labels)
    assert max(kept) <= 60
    assert sum(polygon.area for _, polygon, _ in found) == labels.size
    assert shapely.union_all([polygon for _, polygon, _ in found]).area == pytest.approx(labels.size, abs=1e-6)
