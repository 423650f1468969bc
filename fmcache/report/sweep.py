"""The studies of a sweep beside each other: how each encoder does under each setting, as tables and Parquet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from fmcache.report.endings import ENDING_TEXTS
from fmcache.report.findings import Findings
from fmcache.report.notes import lacking, marks
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
from fmcache.scores.records import EncoderInfo, RunRecord
from fmcache.settings import Setting, Value, value_text
from fmcache.specs import short_field

MOST_COLUMNS = 8
"""With more settings, the table has a row for each encoder and setting."""
FIELD_TITLES = {
    "views.count": "views of each training tile",
    "fit.passes_per_epoch": "passes over the training tiles in an epoch",
    "fit.learning_rate": "learning rate",
    "decoder.width": "width of the decoder",
    "subset": "training tiles",
}
"""What a field is, for axes and titles; others are called by their names."""
SUBSET = "subset"

SETTINGS = {
    "dataset": pl.String,
    "encoder": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "rank": pl.Int64,
    "may_be_best": pl.Boolean,
}
"""The columns of ``settings.parquet``; after `encoder` there is one more for each swept field."""


class Point(NamedTuple):
    """One encoder under one setting. Shares of 1, NaN where undefined; `place` 0 means not ranked there.

    `worst` is the label with the lowest Dice, and this Dice.
    """

    row: Row
    estimate: float
    low: float
    high: float
    place: int
    ranks: tuple[int | None, int | None]
    may_be_best: bool | None
    worst: tuple[str, float] | None


class SweptDataset(NamedTuple):
    """The studies of one sweep on one dataset.

    `findings` are by setting, in the order of the sweep; `points` by (name of the encoder, setting), where it was run.
    """

    name: str
    findings: Mapping[Setting, Findings]
    points: Mapping[tuple[str, Setting], Point]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that were run."""
        return tuple(self.findings)

    @property
    def first(self) -> Findings:
        """The findings of the first setting: the dataset is the same in all."""
        return next(iter(self.findings.values()))

    @property
    def encoders(self) -> tuple[EncoderInfo, ...]:
        """The encoders by their mean Dice over all settings, controls last."""
        by_name = {name: point.row for (name, _), point in self.points.items()}
        level = {name: np.mean([-np.nan_to_num(p.estimate) for p in self.of(name).values()]) for name in by_name}
        ordered = sorted(by_name, key=lambda name: (by_name[name].is_control, level[name], name))
        return tuple(by_name[name].encoder for name in ordered)

    @property
    def fields(self) -> tuple[str, ...]:
        """The swept fields."""
        return tuple(dict.fromkeys(field for setting in self.findings for field, _ in setting))

    def of(self, encoder: str) -> dict[Setting, Point]:
        """Return the points of an encoder by setting."""
        return {
            setting: self.points[encoder, setting] for setting in self.findings if (encoder, setting) in self.points
        }

    def is_control(self, encoder: str) -> bool:
        """Return whether an encoder is never ranked."""
        return next(iter(self.of(encoder).values())).row.is_control

    def text(self, setting: Setting) -> str:
        """Return a setting for the head of a column: only its value if a single field is swept."""
        return shown_value(*setting[0]) if len(self.fields) == 1 else shown_setting(setting)

    def number(self, setting: Setting) -> float:
        """Return the value of the only field as a number; for `subset` the number of training tiles (0 means all)."""
        ((field, value),) = setting
        return float(self.findings[setting].summary.record.tiles["train"] if field == SUBSET else value)

    @property
    def is_numeric(self) -> bool:
        """Whether a single field with at least two numbers is swept."""
        numbers = [
            isinstance(value, int | float) and not isinstance(value, bool) for s in self.findings for _, value in s
        ]
        return len(self.fields) == 1 and len(self.findings) > 1 and all(numbers)


def shown_value(field: str, value: Value) -> str:
    """Return the value of a field as text; subset 0 is all training tiles."""
    return "all" if field == SUBSET and value == 0 else value_text(value)


def shown_setting(setting: Setting) -> str:
    """Return a setting as text: ``passes_per_epoch 5, subset 10``."""
    return ", ".join(f"{short_field(field)} {shown_value(field, value)}" for field, value in setting)


def sweep_of(record: RunRecord) -> str:
    """Return the name of the recipe with the sweep that a run belongs to; '' for any other run."""
    return str(record.recipe.get("sweep_of", ""))


def setting_of(record: RunRecord) -> Setting:
    """Return the setting of a run that belongs to a sweep, as its record states it."""
    return tuple((field, value) for field, value in record.recipe["setting"])


def findings_by_setting(found: Iterable[Findings]) -> dict[str, dict[Setting, Findings]]:
    """Return the findings of the studies of one sweep by dataset and setting.

    Settings have the order of the sweep's fields; numbers rise, other values have the order of the sweep.
    """
    studies = list(found)
    order: dict[str, list[Value]] = {}
    for one in studies:
        for field, values in one.summary.record.recipe["swept"]:
            order[field] = list(dict.fromkeys([*order.get(field, []), *values]))
    fields = list(order)

    def rank(setting: Setting) -> list[tuple[int, float]]:
        return [(fields.index(field), _rank(field, value, order[field])) for field, value in setting]

    by_dataset: dict[str, dict[Setting, Findings]] = {}
    for one in studies:
        of = by_dataset.setdefault(one.summary.record.dataset, {})
        of[setting_of(one.summary.record)] = one
    return {name: {s: of[s] for s in sorted(of, key=rank)} for name, of in by_dataset.items()}


def swept_datasets(name: str, found: Iterable[Findings]) -> list[SweptDataset]:
    """Return the studies of the sweep `name` by dataset."""
    return [
        SweptDataset(name, of, {key: point for setting, one in of.items() for key, point in _points(setting, one)})
        for of in findings_by_setting(found).values()
    ]


def sweep_recipe(swept: Sequence[SweptDataset]) -> dict[str, Any]:
    """Return the recipe of a sweep: that of its first study, with the values of all studies of all datasets."""
    recipe = swept[0].first.summary.record.recipe
    values: dict[str, list[Value]] = {}
    for setting in dict.fromkeys(setting for of in swept for setting in of.findings):
        for field, value in setting:
            values[field] = list(dict.fromkeys([*values.get(field, []), value]))
    return recipe | {"name": swept[0].name, "sweep": values}


def sweep_tables(swept: SweptDataset) -> list[ReportTable]:
    """Return mean Dice by encoder and setting, then the ranks; with many settings one table with both."""
    record = swept.first.summary.record
    title = f"{record.dataset_title} · {swept.name} · mean Dice by {_field_titles(swept)}"
    if len(swept.findings) > MOST_COLUMNS:
        fields = map(short_field, swept.fields)
        head = ("encoder", *fields, "mean Dice", "95 % interval", "worst label", "rank", "possible ranks")
        return [ReportTable("settings", title, head, tuple(_long_rows(swept)), tuple(_notes(swept)))]
    head = ("encoder", *map(swept.text, swept.findings))
    ranked = any(point.place for point in swept.points.values())
    dice = ReportTable("settings", title, head, tuple(_rows(swept, _dice)), tuple(_notes(swept)))
    note = "Place by mean Dice, and in brackets the ranks that remain possible when all pairs are tested jointly."
    ranks = ReportTable(
        "ranks", "Ranks", head, tuple(row for row in _rows(swept, _rank_of) if not row.is_control), (note,)
    )
    worst = ReportTable("worst", "Label with the lowest Dice", head, tuple(_rows(swept, _worst)), ("Dice in percent.",))
    return [dice, *[ranks] * ranked, worst]


def narrow(table: ReportTable) -> ReportTable:
    """Return a table without intervals, for the terminal."""
    rows = [row._replace(cells=tuple(cell._replace(text=_short(cell)) for cell in row.cells)) for row in table.rows]
    return table._replace(rows=tuple(rows))


def settings_frame(swept: Sequence[SweptDataset]) -> pl.DataFrame:
    """Return one row per dataset, encoder and setting; ``TABLES.md`` describes the columns."""
    values: dict[str, list[Value]] = {}
    for field, value in (pair for of in swept for setting in of.findings for pair in setting):
        values.setdefault(field, []).append(value)
    schema = {"dataset": pl.String, "encoder": pl.String} | {field: _kind(some) for field, some in values.items()}
    schema |= SETTINGS
    rows = [
        {"dataset": of.first.summary.record.dataset, "encoder": encoder.name}
        | {field: value if schema[field] != pl.String else value_text(value) for field, value in setting}
        | {name: _or_null(getattr(point, name)) for name in ("estimate", "low", "high")}
        | {"rank": point.place or None, "may_be_best": point.may_be_best}
        for of in swept
        for encoder in of.encoders
        for setting, point in of.of(encoder.name).items()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _points(setting: Setting, found: Findings) -> Iterable[tuple[tuple[str, Setting], Point]]:
    known, summary = found.intervals_of(), found.summary
    for row in summary.rows:
        one = known[row.encoder.name, MEAN]
        estimate, low, high = (math.nan if one[key] is None else float(one[key]) for key in ("estimate", "low", "high"))
        place = summary.place(row, len(summary.columns) - 1)
        may = one["may_be_best"] if place else None
        ranks = (one["rank_low"], one["rank_high"])
        yield (row.encoder.name, setting), Point(row, estimate, low, high, place, ranks, may, summary.worst(row))


def _rows(swept: SweptDataset, cell: Callable[[Point | None], Cell]) -> list[TableRow]:
    return [
        TableRow(
            (Cell(encoder.display), *(cell(swept.points.get((encoder.name, setting))) for setting in swept.findings)),
            swept.is_control(encoder.name),
        )
        for encoder in swept.encoders
    ]


def _long_rows(swept: SweptDataset) -> Iterable[TableRow]:
    for encoder in swept.encoders:
        for setting, point in swept.of(encoder.name).items():
            values = dict(setting)
            texts = [shown_value(field, values[field]) if field in values else UNKNOWN for field in swept.fields]
            dice = percent_cell(point.estimate)
            cells = (
                Cell(encoder.display),
                *map(Cell, texts),
                dice._replace(
                    text=dice.text + marks(point.row), place=point.place, may_be_best=bool(point.may_be_best)
                ),
                interval_cell(_or_null(point.low), _or_null(point.high)),
                worst_cell(point.worst),
                Cell(str(point.place), point.place) if point.place else Cell(UNKNOWN),
                rank_cell(*point.ranks) if point.place else Cell(UNKNOWN),
            )
            yield TableRow(cells, point.row.is_control)


def _dice(point: Point | None) -> Cell:
    """Return mean Dice with its marks and its interval."""
    if point is None or math.isnan(point.estimate):
        return Cell(UNKNOWN)
    dice, limits = percent_cell(point.estimate), interval_cell(_or_null(point.low), _or_null(point.high))
    text = f"{dice.text}{marks(point.row)}" + (f" {limits.text}" if limits.value is not None else "")
    return Cell(text, dice.value, point.place, bool(point.may_be_best))


def _rank_of(point: Point | None) -> Cell:
    if point is None or not point.place:
        return Cell(UNKNOWN)
    possible = rank_cell(*point.ranks)
    text = f"{point.place} ({possible.text})" if possible.value is not None else str(point.place)
    return Cell(text, point.place, point.place, bool(point.may_be_best))


def _worst(point: Point | None) -> Cell:
    return worst_cell(point.worst if point else None)


def _short(cell: Cell) -> str:
    return cell.text if cell.value is None else cell.text.partition(" [")[0]


def _notes(swept: SweptDataset) -> list[str]:
    """Return how to read the table."""
    ended = {how for point in swept.points.values() for how in point.row.endings}
    return [
        "Mean Dice over labels in percent, with its 95 % interval over test tiles (or patients) and seeds. Settings "
        "share test tiles, so these intervals do not test a difference between two settings.",
        "Best encoder of a setting underlined, best three bold; • may be the best under its setting.",
        *lacking(swept.first.summary),
        *(f"{text.mark} at least one run: {text.seen}. {text.advice}." for how, text in ENDING_TEXTS.items()
          if text.mark and how in ended),
    ]  # fmt: skip


def _field_titles(swept: SweptDataset) -> str:
    return " and ".join(FIELD_TITLES.get(field, short_field(field)) for field in swept.fields)


def _rank(field: str, value: Value, values: Sequence[Value]) -> float:
    """Return where a value stands among the values of its field."""
    if field == SUBSET and value == 0:
        return math.inf
    return float(values.index(value)) if isinstance(value, str | bool) else float(value)


def _kind(values: Sequence[Value]) -> type[pl.DataType]:
    """Return the type of a column; values of one field have one type, unless it changed between releases."""
    for kind, column in ((bool, pl.Boolean), (int, pl.Int64), (float, pl.Float64)):
        if all(type(value) is kind for value in values):
            return column
    return pl.String


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
