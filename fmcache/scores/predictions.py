"""The predictions of a run on its test tiles, and the truth: kept beside the counts, so that a report can draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.errors import ResultsCorrupt
from fmcache.scores.run_files import PREDICTIONS, REDO, listed_file

MOST_TILES = 100
"""At most this many test tiles are kept of each split or fold."""

SCHEMA = {
    "tile": pl.String,
    "height": pl.Int32,
    "width": pl.Int32,
    "predicted": pl.Binary,
    "truth": pl.Binary,
}

Labels = npt.NDArray[np.uint8]


class Predictions(NamedTuple):
    """Label ids of some test tiles, both (tile, y, x) uint8; 255 in `truth` where there is no truth.

    They cover the pixels that the token grid covers (`GridGeometry.covered_px`).
    """

    tiles: tuple[str, ...]
    predicted: Labels
    truth: Labels


def kept_tiles(tiles: Sequence[str]) -> tuple[str, ...]:
    """Return the test tiles that are kept: all, or `MOST_TILES` evenly spaced ones of the sorted tiles.

    They depend on the tiles alone, so they are the same for all runs on a split.
    """
    ordered = sorted(tiles)
    n = min(len(ordered), MOST_TILES)
    return tuple(ordered[i * len(ordered) // n] for i in range(n))


def write_predictions(folder: Path, kept: Predictions) -> None:
    """Write predictions and truth into the (unfinished) folder of a run; each tile as raw uint8, row by row."""
    (_, height, width) = kept.predicted.shape
    columns = {
        "tile": kept.tiles,
        "height": [height] * len(kept.tiles),
        "width": [width] * len(kept.tiles),
        "predicted": [tile.tobytes() for tile in kept.predicted],
        "truth": [tile.tobytes() for tile in kept.truth],
    }
    # statistics would repeat the bytes of whole tiles
    pl.DataFrame(columns, SCHEMA).write_parquet(folder / PREDICTIONS, compression="zstd", statistics=False)


def read_predictions(folder: Path) -> Predictions | None:
    """Return the predictions that a run kept; None for a run of an earlier fmcache, which kept none.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch
        When there is no such run, its files are damaged, or a later fmcache wrote them.
    """
    path = listed_file(folder, PREDICTIONS)
    if path is None:
        return None
    try:
        table = pl.read_parquet(path)
        (shape,) = set(table.select("height", "width").iter_rows())
        predicted, truth = (
            np.stack([np.frombuffer(tile, np.uint8).reshape(shape) for tile in table[column]])
            for column in ("predicted", "truth")
        )
        return Predictions(tuple(table["tile"]), predicted, truth)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as reason:
        raise ResultsCorrupt(f"{path} cannot be read", found=str(reason)[:200], next_step=REDO) from None
