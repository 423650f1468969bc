"""What moved between two reports: estimates, intervals, ranks, who may be best, and which encoders differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from fmcache.errors import ResultsNotFound, some
from fmcache.report.escapes import escape_markdown
from fmcache.report.report_table import UNKNOWN, Cell, ReportTable, TableRow, interval_cell, percent_cell, rank_cell
from fmcache.report.tables import markdown
from fmcache.report.written import WrittenTables, read_reports
from fmcache.statistics.schemas import MEAN

TOLERANCE = 0.00005
"""Differences up to this are none: tables show percent with two digits."""
CAUTION = (
    "Each interval is that of its own estimate. Both reports may share test tiles and seeds, so no interval here is "
    "one of the change: these tables cannot show whether a change is larger than chance.",
    "'Outside' states that the new estimate lies outside the old interval. It is not a test.",
)
CAUTION_PAIRS = (
    "A pair that differs in one report only does not show that the difference itself changed: it can lie just beyond "
    "the limit in one report and just within it in the other."
)
Key = tuple[str, ...]
Rows = dict[Key, dict[str, Any]]


class DatasetMoves(NamedTuple):
    """What moved on one dataset: a title, tables (none if nothing moved), and lines of plain text."""

    title: str
    tables: tuple[ReportTable, ...]
    lines: tuple[str, ...]


def compare(old: Path, new: Path, study: str = "") -> list[DatasetMoves]:
    """Return what moved from the reports in `old` to those in `new`, by study and dataset.

    Studies are compared by name. If both sides have one study, these two are compared, whatever their names.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt
        As `read_reports`; and when the two sides have no study in common.
    """
    before, now = read_reports(old, study), read_reports(new, study)
    single = len(before) == len(now) == 1
    pairs = [(*before, *now)] if single else [(name, name) for name in before if name in now]
    if not pairs:
        raise ResultsNotFound(
            "the two folders have reports of different studies",
            expected=f"one of {some(before)}, as in {old}",
            found=f"{some(now)} in {new}",
            next_step="name the report of one study on each side",
        )
    moves = [_of_study(then, since, before[then], now[since]) for then, since in pairs]
    paired = {name for pair in pairs for name in pair}
    lines = _only("study", "studies", [n for n in before if n not in paired], [n for n in now if n not in paired])
    return [*(one for of_study in moves for one in of_study), *([DatasetMoves("", (), lines)] if lines else [])]


def markdown_comparison(moves: Sequence[DatasetMoves]) -> str:
    """Return what moved as Markdown."""
    blocks = ["# What moved"]
    for one in moves:
        blocks += [f"## {escape_markdown(one.title)}"] if one.title else []
        for table in one.tables:
            blocks += [f"**{escape_markdown(table.title)}**", markdown(table).rstrip()]
            blocks += ["\n".join(f"- {escape_markdown(note)}" for note in table.notes)] if table.notes else []
        blocks += ["\n".join(f"- {escape_markdown(line)}" for line in one.lines)] if one.lines else []
    return "\n\n".join(blocks) + "\n"


def _of_study(
    then: str, since: str, before: Mapping[str, WrittenTables], now: Mapping[str, WrittenTables]
) -> list[DatasetMoves]:
    name = then if then == since else f"{then} (old), {since} (new)"
    moves = [_of_dataset(f"{name}: {dataset}", before[dataset], now[dataset]) for dataset in before if dataset in now]
    lines = _only("dataset", "datasets", [n for n in before if n not in now], [n for n in now if n not in before])
    return [*moves, *([DatasetMoves(name, (), lines)] if lines else [])]


def _of_dataset(title: str, old: WrittenTables, new: WrittenTables) -> DatasetMoves:
    if new.score not in old.intervals["score"]:
        line = f"The reports have different scores ({old.score}, {new.score}): they cannot be compared."
        return DatasetMoves(title, (), (line,))
    before, now = (_rows(side.intervals, new.score, ("encoder", "label")) for side in (old, new))
    names = {name: f"{name} (random weights)" for name in old.random_weights | new.random_weights}
    shared = [key for key in now if key in before]
    moved = [key for key in shared if _has_moved(before[key], now[key])]
    estimates, pairs = _estimates(moved, before, now, names), _flipped(old, new, names)
    best, unequal, others = _best(before, now, names), _unequal(before, now, names), _other_scores(old, new)
    if not (moved or pairs.rows or best or unequal or others):
        return DatasetMoves(title, (), ("Nothing moved: all estimates, intervals, ranks and pairs are the same.",))
    lines = [
        f"Score: {new.score}" + ("." if old.score == new.score else f"; the old report's own is {old.score}."),
        f"{len(moved)} of {len(shared)} rows of estimate, interval and rank moved; only these are shown.",
        *best,
        *unequal,
        *others,
        *(CAUTION if moved else ()),
        *((CAUTION_PAIRS,) if pairs.rows else ()),
    ]
    return DatasetMoves(title, tuple(table for table in (estimates, pairs) if table.rows), tuple(lines))


def _rows(table: pl.DataFrame, score: str, keys: Key) -> Rows:
    """Return the rows of a score by `keys`, in the order of the table."""
    return {
        tuple(row[key] for key in keys): row for row in table.filter(pl.col("score") == score).iter_rows(named=True)
    }


def _has_moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if any(before[name] != now[name] for name in ("rank_low", "rank_high", "may_be_best")):
        return True
    return any(_differ(before[name], now[name]) for name in ("estimate", "low", "high"))


def _differ(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(before - now) > TOLERANCE


def _estimates(moved: Sequence[Key], before: Rows, now: Rows, names: Mapping[str, str]) -> ReportTable:
    """Return the estimates that moved: by label, the mean first; the best first, encoders without a rank last."""
    columns = ("encoder", "label", "old", "95 %", "rank", "new", "95 %", "rank", "change", "outside")
    labels = [MEAN, *dict.fromkeys(label for _, label in now)]

    def order(key: Key) -> tuple[int, bool, float]:
        return labels.index(key[1]), now[key]["may_be_best"] is None, -(now[key]["estimate"] or 0)

    rows = []
    for encoder, label in sorted(moved, key=order):
        sides = (before[encoder, label], now[encoder, label])
        cells = [Cell(names.get(encoder, encoder)), Cell(label)]
        for of in sides:
            rank = rank_cell(of["rank_low"], of["rank_high"])
            cells += [percent_cell(of["estimate"]), interval_cell(of["low"], of["high"]), rank]
        cells += [percent_cell(_minus(sides[1]["estimate"], sides[0]["estimate"]), signed=True), _outside(*sides)]
        rows.append(TableRow(tuple(cells)))
    return ReportTable("moved", "Estimates in percent: old, new, and their difference", columns, tuple(rows))


def _outside(before: Mapping[str, Any], now: Mapping[str, Any]) -> Cell:
    if before["low"] is None or now["estimate"] is None:
        return Cell(UNKNOWN)
    return Cell("no" if before["low"] <= now["estimate"] <= before["high"] else "yes")


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _flipped(old: WrittenTables, new: WrittenTables, names: Mapping[str, str]) -> ReportTable:
    """Return the pairs that differ in one report only."""
    keys = ("a", "b", "label")
    before, now = (_rows(side.pairs, new.score, keys) for side in (old, new))
    rows = []
    for key, of in now.items():
        was = before.get(key)
        if was is None or was["differs"] == of["differs"]:
            continue
        cells = [Cell(names.get(name, name)) for name in key]
        for side in (was, of):
            limits = interval_cell(side["low"], side["high"], signed=True)
            cells += [percent_cell(side["difference"], signed=True), limits, Cell(_yes_no(side["differs"]))]
        rows.append(TableRow(tuple(cells)))
    columns = ("a", "b", "label", "old a - b", "jointly 95 %", "differ", "new a - b", "jointly 95 %", "differ")
    return ReportTable("flipped", "Pairs that differ in one report only (points)", columns, tuple(rows))


def _yes_no(value: bool | None) -> str:
    return UNKNOWN if value is None else "yes" if value else "no"


def _best(before: Rows, now: Rows, names: Mapping[str, str]) -> list[str]:
    """Return a line for each label, the mean first, on which other encoders may be best."""
    labels = list(dict.fromkeys(label for _, label in now if label in {of for _, of in before}))
    lines = []
    for label in sorted(labels, key=lambda label: label != MEAN):
        was, since = (
            [names.get(encoder, encoder) for (encoder, of), row in rows.items() if of == label and row["may_be_best"]]
            for rows in (before, now)
        )
        if set(was) != set(since):
            lines.append(f"May be best by {label}: {_listed(was)} in the old report, {_listed(since)} in the new one.")
    return lines


def _other_scores(old: WrittenTables, new: WrittenTables) -> list[str]:
    scores = [
        score for score in new.intervals["score"].unique(maintain_order=True)
        if score != new.score and score in old.intervals["score"]
    ]  # fmt: skip
    n = moved = 0
    for score in scores:
        before, now = (_rows(side.intervals, score, ("encoder", "label")) for side in (old, new))
        shared = [key for key in now if key in before]
        n, moved = n + len(shared), moved + sum(_has_moved(before[key], now[key]) for key in shared)
    return [f"By other scores ({', '.join(scores)}), {moved} of {n} rows moved."] if moved else []


def _unequal(before: Rows, now: Rows, names: Mapping[str, str]) -> list[str]:
    """Return lines on the encoders and labels that only one report has."""
    lines: list[str] = []
    for at, (one, several) in enumerate((("encoder", "encoders"), ("label", "labels"))):
        old, new = ({key[at] for key in rows} for rows in (before, now))
        missing = ([names.get(name, name) for name in sorted(only)] for only in (old - new, new - old))
        lines += _only(one, several, *missing)
    if lines:
        lines.append("Ranks, and who may be best, depend on which encoders and labels a report has.")
    return lines


def _only(one: str, several: str, old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Return lines that name what only one report has."""
    return tuple(
        f"Only the {side} report has {one if len(names) == 1 else several} {_listed(names)}."
        for side, names in (("old", old), ("new", new))
        if names
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
