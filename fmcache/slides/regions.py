"""Annotated regions over a grid of tiles: the share of each label in a tile, and the tile's mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from fmcache.manifest import IGNORE, Label
from fmcache.slides.slide import SlideGrid
from fmcache.tiles.annotations import Annotation, Mask, class_counts, rasterise
from fmcache.tiles.classes import Selection

BARE = 254  # while counting: pixels under no region; label ids are always lower
SAMPLE_PX = 64  # shares are sampled on a lattice of 64 x 64 points, which is exact enough to choose tiles


class Rules(NamedTuple):
    """How annotations are read: which features are regions, label id by class name (255: ignored), drawing order, and
    the label id of unannotated pixels."""

    labels: tuple[Label, ...]
    ids: Mapping[str, int]
    selection: Selection
    order: tuple[str, ...]
    fill: int


class Regions:
    """The annotations of one slide, indexed by position."""

    def __init__(self, annotations: Sequence[Annotation], rules: Rules) -> None:
        self._rules = rules
        self.classes = class_counts(annotations)
        self._annotations = annotations
        self._tree = shapely.STRtree([a.geometry for a in self._annotations])

    def mask(self, grid: SlideGrid, column: int, row: int) -> Mask:
        """Return the mask of a tile, (y, x) uint8 label ids, and the share of pixels under several labels."""
        return self._drawn(grid.corner(column, row), (grid.tile_px, grid.tile_px), grid.scale, self._rules.fill)

    def counts(self, grid: SlideGrid, tick: Callable[[int], None]) -> npt.NDArray[np.float64]:
        """Return the shares of each tile, (row, column, label + 2): every label, unannotated, ignored.

        One row of tiles is drawn at a time; `tick` is called with 1 for each row.
        """
        sample = min(SAMPLE_PX, grid.tile_px)
        values = [*range(len(self._rules.labels)), BARE, IGNORE]
        shares = np.zeros((grid.rows, grid.columns, len(values)))
        for row in range(grid.rows if grid.columns else 0):
            origin, size = (0.0, row * grid.step_px), (grid.columns * sample, sample)
            mask = self._drawn(origin, size, sample / grid.step_px, BARE).mask
            tiles = mask.reshape(sample, grid.columns, sample)
            shares[row] = np.stack([(tiles == value).mean(axis=(0, 2)) for value in values], axis=-1)
            tick(1)
        return shares

    def _drawn(self, origin: tuple[float, float], size: tuple[int, int], scale: float, fill: int) -> Mask:
        window = shapely.box(*origin, origin[0] + size[0] / scale, origin[1] + size[1] / scale)
        near = [self._annotations[i] for i in sorted(self._tree.query(window).tolist())]  # in the order of the file
        return rasterise(near, self._rules.ids, size, order=self._rules.order, origin=origin, scale=scale, fill=fill)
