"""The table of a whole study: encoders x datasets side by side. Datasets are never pooled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from fmcache.report.findings import Findings
from fmcache.report.rank_agreement import of_datasets, sentence
from fmcache.report.report_table import (
    UNKNOWN,
    Cell,
    ReportTable,
    TableRow,
    interval_cell,
    percent_cell,
    rank_cell,
    worst_cell,
)
from fmcache.report.summary import MEAN, Row


def study_tables(found: Sequence[Findings]) -> list[ReportTable]:
    """Return the tables over the datasets of a study; none with a single dataset."""
    return [_across(found)] if len(found) > 1 else []


def _across(found: Sequence[Findings]) -> ReportTable:
    """Return mean Dice, its worst label, interval and rank on every dataset, in the order of the first."""
    names = list(dict.fromkeys(row.encoder.name for one in found for row in one.summary.rows))
    rows = []
    for beside in ([_row(one, name) for one in found] for name in names):
        (first, *_) = (row for row in beside if row)
        cells = [cell for one, row in zip(found, beside, strict=True) for cell in _cells(one, row)]
        rows.append(TableRow((Cell(first.encoder.display), *cells), first.is_control))
    rows.sort(key=lambda row: row.is_control)
    of_each = ("", ": worst label", ": 95 % interval", ": rank")
    head = [f"{one.summary.record.dataset}{what}" for one in found for what in of_each]
    lines = [
        "Mean Dice over labels in percent ± standard deviation over seeds, with the label of the lowest Dice, the "
        "95 % interval of the mean and its ranks that remain possible. Datasets have other labels and tiles: compare "
        "ranks between them, not Dice. No mean is taken over datasets.",
        "Best encoder of a dataset underlined, best three bold; • may be the best of its dataset. "
        f"{UNKNOWN}: no result, or none that can be given.",
        *(
            sentence(f"on {a.summary.record.dataset} and {b.summary.record.dataset}", of_datasets(a, b))
            for a, b in combinations(found, 2)
        ),
    ]
    return ReportTable("across", "All datasets side by side", ("encoder", *head), tuple(rows), tuple(lines))


def _row(found: Findings, name: str) -> Row | None:
    return next((row for row in found.summary.rows if row.encoder.name == name), None)


def _cells(found: Findings, row: Row | None) -> list[Cell]:
    if row is None:
        return [Cell(UNKNOWN)] * 4
    known = found.intervals_of()[row.encoder.name, MEAN]
    place = found.summary.place(row, len(found.summary.columns) - 1)
    dice = percent_cell(row.mean[-1], row.std[-1])
    return [
        dice._replace(place=place, may_be_best=bool(place and known["may_be_best"])),
        worst_cell(found.summary.worst(row)),
        interval_cell(known["low"], known["high"]),
        rank_cell(known["rank_low"], known["rank_high"]) if place else Cell(UNKNOWN),
    ]
