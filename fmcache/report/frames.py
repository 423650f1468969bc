"""The machine-readable tables of a dataset: Parquet and CSV. ``TABLES.md`` beside this module describes their columns.

Every number of a table or figure of a report comes from rows of these files.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import polars as pl

from fmcache.report.endings import Ending
from fmcache.report.findings import Findings
from fmcache.report.paper_values import paper_agreement, paper_frame
from fmcache.report.rank_agreement import AGREEMENT, of_datasets
from fmcache.report.report_table import percent
from fmcache.report.summary import MEAN, Row, run_scores
from fmcache.scores.records import RunResults
from fmcache.statistics.evidence import score_name, scores_of
from fmcache.statistics.leave_out import seed_scores

RUNS = {
    "dataset": pl.String,
    "encoder": pl.String,
    "fold": pl.Int64,
    "seed": pl.Int64,
    "label": pl.String,
    "score": pl.String,
    "value": pl.Float64,
}
COSTS = {
    "encoder": pl.String,
    "params": pl.Int64,
    "extract_s_per_1000_views": pl.Float64,
    "cache_bytes_per_view": pl.Float64,
    "fit_s_per_run": pl.Float64,
    "runs": pl.Int64,
    "extract_device": pl.String,
    "fit_device": pl.String,
}


def dataset_frames(found: Findings) -> dict[str, pl.DataFrame]:
    """Return the tables of a dataset by the stem of their file; `TABLES.md` describes their columns."""
    frames = {
        "intervals": found.answer.intervals,
        "pairs": found.answer.pairs,
        "against_control": found.answer.against_control,
        "runs": pl.DataFrame(list(_run_rows(found)), schema=RUNS, orient="row"),
        "costs": cost_frame(found),
        "paper": paper_frame(found),
        "boundary": found.further.boundary,
        "calibration": found.further.calibration,
    }
    optional = ("paper", "boundary", "calibration")
    return {name: frame for name, frame in frames.items() if name not in optional or not frame.is_empty()}


def study_frames(found: Sequence[Findings]) -> dict[str, pl.DataFrame]:
    """Return the tables over the datasets of a study by the stem of their file; none if nothing can be compared."""
    rows = [(a.summary.record.dataset, b.summary.record.dataset, *of_datasets(a, b)) for a, b in combinations(found, 2)]
    for one in found:
        if compared := paper_agreement(one):
            rows.append((one.summary.record.dataset, "paper", *compared))
    return {"agreement": pl.DataFrame(rows, schema=AGREEMENT, orient="row")} if rows else {}


def parquet(frame: pl.DataFrame) -> bytes:
    """Return a table as a Parquet file; the same table gives the same bytes."""
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def _run_rows(found: Findings) -> Iterator[tuple[object, ...]]:
    """Rows of `RUNS`: with folds the single runs, then for every dataset its seeds, which have fold null."""
    evidence, dataset = found.evidence, found.summary.record.dataset
    columns = (*evidence.labels, MEAN)
    scores = scores_of(evidence.labels)
    runs = sorted(found.runs, key=lambda run: (run.record.encoder.name, run.record.fold or 0, run.record.seed))
    for run in runs:
        record = run.record
        if record.fold is not None:
            for score in scores:
                values = run_scores(run, evidence.labels, score)
                for label, value in zip(columns, values, strict=True):
                    yield (
                        dataset,
                        record.encoder.name,
                        record.fold,
                        record.seed,
                        label,
                        score_name(score),
                        _or_null(value),
                    )
    for i, encoder in enumerate(evidence.encoders):
        for score in scores:
            for seed, values in zip(evidence.seeds[i], seed_scores(evidence.scored(score), i), strict=True):
                for label, value in zip(columns, values, strict=True):
                    yield (dataset, encoder, None, seed, label, score_name(score), _or_null(value))


def cost_frame(found: Findings) -> pl.DataFrame:
    """Return what each encoder cost, in the order of the summary; columns are `COSTS`."""
    by_encoder: dict[str, list[RunResults]] = {}
    for run in found.runs:
        by_encoder.setdefault(run.record.encoder.name, []).append(run)
    rows = [_cost(row, by_encoder[row.encoder.name]) for row in found.summary.rows]
    return pl.DataFrame(rows, schema=COSTS, orient="row")


def _cost(row: Row, runs: list[RunResults]) -> tuple[object, ...]:
    records = [run.record for run in runs]
    known = [record.extraction for record in records if record.extraction]
    # runs that were fitted before the cache grew record less
    last = max(known, key=lambda one: (one.views, one.cached_views)) if known else None
    per_1000 = 1000 * last.seconds / last.views if last and last.views else None
    per_view = last.bytes / last.cached_views if last and last.cached_views else None
    devices = ", ".join(sorted({record.device for record in records}))
    seconds = float(np.mean([record.wall_s for record in records]))
    return (row.encoder.name, row.encoder.params, per_1000, per_view, seconds, len(runs), last and last.device, devices)


def csv_text(found: Findings) -> str:
    """Return the table of Dice as CSV: one line per encoder and label; Dice and limits in percent."""
    summary, record, lines = found.summary, found.summary.record, []
    known = found.intervals_of()
    for row in summary.rows:
        ended, encoder = Counter(row.endings), row.encoder
        for label, mean, std in zip(summary.columns, row.mean, row.std, strict=True):
            sure = known[encoder.name, label]
            lines.append({
                "study": record.study,
                "dataset": record.dataset,
                "encoder": encoder.name,
                "title": encoder.display,
                "label": label,
                "seeds": len(row.seeds),
                "dice_mean_percent": percent(mean),
                "dice_std_percent": percent(std),
                "collapsed_seeds": ended[Ending.COLLAPSED],
                "still_falling_seeds": ended[Ending.RISING] + ended[Ending.LEARNT],
                "control": str(encoder.control),
                "random_weights": str(encoder.random_weights),
                "params": encoder.params,
                "dice": summary.reduction,
                "validation_rising_seeds": ended[Ending.RISING],
                "training_ended_seeds": ended[Ending.ENDED],
                "ending_unknown_seeds": ended[Ending.UNKNOWN],
                "low_percent": percent(sure["low"]),
                "high_percent": percent(sure["high"]),
                "no_interval": sure["cannot"],
                "rank_low": sure["rank_low"],
                "rank_high": sure["rank_high"],
                "may_be_best": None if sure["may_be_best"] is None else str(sure["may_be_best"]),
                "test_units": sure["units"],
                "lost_seeds": sure["lost"],
                "dice_without_lost_percent": percent(sure["estimate_without"]),
            })  # fmt: skip
    return pl.DataFrame(lines, infer_schema_length=None).write_csv(float_precision=4)


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
