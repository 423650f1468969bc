"""Polygons of label maps: they tile the rows, and the areas of labels stay within the stated error."""

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize, shapes

from fmcache.maps import polygons
from fmcache.maps.polygons import MOST_ERROR, Polygons, without_straight_vertices


def back(pieces, shape, top=0):
    pairs = zip(pieces.polygons, pieces.labels.tolist(), strict=True)
    return rasterize(pairs, shape, fill=77, dtype="uint8", transform=(1, 0, 0, 0, 1, top))


@pytest.mark.parametrize("seed", range(4))
def test_with_the_last_tolerance_the_polygons_are_the_map(maps, monkeypatch, seed):
    monkeypatch.setattr(polygons, "TOLERANCES_PX", polygons.TOLERANCES_PX[-1:])
    labels = maps.blobs(97, 60, blur_px=[0.5, 1, 3, 8][seed], seed=seed)
    pieces = Polygons().of(labels, 1000)
    assert (back(pieces, labels.shape, 1000) == labels).all()
    assert shapely.is_valid(pieces.polygons).all()


def test_neighbours_share_their_border_after_simplification(maps):
    labels = maps.blobs(400, 600)
    pieces = Polygons().of(labels, 0)
    exact = Polygons()
    exact_px = shapely.get_num_coordinates(exact.of(labels, 0).polygons).sum()
    assert shapely.area(pieces.polygons).sum() == labels.size  # nothing twice, no gap: the sum is that of the union
    assert shapely.union_all(pieces.polygons).area == pytest.approx(labels.size, abs=1e-6)
    assert exact_px == shapely.get_num_coordinates(pieces.polygons).sum()  # the same rows give the same polygons
    assert (back(pieces, labels.shape) != labels).mean() < 0.01


def test_borders_are_simplified_where_a_third_region_meets_them_on_a_straight_edge(maps):
    labels = maps.blobs(300, 800, count=6)
    found = [shapely.geometry.shape(one) for one, _ in shapes(labels, connectivity=4)]
    unmatched = shapely.coverage_simplify(found, polygons.TOLERANCES_PX[0], simplify_boundary=False)
    vertices = [shapely.get_num_coordinates(some).sum() for some in (Polygons().of(labels, 0).polygons, unmatched)]
    assert vertices[0] < 0.9 * vertices[1]


def test_area_errors_of_all_labels_stay_within_the_limit_in_every_strip(maps):
    """Small regions of equal size, whose areas simplification changes by more than the limit in one direction."""
    labels = np.zeros((300, 300), np.uint8)
    y, x = np.mgrid[:300, :300] % 30
    labels[(x - 14.3) ** 2 + (y - 14.6) ** 2 < 7**2] = 1
    made, error_px = Polygons(), 0.0
    for top in range(0, 300, 60):
        rows = labels[top : top + 60]
        pieces = made.of(rows, top)
        error_px += shapely.area(pieces.polygons[pieces.labels == 1]).sum() - (rows == 1).sum()
        assert abs(error_px) <= MOST_ERROR * (labels[: top + 60] == 1).sum()


def test_the_limit_of_the_area_error_is_what_keeps_small_regions_exact(maps, monkeypatch):
    labels = np.zeros((60, 60), np.uint8)
    y, x = np.mgrid[:60, :60] % 30
    labels[(x - 14.3) ** 2 + (y - 14.6) ** 2 < 7**2] = 1
    monkeypatch.setattr(polygons, "TOLERANCES_PX", (3.0,))
    pieces = Polygons().of(labels, 0)
    assert abs(shapely.area(pieces.polygons[pieces.labels == 1]).sum() / (labels == 1).sum() - 1) > MOST_ERROR


def test_straight_vertices_are_removed_and_nothing_else():
    square = [(0, 0), (1, 0), (2, 0), (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)]
    hole = [(0.5, 0.5), (0.5, 1.5), (1.5, 1.5), (1.5, 1), (1.5, 0.5), (0.5, 0.5)]
    starts_straight = [(5, 0), (6, 0), (6, 1), (4, 1), (4, 0), (5, 0)]
    one, two = without_straight_vertices(np.array([shapely.Polygon(square, [hole]), shapely.Polygon(starts_straight)]))
    assert shapely.equals(one, shapely.Polygon(square, [hole]))
    assert [len(ring.coords) for ring in (one.exterior, *one.interiors, two.exterior)] == [5, 5, 5]
    assert shapely.equals(two, shapely.box(4, 0, 6, 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2)])
def test_tiny_maps_are_exact(shape):
    labels = (np.indices(shape).sum(0) % 3).astype(np.uint8)
    assert (back(Polygons().of(labels, 0), shape) == labels).all()
