"""Find the cells of a canvas that hold tissue, from colour at low resolution, or take them from annotated regions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize

from fmcache.errors import TileError
from fmcache.slides.canvas import Canvas
from fmcache.tiles.annotations import read_annotations
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.placement import check_place
from fmcache.tiles.unwarned import unwarned

DETECTION_MPP = 8.0  # a level near this um/px is in most pyramids; cells and gaps between glands are still visible
GLASS_MOST, TISSUE_LEAST = 12, 30
"""Limits of the threshold on saturation (0 to 255). Otsu's method always splits in two, also when there is only glass
or only tissue. Glass stays below 12 with a scanner's noise, and tissue with any stain reaches 30."""
DARKEST = 30  # value of HSV: borders and frames that scanners draw in black have no reliable saturation
SPECK_PX = 3  # edge of the median filter at 8 um/px: dust and single noisy pixels are no tissue


def tissue_cells(canvas: Canvas, cell_px: int, tick: Callable[[int], None]) -> npt.NDArray[np.bool_]:
    """Return which cells hold tissue, and their neighbours: (row, column) bool.

    Cells of `cell_px` x `cell_px` pixels lie side by side from the upper left corner; the last ones may reach beyond
    the canvas. `tick` is called with 1 for each row of cells.

    The threshold on saturation is Otsu's within limits.

    References
    ----------
    Otsu (1979), A threshold selection method from gray-level histograms; saturation as in CLAM (Lu et al., 2021).
    """
    samples = max(round(cell_px * canvas.true_mpp / DETECTION_MPP), 1)
    rows, columns = _cells(canvas, cell_px)
    size = (columns * samples, samples)
    saturation = np.empty((rows * samples, columns * samples), dtype=np.uint8)
    for row in range(rows):
        pixels = canvas.read_coarse(cell_px / samples, (0, row * samples), size)
        saturation[row * samples : (row + 1) * samples] = _saturation(pixels)
        tick(1)
    cells = found_tissue(saturation).reshape(rows, samples, columns, samples).any(axis=(1, 3))
    grown = cv2.dilate(np.asarray(cells, dtype=np.uint8), np.ones((3, 3), np.uint8))
    return np.asarray(grown, dtype=np.bool_)


def _saturation(pixels: Pixels) -> Pixels:
    colours = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), dtype=np.uint8)
    return np.where(colours[..., 2] < DARKEST, np.uint8(0), colours[..., 1])


def found_tissue(saturation: Pixels) -> npt.NDArray[np.bool_]:
    """Return which pixels are tissue, (y, x) bool, from their saturation at about 8 um/px, (y, x) uint8."""
    smooth = np.asarray(cv2.medianBlur(saturation, SPECK_PX), dtype=np.uint8)
    otsu, _ = cv2.threshold(smooth, 0, 1, cv2.THRESH_OTSU)
    return smooth > min(max(otsu, GLASS_MOST), TISSUE_LEAST)


def region_cells(canvas: Canvas, cell_px: int, path: Path) -> npt.NDArray[np.bool_]:
    """Return which cells the regions of a GeoJSON file touch, (row, column) bool, as `tissue_cells`.

    Coordinates are in pixels of level 0, as QuPath exports them; names of classes do not matter.

    Raises
    ------
    TileError
        When the file is not GeoJSON, has no regions, or all of them lie outside the slide.
    """
    annotations = read_annotations(path)
    if not annotations:
        raise TileError(
            f"{path} holds no regions",
            expected="polygons, as QuPath exports annotations",
            next_step="draw the regions to predict, and export them as GeoJSON",
        )
    check_place(path, annotations, canvas.full_size)
    step = canvas.scale * cell_px
    place = Affine(step, 0.0, 0.0, 0.0, step, 0.0)
    shapes = [annotation.geometry for annotation in annotations]
    with unwarned(NotGeoreferencedWarning):  # slides have no geographic coordinates
        cells = rasterize(shapes, out_shape=_cells(canvas, cell_px), transform=place, all_touched=True, dtype="uint8")
    return np.asarray(cells, dtype=np.bool_)


def _cells(canvas: Canvas, cell_px: int) -> tuple[int, int]:
    return math.ceil(canvas.height / cell_px), math.ceil(canvas.width / cell_px)
