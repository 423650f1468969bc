"""The type of a table of a report. Markdown, LaTeX, the terminal and the page show the same tables."""

from __future__ import annotations

from typing import NamedTuple


class Cell(NamedTuple):
    """A cell: its text, its value for sorting (None: sorted by text), and what the text is marked with.

    `place` is the place in the column: 1 is underlined, up to 3 is bold, 0 is not ranked. `may_be_best` marks an
    encoder that may be the best of the column.
    """

    text: str
    value: float | None = None
    place: int = 0
    may_be_best: bool = False


class TableRow(NamedTuple):
    """A row; the first cell is its name. Rows of controls stand last and are never ranked."""

    cells: tuple[Cell, ...]
    is_control: bool = False


class ReportTable(NamedTuple):
    """A table. `name` is the stem of its files; `notes` are lines of plain text below it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
