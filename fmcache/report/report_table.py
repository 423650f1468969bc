"""The type of a table of a report. Markdown, LaTeX, the terminal and the page show the same tables."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

UNKNOWN = "–"
"""The text of a cell without a value."""


class Cell(NamedTuple):
    """A cell: its text, its value for sorting (None: sorted by text), and what the text is marked with.

    A text with a value holds only digits and signs that need no escaping in Markdown. `place` is the place in the
    column: 1 is underlined, up to 3 is bold, 0 is not ranked. `may_be_best` marks an encoder that may be the best of
    the column.
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


def percent(share: float | None) -> float | None:
    """Return a share in percent; None where it is undefined."""
    return None if share is None or np.isnan(share) else 100 * float(share)


def percent_cell(mean: float | None, std: float | None = None, *, signed: bool = False) -> Cell:
    """Return a share of 1 as percent, with its standard deviation if there is one; `signed`: a plus where positive."""
    value, spread = percent(mean), percent(std)
    if value is None:
        return Cell(UNKNOWN)
    text = _signed(value) if signed else f"{value:.2f}"
    return Cell(text + ("" if spread is None else f" ± {spread:.2f}"), value)


def worst_cell(worst: tuple[str, float] | None) -> Cell:
    """Return the worst label and its Dice in percent; sorted by its name, which is text of users."""
    return Cell(UNKNOWN) if worst is None else Cell(f"{worst[0]} {100 * worst[1]:.2f}")


def interval_cell(low: float | None, high: float | None, *, signed: bool = False) -> Cell:
    """Return the limits of an interval of shares, in percent; it is sorted by its lower limit."""
    below, above = percent(low), percent(high)
    if below is None or above is None:
        return Cell(UNKNOWN)
    first, last = (_signed(one) if signed else f"{one:.2f}" for one in (below, above))
    return Cell(f"[{first}, {last}]", below)


def rank_cell(low: int | None, high: int | None) -> Cell:
    """Return an interval of ranks; it is sorted by its better rank."""
    if low is None or high is None:
        return Cell(UNKNOWN)
    return Cell(str(low) if low == high else f"{low}–{high}", low)


def number_cell(value: float | None, digits: int = 0) -> Cell:
    """Return a number, with commas between thousands."""
    return Cell(UNKNOWN) if value is None else Cell(f"{value:,.{digits}f}", value)


def _signed(value: float) -> str:
    """Return a number with its sign; what is shown as zero has none."""
    text = f"{value:+.2f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
