"""Rows of label ids -> simplified polygons that tile them without gaps and overlaps.

Polygons follow pixel edges. `shapely.coverage_simplify` (Visvalingam and Whyatt, 1993) then removes corners of border
lines; a border between two polygons is simplified once, for both. The outer edge of the rows stays, so that polygons
of consecutive rows fit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes

from fmcache.maps.contract import Pixels

TOLERANCES_PX = (2.0, 1.0, 0.5)
"""Corners are removed if their triangle is below the square of this; 0.5 keeps all corners. The first is preferred."""

MOST_ERROR = 0.004
"""The areas of all polygons of a label differ from its pixels by at most this share."""

Geometries = npt.NDArray[Any]


class Pieces(NamedTuple):
    """Polygons of some rows, in px of the map: geometries, and the label id of each."""

    polygons: Geometries
    labels: npt.NDArray[np.uint8]


class Polygons:
    """Makes polygons of consecutive rows of a map; simplifies less where the areas of labels would change too much."""

    def __init__(self) -> None:
        self._px = np.zeros(256)
        self._error_px = np.zeros(256)

    def of(self, labels: Pixels, top: int) -> Pieces:
        """Return the 4-connected regions of labels (y, x), including glass, as polygons; `top` is added to y."""
        found = list(shapes(labels, connectivity=4, transform=(1, 0, 0, 0, 1, top)))
        ids = np.array([int(value) for _, value in found], dtype=np.uint8)
        exact = np.array([shapely.Polygon(one["coordinates"][0], one["coordinates"][1:]) for one, _ in found])
        # with a vertex at every pixel, both sides of a border consist of the same edges; others are not simplified
        matched = shapely.transform(shapely.segmentize(exact, 1.0), np.rint)
        px = np.bincount(ids, shapely.area(exact), minlength=256)
        self._px += px
        for tolerance in TOLERANCES_PX:
            simplified = shapely.coverage_simplify(matched, tolerance, simplify_boundary=False)
            error = np.bincount(ids, shapely.area(simplified), minlength=256) - px
            if (np.abs(self._error_px + error) <= MOST_ERROR * self._px).all():
                break
        self._error_px += error
        return Pieces(without_straight_vertices(simplified), ids)


def without_straight_vertices(polygons: Geometries) -> Geometries:
    """Return the polygons without vertices that lie on a straight line between their neighbours."""
    _, xy, (rings, of_polygon) = shapely.to_ragged_array(polygons)
    first, last = rings[:-1], rings[1:] - 1  # the last vertex of a ring is its first one
    before, after = np.arange(len(xy)) - 1, np.arange(len(xy)) + 1
    before[first] = last - 1
    after[last] = first + 1
    before[last] = last - 1
    one, two = xy - xy[before], xy[after] - xy
    bent = one[:, 0] * two[:, 1] != one[:, 1] * two[:, 0]
    bent[last] = False
    counts = np.add.reduceat(bent, first, dtype=np.intp)
    kept = np.flatnonzero(bent)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # each ring is closed again with its first kept vertex
    order = np.insert(kept, starts[1:], kept[starts[:-1]])
    closed = starts + np.arange(len(starts))
    return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy[order], (closed, of_polygon)))
