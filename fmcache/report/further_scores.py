"""Scores beyond overlap, by encoder and seed: agreement of boundaries, and calibration of the softmax.

Runs have them in files of their own, or not at all. Here are means over seeds only; intervals would resample the counts
that the runs keep for each tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.scores.boundary import PARTS, read_boundary, surface_dice
from fmcache.scores.calibration import BINS, calibration_error, read_calibration
from fmcache.scores.dice import mean_of_defined
from fmcache.scores.records import RunResults
from fmcache.statistics.evidence import Evidence
from fmcache.statistics.schemas import MEAN

BOUNDARY = (
    {"encoder": pl.String, "seed": pl.Int64, "label": pl.String}
    | dict.fromkeys(PARTS, pl.Int64)
    | {"tolerance": pl.String, "nsd": pl.Float64}
)
CALIBRATION_PARTS = ("pixels", "confidence", "correct")
CALIBRATION = {"encoder": pl.String, "seed": pl.Int64, "bin": pl.Int64} | dict.fromkeys(CALIBRATION_PARTS, pl.Int64)

Floats = npt.NDArray[np.float64]


class FurtherScores(NamedTuple):
    """Tables with the columns `BOUNDARY` and `CALIBRATION`, without rows where no run has the counts.

    The folds of a seed are added. Seeds that did not test every tile are left out. `seeds` are the numbers of the
    others by encoder.
    """

    boundary: pl.DataFrame
    calibration: pl.DataFrame
    seeds: dict[str, int]

    def nsd(self, encoder: str, label: str) -> Floats | None:
        """Return the surface Dice of each seed of an encoder for a label or `mean`; None if a seed has none."""
        rows = self.boundary.filter(pl.col("encoder") == encoder, pl.col("label") == label)
        values = rows["nsd"].drop_nulls().to_numpy()
        return values if 0 < len(values) == self.seeds[encoder] else None

    def ece(self, encoder: str) -> Floats | None:
        """Return the expected calibration error of each seed of an encoder; None if a seed has no counts."""
        own = self.calibration.filter(pl.col("encoder") == encoder)
        values = [
            float(calibration_error(rows.select(CALIBRATION_PARTS).to_numpy()))
            for _, rows in own.group_by("seed", maintain_order=True)
        ]
        return np.array(values) if 0 < len(values) == self.seeds[encoder] else None


def further_scores(runs: Sequence[RunResults], evidence: Evidence) -> FurtherScores:
    """Return the scores beyond overlap of the runs of one dataset, as far as their folders have them.

    Raises
    ------
    ResultsCorrupt
        When a file was damaged after the run was read.
    """
    of_seeds: dict[tuple[str, int], list[RunResults]] = {}
    known = dict(zip(evidence.encoders, evidence.seeds, strict=True))
    for run in sorted(runs, key=lambda run: (run.record.encoder.name, run.record.seed, run.record.fold or 0)):
        key = (run.record.encoder.name, run.record.seed)
        if key[1] in known[key[0]]:
            of_seeds.setdefault(key, []).append(run)
    boundary = [row for key, found in of_seeds.items() for row in _boundary_rows(key, found, evidence)]
    calibration = [row for key, found in of_seeds.items() for row in _calibration_rows(key, found)]
    return FurtherScores(
        pl.DataFrame(boundary, BOUNDARY, orient="row"),
        pl.DataFrame(calibration, CALIBRATION, orient="row"),
        {name: len(seeds) for name, seeds in known.items()},
    )


def _boundary_rows(
    key: tuple[str, int], runs: Sequence[RunResults], evidence: Evidence
) -> Iterator[tuple[object, ...]]:
    table = _joined(runs, read_boundary)
    if table is None:
        return
    of_label = table.group_by("label").agg(pl.col(PARTS).sum()).rows_by_key("label", unique=True)
    counts = np.array([of_label[label] for label in evidence.labels], dtype=np.int64)
    # as for every other score: a label that no truth holds has none
    scores = np.where(evidence.holds.any(axis=0), surface_dice(counts), np.nan)
    tolerance = runs[0].record.recipe["boundary"]
    for label, parts, score in zip(evidence.labels, counts.tolist(), scores, strict=True):
        yield (*key, label, *parts, tolerance, _or_null(score))
    yield (*key, MEAN, *[None] * len(PARTS), tolerance, _or_null(float(mean_of_defined(scores, axis=0))))


def _calibration_rows(key: tuple[str, int], runs: Sequence[RunResults]) -> Iterator[tuple[object, ...]]:
    table = _joined(runs, read_calibration)
    if table is None:
        return
    of_bin = table.group_by("bin").agg(pl.col(CALIBRATION_PARTS).sum()).rows_by_key("bin", unique=True)
    for at in range(BINS):
        yield (*key, at, *of_bin.get(at, [0] * len(CALIBRATION_PARTS)))


def _joined(runs: Sequence[RunResults], read: Callable[[Path], pl.DataFrame | None]) -> pl.DataFrame | None:
    """Return the tables of the runs of one seed, one for each fold, as one; None if a run has none."""
    tables = [read(run.folder) if run.folder else None for run in runs]
    found = [table for table in tables if table is not None]
    return pl.concat(found) if len(found) == len(tables) else None


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
