"""The runs of a study as one table: counts, and the Dice computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from fmcache.scores.dice import Reduction, dice_per_label
from fmcache.scores.records import RunResults


def results_table(runs: Sequence[RunResults]) -> pl.DataFrame:
    """Return the counts of runs as one table: dataset, encoder, fold, seed, split, tile, label, tp, fp, fn."""
    frames = [
        run.counts.select(
            pl.lit(run.record.dataset).alias("dataset"),
            pl.lit(run.record.encoder.name).alias("encoder"),
            pl.lit(run.record.fold, pl.Int64).alias("fold"),
            pl.lit(run.record.seed, pl.Int64).alias("seed"),
            pl.all(),
        )
        for run in runs
    ]
    return pl.concat(frames)


def dice_table(results: pl.DataFrame, split: str, reduction: Reduction) -> pl.DataFrame:
    """Return the Dice of each run and label on a split, (dataset, encoder, fold, seed, label, dice).

    Null: no Dice. A label without a pixel in the truth of the run's tiles has none, even if it was predicted; only the
    PUMA challenge counts it as 0.
    """
    rows: list[tuple[object, ...]] = []
    keys = ("dataset", "encoder", "fold", "seed")
    chosen = results.filter(pl.col("split") == split)
    for run, table in chosen.group_by(keys, maintain_order=True):
        labels = table["label"].unique(maintain_order=True)
        counts = table.select("tp", "fp", "fn").to_numpy().reshape(-1, len(labels), 3)
        held = (counts[..., 0] + counts[..., 2]).any(axis=0) | (reduction == "puma")
        for label, value, known in zip(labels, dice_per_label(counts, reduction), held, strict=True):
            rows.append((*run, label, float(value) if known and not np.isnan(value) else None))
    schema = {key: chosen.schema[key] for key in keys} | {"label": pl.String, "dice": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
