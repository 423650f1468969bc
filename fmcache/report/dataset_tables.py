"""The tables of one dataset: Dice as in the paper, all scores, single labels, controls, the paper's values, costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.table import Table

from fmcache.report.findings import Findings
from fmcache.report.frames import cost_frame
from fmcache.report.notes import FEW_HOLDERS, SPREAD, marks, notes, units
from fmcache.report.paper_values import paper_table
from fmcache.report.report_table import (
    UNKNOWN,
    Cell,
    ReportTable,
    TableRow,
    interval_cell,
    number_cell,
    percent_cell,
    rank_cell,
    worst_cell,
)
from fmcache.report.summary import MEAN, SHOWN_AS_ZERO, deviation
from fmcache.report.tables import terminal
from fmcache.scores.calibration import BINS
from fmcache.scores.dice import mean_of_defined
from fmcache.statistics.evidence import Evidence, Score, score_name, scores_of
from fmcache.statistics.leave_out import FEWEST_HOLDERS, seed_scores

SCORES: dict[Score, str] = {
    "pooled": "Dice pooled",
    "per_tile": "Dice per tile",
    "puma": "Dice PUMA challenge",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
}
ECE = "calibration error"
ECE_NOTE = (
    f"Calibration error: expected calibration error of the largest softmax probability in {BINS} bins, over all pixels "
    "of the test tiles; 0 is best. Mean over seeds, without an interval and places: in simulated studies of 10 tiles "
    "it was up to 1.7 times the true error where calibration is good, and 95 % intervals computed as those of Dice "
    "held the true error in as few as 88 %. "
    f"{UNKNOWN}: an earlier fmcache trained a seed."
)
INTERVAL, COLLAPSED, WORST = "95 % interval", "collapsed", "worst label"
OVER_LABELS: tuple[Score, ...] = ("pooled", "per_tile", "puma", "iou")
OF_LABELS: tuple[Score, ...] = ("pooled", "iou", "precision", "recall")


def dataset_tables(found: Findings) -> list[ReportTable]:
    """Return the tables of a dataset that its results allow; the table of Dice is the first."""
    tables = (
        dice_by_encoder(found),
        _scores(found),
        _labels(found),
        _controls(found),
        paper_table(found),
        _costs(found),
    )
    return [table for table in tables if table]


def dice_by_encoder(found: Findings) -> ReportTable:
    """Return the table of the paper: encoder x label with the mean; beside it the worst label, interval and rank, and
    the collapsed seeds."""
    summary, known = found.summary, found.intervals_of()
    n = len(summary.columns)
    ranked = len(summary.ranked) > 1 and summary.compares
    collapsed = any(row["lost"] for row in known.values())
    rows = []
    for row in summary.rows:
        own = [known[row.encoder.name, label] for label in summary.columns]
        cells = [Cell(row.encoder.display + marks(row))]
        for column in range(n):
            place = summary.place(row, column)
            cell = percent_cell(row.mean[column], row.std[column])
            cells.append(cell._replace(place=place, may_be_best=bool(place and own[column]["may_be_best"])))
        mean = own[-1]
        cells += [worst_cell(summary.worst(row)), interval_cell(mean["low"], mean["high"])]
        cells += [rank_cell(mean["rank_low"], mean["rank_high"])] if ranked else []
        if collapsed:
            text = f"{mean['lost']} of {mean['seeds']}"
            cells += [Cell(text, mean["lost"]), percent_cell(mean["estimate_without"])]
        rows.append(TableRow(tuple(cells), row.is_control))
    columns = ("encoder", *summary.columns, WORST, INTERVAL, *["rank"] * ranked)
    columns += (COLLAPSED, "mean without") if collapsed else ()
    record = summary.record
    return ReportTable("dice", f"{record.dataset_title} · {record.study}", columns, tuple(rows), tuple(notes(found)))


def dice_for_terminal(found: Findings) -> Table:
    """Return the table of Dice for the terminal, narrow: without ± and the columns on collapsed seeds."""
    whole = dice_by_encoder(found)
    n = len(whole.columns) - 2 * (whole.columns[-2] == COLLAPSED)
    columns = ["95 %" if column == INTERVAL else column for column in whole.columns[:n]]
    rows = [
        row._replace(cells=tuple(cell if cell.value is None else _narrow(cell) for cell in row.cells[:n]))
        for row in whole.rows
    ]
    notes = [note for note in whole.notes if note != SPREAD]
    return terminal(whole._replace(columns=tuple(columns), rows=tuple(rows), notes=tuple(notes)))


def _narrow(cell: Cell) -> Cell:
    return cell._replace(text=cell.text.partition(" ± ")[0])


def _scores(found: Findings) -> ReportTable:
    """Return the mean over labels by every score side by side."""
    summary, evidence = found.summary, found.evidence
    scores = [score for score in OVER_LABELS if score in scores_of(evidence.labels)]
    columns = [_column(found, score, -1) for score in scores]
    further, nsd = found.further, _nsd(found)
    has_ece = not further.calibration.is_empty()
    rows = []
    for i, row in enumerate(summary.rows):
        cells = [column[i] for column in columns]
        cells += nsd.cells[-1][i] if nsd else ()
        cells += [_over_seeds(further.ece(row.encoder.name))] if has_ece else []
        rows.append(TableRow((Cell(row.encoder.display), *cells), row.is_control))
    lines = [
        "Mean over labels in percent ± standard deviation over seeds. Dice pooled: from counts summed over all test "
        "tiles; Dice per tile: mean over the tiles where a label occurs or was predicted; IoU: from the same sums as "
        "Dice pooled.",
        f"The recipe chose '{SCORES[evidence.score]}' before training; a score that is chosen afterwards, because it "
        "shows what one hoped for, proves nothing.",
    ]
    if "puma" in scores:
        lines.append("Dice PUMA challenge: a label without a hit is 0, the background is left out.")
    lines += [nsd.note] if nsd else []
    lines += [ECE_NOTE] if has_ece else []
    head = ("encoder", *(SCORES[score] for score in scores), *(nsd.columns if nsd else ()), *[ECE] * has_ece)
    return ReportTable("scores", "Mean over labels, by score", head, tuple(rows), tuple(lines))


def _labels(found: Findings) -> ReportTable:
    """Return Dice with its interval, IoU, precision and recall of every label."""
    summary, evidence = found.summary, found.evidence
    known = found.intervals_of("pooled")
    columns = {
        (score, label): _column(found, score, i) for score in OF_LABELS for i, label in enumerate(evidence.labels)
    }
    rows, nsd = [], _nsd(found)
    for i, row in enumerate(summary.rows):
        for at, label in enumerate(evidence.labels):
            own = known[row.encoder.name, label]
            dice_cell, iou, *parts = (columns[score, label][i] for score in OF_LABELS)
            unmarked = (cell._replace(place=0, may_be_best=False) for cell in parts)
            held = Cell(f"{own['units']} of {len(evidence.units)}", own["units"])
            limits = interval_cell(own["low"], own["high"])
            cells = (Cell(row.encoder.display), Cell(label), dice_cell, limits, held, iou, *unmarked)
            cells += nsd.cells[at][i] if nsd else ()
            rows.append(TableRow(cells, row.is_control))
    lines = [
        "In percent, from counts summed over all test tiles; mean ± standard deviation over seeds. Places are among "
        "the encoders of one label. Precision and recall have no places, because one is gained at the cost of the "
        "other; the precision of a label that was never predicted is 0.",
        f"Held by: how many {units(found)} have the label. An interval of a label that fewer than {FEW_HOLDERS} hold "
        f"is optimistic; with fewer than {FEWEST_HOLDERS} there is none.",
    ]
    head = (
        "encoder",
        "label",
        SCORES["pooled"],
        INTERVAL,
        "held by",
        *(SCORES[score] for score in OF_LABELS[1:]),
        *(nsd.columns if nsd else ()),
    )
    lines += [nsd.note] if nsd else []
    return ReportTable("labels", "Scores of every label", head, tuple(rows), tuple(lines))


class _Nsd(NamedTuple):
    """How the surface Dice is shown: the heads of its columns, a note, and its cells by label (last: the mean) and row
    of the summary: the score and its interval."""

    columns: tuple[str, str]
    note: str
    cells: tuple[list[tuple[Cell, Cell]], ...]


def _nsd(found: Findings) -> _Nsd | None:
    """Return how the surface Dice is shown; None when no run counted boundaries."""
    if found.further.boundary.is_empty():
        return None
    at = found.further.boundary["tolerance"][0]
    note = (
        f"NSD at {at}: normalised surface Dice, the share of the boundaries of truth and prediction that lie within "
        f"{at} of each other, from pixels of boundaries summed over all test tiles. Its interval is computed as that "
        f"of Dice. {UNKNOWN}: a seed has no counts of boundaries, or no truth has a boundary of the label."
    )
    known, cells = found.intervals_of("nsd"), []
    for i, label in enumerate(found.summary.columns):
        own = [known.get((row.encoder.name, label)) for row in found.summary.rows]
        limits = [interval_cell(one["low"], one["high"]) if one else Cell(UNKNOWN) for one in own]
        of = found.further.boundaries
        cells.append(list(zip(_cells(found, of, i) if of else [Cell(UNKNOWN)] * len(own), limits, strict=True)))
    return _Nsd((f"NSD at {at}", f"{INTERVAL} of NSD"), note, tuple(cells))


def _over_seeds(values: npt.NDArray[np.float64] | None) -> Cell:
    return Cell(UNKNOWN) if values is None else percent_cell(values.mean(), float(deviation(values)))


def _column(found: Findings, score: Score, at: int) -> list[Cell]:
    """Return a score of one column (a label or, -1, the mean) for every row of the summary, with places."""
    return _cells(found, found.evidence.scored(score), at)


def _cells(found: Findings, scored: Evidence, at: int) -> list[Cell]:
    """Return the score of some evidence as `_column`; without a value for encoders that are not in it."""
    known, label = found.intervals_of(scored.score), (*scored.labels, MEAN)[at]
    names = [row.encoder.name for row in found.summary.rows]
    none = np.full((0, len(scored.labels) + 1), np.nan)
    of_rows = [seed_scores(scored, scored.encoders.index(name)) if name in scored.encoders else none for name in names]
    means = np.array([mean_of_defined(one, axis=0)[at] for one in of_rows])
    places = _places(found, means)
    if sum(row.encoder.name in scored.encoders for row in found.summary.ranked) < 2:
        places = [0] * len(names)
    cells = []
    for name, mean, values, place in zip(names, means, of_rows, places, strict=True):
        may = bool(place and known[name, label]["may_be_best"])
        cells.append(percent_cell(mean, deviation(values)[at])._replace(place=place, may_be_best=may))
    return cells


def _places(found: Findings, means: npt.NDArray[np.float64]) -> list[int]:
    """Return places among the ranked rows, by the rules of `Summary.place`."""
    rows = found.summary.rows
    if len(found.summary.ranked) < 2 or not found.summary.compares:
        return [0] * len(rows)
    ranked = means[[not row.is_control for row in rows]]
    return [
        0 if row.is_control or np.isnan(mean) or mean < SHOWN_AS_ZERO else 1 + int((ranked > mean).sum())
        for row, mean in zip(rows, means, strict=True)
    ]


def _controls(found: Findings) -> ReportTable | None:
    """Return each encoder's difference to the best control; None without controls or without encoders."""
    own = score_name(found.evidence.score)
    frame = found.answer.against_control.filter(pl.col("score") == own, pl.col("label") == MEAN)
    if frame.is_empty():
        return None
    known = {row["encoder"]: row for row in frame.iter_rows(named=True)}
    titles = {row.encoder.name: row.encoder.display for row in found.summary.rows}
    rows = []
    for row in found.summary.ranked:
        if one := known.get(row.encoder.name):
            difference = percent_cell(one["difference"], signed=True)
            limits = interval_cell(one["low"], one["high"], signed=True)
            cells = (Cell(row.encoder.display), Cell(titles[one["control"]]), difference, limits, Cell(_beats(one)))
            rows.append(TableRow(cells))
    lines = [
        "Difference of the mean Dice in points, with the 95 % interval of this pair alone. The best control is the one "
        "with the highest mean Dice here. An encoder is shown to be better if the whole interval is above 0."
    ]
    head = ("encoder", "best control", "difference", INTERVAL, "better than the control")
    return ReportTable("controls", "Difference to the best control", head, tuple(rows), tuple(lines))


def _beats(row: dict[str, object]) -> str:
    if row["beats"] is None:
        return UNKNOWN
    worse = isinstance(row["high"], float) and row["high"] < 0
    return "yes" if row["beats"] else "no, worse" if worse else "not shown"


def _costs(found: Findings) -> ReportTable:
    """Return what each encoder cost: parameters, extraction, cache, training, devices."""
    rows = []
    for row, cost in zip(found.summary.rows, cost_frame(found).iter_rows(named=True), strict=True):
        cells: Sequence[Cell] = (
            Cell(row.encoder.display),
            number_cell(cost["params"]),
            number_cell(cost["extract_s_per_1000_views"], 1),
            Cell(cost["extract_device"] or UNKNOWN),
            number_cell(cost["cache_bytes_per_view"]),
            number_cell(cost["fit_s_per_run"], 1),
            Cell(cost["fit_device"]),
        )
        rows.append(TableRow(tuple(cells), row.is_control))
    head = (
        "encoder", "parameters", "extraction, s per 1,000 views", "extracted on", "cache, bytes per view",
        "training, s per run", "trained on",
    )  # fmt: skip
    lines = [
        "Extraction: wall time of reading, encoding and writing. Training: this run's share of the time of the seeds "
        "that were trained concurrently. Times of different devices do not compare.",
    ]
    if any(one is None for one in cost_frame(found)["extract_s_per_1000_views"]):
        lines.append(f"{UNKNOWN}: the cache was written by a version that did not record it.")
    return ReportTable("costs", "Costs", head, tuple(rows), tuple(lines))
