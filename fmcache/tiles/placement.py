"""Check the position of annotated regions on their image. Regions outside it, or within one pixel, have other units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmcache.errors import TileError
from fmcache.tiles.annotation_notes import BEYOND, CORNER
from fmcache.tiles.annotations import Annotation

EDGE_PX = 2  # tolerance beyond an edge, for hand-drawn outlines and rounding


def check_place(path: Path, annotations: Sequence[Annotation], size: tuple[int, int]) -> Counter[str]:
    """Return notes on regions of an image of `size` (width, height): how many reach beyond it, and whether all lie in
    its upper left quarter.

    Raises
    ------
    TileError
        When all regions lie outside the image, or within its first pixel.
    """
    edges = np.array([annotation.geometry.bounds for annotation in annotations])
    low, high, size_px = edges[:, :2], edges[:, 2:], np.array(size)
    inside = ((low < size_px) & (high > 0)).all(axis=1)
    within_a_pixel = low.min() >= 0 and high.max() <= 1
    if not inside.any() or within_a_pixel:
        raise TileError(
            f"{path}: " + ("all regions lie in the first pixel" if within_a_pixel else "no region lies on the image"),
            expected=f"coordinates in pixels of the image, x 0 to {size[0]} and y 0 to {size[1]}, y from the top edge",
            found=f"{len(annotations)} regions, from {tuple(low.min(axis=0).tolist())} to "
            f"{tuple(high.max(axis=0).tolist())}",
            next_step=_way(bool(within_a_pixel), bool((high[:, 1] <= 0).all())),
        )
    beyond = (low < -EDGE_PX).any(axis=1) | (high > size_px + EDGE_PX).any(axis=1)
    corner = bool((high.max(axis=0) <= size_px / 2).all())
    return Counter({key: n for key, n in ((BEYOND, int(beyond.sum())), (CORNER, int(corner))) if n})


def _way(shares: bool, upside_down: bool) -> str:
    if shares:
        return "the coordinates are fractions of the image: multiply them by its width and height"
    if upside_down:
        return "y increases upwards in this file: change its sign"
    return "export the annotations of exactly this image"
