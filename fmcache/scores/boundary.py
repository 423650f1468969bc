"""Boundary agreement: how much of the boundary of a label lies close to that of the prediction, and the reverse.

The boundary of a label are its pixels with a neighbour (4-connected) that is not of the label: the label without its
erosion. Neighbours without a truth, and those beyond the edge of the tile, make no boundary: what is there is unknown.
Distances are Euclidean, between pixel centres. Counts per tile and label add up over tiles.

References
----------
Nikolov et al. 2021, Clinically applicable segmentation of head and neck anatomy for radiotherapy, J Med Internet Res
23(7), for the surface Dice at a tolerance. There surfaces have areas; here each boundary pixel counts as 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.manifest import IGNORE
from fmcache.scores.run_files import BOUNDARY, listed_table

PARTS = ("truth_near", "truth_all", "predicted_near", "predicted_all")
SCHEMA = {"tile": pl.String, "label": pl.String} | dict.fromkeys(PARTS, pl.Int64)
ROUNDING = 1 + 1e-9
"""A tolerance of 0.6 um at 0.2 um/px is 3 px, although 0.6 / 0.2 is slightly less in floating point."""

Mask = npt.NDArray[np.bool_]


def boundary_counts(
    prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], n_labels: int, tolerance_px: float
) -> npt.NDArray[np.int64]:
    """Return the boundary pixels of each label that are within a tolerance of the other boundary, and all of them.

    Parameters
    ----------
    prediction, truth
        (y, x) label ids; where the truth is 255, neither has a boundary.
    tolerance_px
        The largest distance, in pixels, that is close.

    Returns
    -------
    (label, 4) int64, as in `PARTS`: pixels of the boundary of the truth that are close to that of the prediction, all
    pixels of the boundary of the truth, then the same for the boundary of the prediction.
    """
    seen, largest = truth != IGNORE, tolerance_px * ROUNDING
    counts = np.zeros((n_labels, len(PARTS)), np.int64)
    for label in range(n_labels):
        real, said = (_boundary((labels == label) & seen, seen) for labels in (truth, prediction))
        counts[label] = (_near(real, said, largest), real.sum(), _near(said, real, largest), said.sum())
    return counts


def _boundary(label: Mask, seen: Mask) -> Mask:
    from scipy import ndimage  # only for runs that count boundaries

    return np.asarray(label & ~ndimage.binary_erosion(label | ~seen, border_value=1))


def _near(boundary: Mask, other: Mask, largest: float) -> int:
    """Return how many pixels of a boundary are at most `largest` px from the nearest pixel of another."""
    from scipy import ndimage

    if not boundary.any() or not other.any():
        return 0
    return int((ndimage.distance_transform_edt(~other)[boundary] <= largest).sum())


def surface_dice(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the normalised surface Dice, (...), of counts (..., 4); NaN where neither side has a boundary.

    It is (truth_near + predicted_near) / (truth_all + predicted_all).
    """
    truth_near, truth_all, predicted_near, predicted_all = np.moveaxis(counts.astype(np.float64), -1, 0)
    whole = truth_all + predicted_all
    return np.asarray(np.divide(truth_near + predicted_near, whole, out=np.full_like(whole, np.nan), where=whole > 0))


def write_boundary(folder: Path, tiles: Sequence[str], labels: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
    """Write counts (tile, label, 4) into the (unfinished) folder of a run."""
    rows = [(tile, label, *counts[i, j].tolist()) for i, tile in enumerate(tiles) for j, label in enumerate(labels)]
    pl.DataFrame(rows, SCHEMA, orient="row").write_parquet(folder / BOUNDARY)


def read_boundary(folder: Path) -> pl.DataFrame | None:
    """Return the table that a run wrote, with the columns `SCHEMA`; None for a run that counted no boundaries.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch
        When there is no such run, its files are damaged, or a later fmcache wrote them.
    """
    return listed_table(folder, BOUNDARY, SCHEMA)
