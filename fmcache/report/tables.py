"""The table of the paper, encoder x label, as Markdown, CSV, LaTeX and for the terminal, all from the same cells."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from fmcache.report.endings import Ending
from fmcache.report.escapes import beyond_latex, escape_latex, escape_markdown, latex_comment
from fmcache.report.notes import marks, notes
from fmcache.report.summary import Row, Summary


class Cell(NamedTuple):
    """A cell: its text and its place in the column (1: best; up to 3: bold; 0: not ranked)."""

    text: str
    place: int


def cells(summary: Summary, row: Row) -> list[Cell]:
    """Return mean ± standard deviation in percent for every column of a row."""
    texts = [
        "–" if np.isnan(mean) else f"{100 * mean:.2f}" + ("" if np.isnan(std) else f" ± {100 * std:.2f}")
        for mean, std in zip(row.mean, row.std, strict=True)
    ]
    return [Cell(text, summary.place(row, column)) for column, text in enumerate(texts)]


def name(row: Row) -> str:
    """Return an encoder's name with the marks for how its runs ended."""
    return row.encoder.display + marks(row)


def markdown(summary: Summary) -> str:
    """Return the table as Markdown."""

    def show(cell: Cell) -> str:
        text = f"<u>{cell.text}</u>" if cell.place == 1 else cell.text
        return f"**{text}**" if 1 <= cell.place <= 3 else text

    lines = [markdown_head(["encoder", *summary.columns])]
    controls_begun = False
    for row in summary.rows:
        if row.is_control and not controls_begun:
            controls_begun = True
            lines.append("| *controls* |" + " |" * len(summary.columns))
        lines.append(
            "| " + " | ".join([escape_markdown(name(row)), *(show(cell) for cell in cells(summary, row))]) + " |"
        )
    return "\n".join(lines) + "\n"


def markdown_head(columns: Sequence[str]) -> str:
    """Return the first two lines of a Markdown table; column names are escaped."""
    return "| " + " | ".join(map(escape_markdown, columns)) + " |\n" + "|---" * len(columns) + "|"


def latex(summary: Summary) -> str:
    """Return the table as LaTeX (packages booktabs; ± needs no package)."""

    def show(cell: Cell) -> str:
        text = escape_latex(cell.text)
        text = rf"\underline{{{text}}}" if cell.place == 1 else text
        return rf"\textbf{{{text}}}" if 1 <= cell.place <= 3 else text

    def line(row: Row) -> str:
        return " & ".join([escape_latex(name(row)), *(show(cell) for cell in cells(summary, row))]) + r" \\"

    ranked = [line(row) for row in summary.ranked]
    controls = [line(row) for row in summary.rows if row.is_control]
    rule = [r"\midrule"] if ranked and controls else []
    head = " & ".join(["Encoder", *(escape_latex(column) for column in summary.columns)]) + r" \\"
    lines = notes(summary)
    if signs := beyond_latex("".join([*summary.columns, *map(name, summary.rows)])):
        lines.append(f"Compile with XeLaTeX or LuaLaTeX and a font that has {signs}")
    note = "".join(map(latex_comment, lines))
    body = "\n".join([rf"\begin{{tabular}}{{l{'r' * len(summary.columns)}}}", r"\toprule", head, r"\midrule"])
    return note + "\n".join([body, *ranked, *rule, *controls, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_text(summary: Summary) -> str:
    """Return the table as CSV: one line per encoder and label, machine-readable, in percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["study", "dataset", "encoder", "title", "label", "seeds", "dice_mean_percent", "dice_std_percent",
         "collapsed_seeds", "still_falling_seeds", "control", "random_weights", "params", "dice",
         "validation_rising_seeds", "training_ended_seeds", "ending_unknown_seeds"]
    )  # fmt: skip
    for row in summary.rows:
        ended = Counter(row.endings)
        for column, mean, std in zip(summary.columns, row.mean, row.std, strict=True):
            writer.writerow(
                [summary.record.study, summary.record.dataset, row.encoder.name, row.encoder.display, column,
                 len(row.seeds), _number(mean), _number(std), ended[Ending.COLLAPSED],
                 ended[Ending.RISING] + ended[Ending.LEARNT],
                 row.encoder.control, row.encoder.random_weights, row.encoder.params, summary.reduction,
                 ended[Ending.RISING], ended[Ending.ENDED], ended[Ending.UNTOLD]]
            )  # fmt: skip
    return file.getvalue()


def terminal(summary: Summary) -> Table:
    """Return the table for the terminal, notes below."""
    table = Table(
        title=f"{summary.record.dataset_title} · {summary.record.study}",
        caption="\n".join(notes(summary)),
        caption_justify="left",
    )
    table.add_column("encoder")
    for column in summary.columns:
        table.add_column(column, justify="right")
    for i, row in enumerate(summary.rows):
        last_ranked = i + 1 < len(summary.rows) and not row.is_control and summary.rows[i + 1].is_control
        table.add_row(
            name(row), *(Text(cell.text, _style(cell)) for cell in cells(summary, row)), end_section=last_ranked
        )
    return table


def _style(cell: Cell) -> str:
    return " ".join(["bold"] * (1 <= cell.place <= 3) + ["underline"] * (cell.place == 1))


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.4f}"
