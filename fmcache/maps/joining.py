"""Polygons of consecutive strips -> whole regions. A region is returned when no strip can add to it.

Memory holds the strip's polygons and the outlines of the regions that reach its lower edge. A region whose outline
becomes too long is cut there, so that memory has a limit for regions of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fmcache.maps.polygons import Geometries, Pieces, without_straight_vertices

MOST_VERTICES = 1_000_000
"""Vertices of all unfinished regions; above it the largest region is cut (about 500 bytes each while it is joined)."""

Ids = npt.NDArray[np.intp]
NOBODY = -1


@dataclass
class Region:
    """A region of one label that may continue in the next strip: the polygons it consists of so far.

    `is_cut`: other polygons of it were returned before.
    """

    label: int
    pieces: list[Any] = field(default_factory=list)
    vertices: int = 0
    is_cut: bool = False

    def polygons(self) -> Geometries:
        """Return the pieces, joined where they touch."""
        if len(self.pieces) < 2:  # none after a cut that no strip continued
            return np.array(self.pieces, dtype=object)
        return without_straight_vertices(shapely.get_parts(shapely.union_all(self.pieces)))


class Joiner:
    """Joins the polygons of one map, strip by strip."""

    def __init__(self, width: int) -> None:
        self._open: list[Region] = []
        self._below = np.full(width, NOBODY, np.intp)  # the open region of each column, at the lower edge

    def add(self, pieces: Pieces, top: int, bottom: int) -> Iterator[Region]:
        """Yield the regions that end in the strip of rows `top` to `bottom`, and parts of regions that are cut."""
        above, lower = self._edge(pieces, top), self._edge(pieces, bottom)
        group_of = self._groups(pieces, above)
        joined: dict[int, Region] = {}
        for i, region in enumerate(self._open):
            _merge(joined.setdefault(group_of[i], Region(region.label)), region)
        sizes = shapely.get_num_coordinates(pieces.polygons)
        for i, (polygon, label) in enumerate(zip(pieces.polygons, pieces.labels.tolist(), strict=True)):
            region = joined.setdefault(group_of[len(self._open) + i], Region(label))
            region.pieces.append(polygon)
            region.vertices += int(sizes[i])
        reaching = np.where(lower == NOBODY, NOBODY, group_of[len(self._open) + lower])
        still = [group for group in joined if group in set(reaching.tolist())]
        number = np.full(len(group_of) + 1, NOBODY)
        number[still] = np.arange(len(still))
        self._below = number[reaching]
        self._open = [joined[group] for group in still]
        yield from (region for group, region in joined.items() if number[group] == NOBODY)
        yield from self._cut()

    def finish(self) -> list[Region]:
        """Return the regions that reach the end of the map."""
        return self._open

    def _cut(self) -> Iterator[Region]:
        while sum(region.vertices for region in self._open) > MOST_VERTICES:
            largest = max(self._open, key=lambda region: region.vertices)
            yield Region(largest.label, largest.pieces, is_cut=True)
            largest.pieces, largest.vertices, largest.is_cut = [], 0, True

    def _edge(self, pieces: Pieces, y: int) -> Ids:
        """Return the polygon of each column that has an edge at `y`."""
        rings, of_polygon = shapely.get_rings(pieces.polygons, return_index=True)
        xy, of_ring = shapely.get_coordinates(rings, return_index=True)
        on = (xy[:-1, 1] == y) & (xy[1:, 1] == y) & (of_ring[:-1] == of_ring[1:])
        owner = np.full(len(self._below), NOBODY, np.intp)
        for i in np.flatnonzero(on):
            left, right = sorted((int(xy[i, 0]), int(xy[i + 1, 0])))
            owner[left:right] = of_polygon[of_ring[i]]
        return owner

    def _groups(self, pieces: Pieces, above: Ids) -> Ids:
        """Return a group number for each open region, then for each polygon; those that touch have the same."""
        count = len(self._open) + len(pieces.polygons)
        if not self._open:
            return np.arange(count)
        label_of = np.array([region.label for region in self._open])
        touching = label_of[self._below] == pieces.labels[above]
        pairs = np.unique(np.stack([self._below, above + len(self._open)])[:, touching], axis=1)
        edges = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(count, count))
        return np.asarray(connected_components(edges, directed=False)[1])


def _merge(into: Region, region: Region) -> None:
    into.pieces += region.pieces
    into.vertices += region.vertices
    into.is_cut |= region.is_cut
