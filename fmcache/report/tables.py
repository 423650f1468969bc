"""The table of the paper, encoder x label, as Markdown, CSV, LaTeX and for the terminal, all from the same cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
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
    record, lines = summary.record, []
    for row in summary.rows:
        ended, encoder = Counter(row.endings), row.encoder
        for label, mean, std in zip(summary.columns, row.mean, row.std, strict=True):
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
            })  # fmt: skip
    return pl.DataFrame(lines, infer_schema_length=None).write_csv(float_precision=4)


def percent(share: float) -> float | None:
    """Return a share in percent; None where it is undefined, which CSV leaves empty."""
    return None if np.isnan(share) else 100 * float(share)


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
