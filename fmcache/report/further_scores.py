"""Scores beyond overlap, by encoder and seed: agreement of boundaries, and calibration of the softmax.

Runs have them in files of their own, or not at all. The surface Dice is a ratio of sums over tiles, as Dice is, so it
gets the same intervals and ranks. The calibration error gets none: it is not a smooth function of sums, with few tiles
it is too high where calibration is good, and such intervals hold the truth too rarely (simulated by
pipelines/calibration_coverage.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.scores.boundary import PARTS, read_boundary, surface_dice
from fmcache.scores.calibration import BINS, calibration_error, read_calibration
from fmcache.scores.dice import mean_of_defined
from fmcache.scores.records import RunResults
from fmcache.statistics.evidence import Evidence, evidence_of
from fmcache.statistics.schemas import MEAN

BOUNDARY = (
    {"encoder": pl.String, "seed": pl.Int64, "label": pl.String}
    | dict.fromkeys(PARTS, pl.Int64)
    | {"tolerance": pl.String, "nsd": pl.Float64}
)
CALIBRATION_PARTS = ("pixels", "confidence", "correct")
CALIBRATION = {"encoder": pl.String, "seed": pl.Int64, "bin": pl.Int64} | dict.fromkeys(CALIBRATION_PARTS, pl.Int64)

Floats = npt.NDArray[np.float64]


_OVERLAP = {
    "tp": pl.col("truth_near") + pl.col("predicted_near"),
    "fp": pl.col("predicted_all") - pl.col("predicted_near"),
    "fn": pl.col("truth_all") - pl.col("truth_near"),
}
"""The counts of boundaries as the statistics take them: see the score ``nsd`` in `fmcache.statistics.evidence`."""


class FurtherScores(NamedTuple):
    """Tables with the columns `BOUNDARY` and `CALIBRATION`, without rows where no run has the counts.

    The folds of a seed are added. Seeds that did not test every tile are left out. `seeds` are the numbers of the
    others by encoder. `boundaries` is the evidence of the encoders whose seeds all have counts of boundaries, None if
    there are none; its labels are held by the units whose truth has a boundary of them.
    """

    boundary: pl.DataFrame
    calibration: pl.DataFrame
    seeds: dict[str, int]
    boundaries: Evidence | None

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
    counted = {key: table for key, found in of_seeds.items() if (table := _joined(found, read_boundary)) is not None}
    tolerance = next((runs[0].record.recipe["boundary"] for key, runs in of_seeds.items() if key in counted), "")
    calibration = [row for key, found in of_seeds.items() for row in _calibration_rows(key, found)]
    groups = {tile: group for run in runs for tile, group in run.record.groups.items()}
    return FurtherScores(
        pl.DataFrame(list(_boundary_rows(counted, evidence, tolerance)), BOUNDARY, orient="row"),
        pl.DataFrame(calibration, CALIBRATION, orient="row"),
        {name: len(seeds) for name, seeds in known.items()},
        _boundary_evidence(counted, evidence, groups),
    )


def _boundary_rows(
    counted: Mapping[tuple[str, int], pl.DataFrame], evidence: Evidence, tolerance: str
) -> Iterator[tuple[object, ...]]:
    """Yield the rows of `BOUNDARY`. A label of which no truth has a boundary has no score, as for every other score."""
    if not counted:
        return
    held = set(pl.concat(counted.values()).filter(pl.col("truth_all") > 0)["label"])
    for key, table in counted.items():
        of_label = table.group_by("label").agg(pl.col(PARTS).sum()).rows_by_key("label", unique=True)
        counts = np.array([of_label[label] for label in evidence.labels], dtype=np.int64)
        scores = np.where([label in held for label in evidence.labels], surface_dice(counts), np.nan)
        for label, parts, score in zip(evidence.labels, counts.tolist(), scores, strict=True):
            yield (*key, label, *parts, tolerance, _or_null(score))
        yield (*key, MEAN, *[None] * len(PARTS), tolerance, _or_null(float(mean_of_defined(scores, axis=0))))


def _boundary_evidence(
    counted: Mapping[tuple[str, int], pl.DataFrame], evidence: Evidence, groups: Mapping[str, str]
) -> Evidence | None:
    seeds = dict(zip(evidence.encoders, evidence.seeds, strict=True))
    whole = {name for name, of in seeds.items() if of and all((name, seed) in counted for seed in of)}
    if not whole:
        return None
    tables = [
        table.select(
            "tile", "label", "fold", dataset=pl.lit(""), split=pl.lit("test"),
            encoder=pl.lit(name), seed=pl.lit(seed, pl.Int64), **_OVERLAP,
        )
        for (name, seed), table in counted.items() if name in whole
    ]  # fmt: skip
    found = evidence_of(pl.concat(tables), "nsd", groups, evidence.labels)
    # whether a seed is lost is a question of its pixels
    lost = dict(zip(evidence.encoders, evidence.lost, strict=True))
    return replace(found, lost=tuple(lost[name] for name in found.encoders))


def _calibration_rows(key: tuple[str, int], runs: Sequence[RunResults]) -> Iterator[tuple[object, ...]]:
    table = _joined(runs, read_calibration)
    if table is None:
        return
    of_bin = table.group_by("bin").agg(pl.col(CALIBRATION_PARTS).sum()).rows_by_key("bin", unique=True)
    for at in range(BINS):
        yield (*key, at, *of_bin.get(at, [0] * len(CALIBRATION_PARTS)))


def _joined(runs: Sequence[RunResults], read: Callable[[Path], pl.DataFrame | None]) -> pl.DataFrame | None:
    """Return the tables of the runs of one seed, one for each fold, as one with `fold`; None if a run has none."""
    tables = [(run.record.fold, read(run.folder) if run.folder else None) for run in runs]
    found = [table.with_columns(fold=pl.lit(fold, pl.Int64)) for fold, table in tables if table is not None]
    return pl.concat(found) if len(found) == len(tables) else None


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
