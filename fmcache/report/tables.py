"""A table of a report as Markdown, LaTeX, CSV and for the terminal, all from the same cells."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from rich.table import Table
from rich.text import Text

from fmcache.report.escapes import beyond_latex, escape_latex, escape_markdown, latex_comment
from fmcache.report.report_table import Cell, ReportTable, TableRow

MAY_BE_BEST = "•"
"""Stands after the value of an encoder that may be the best of its column."""


def markdown(table: ReportTable) -> str:
    """Return the table as Markdown, without its title and notes."""
    lines = [markdown_head(table.columns)]
    controls_begun = False
    for row in table.rows:
        if row.is_control and not controls_begun:
            controls_begun = True
            lines.append("| *controls* |" + " |" * (len(table.columns) - 1))
        lines.append("| " + " | ".join(map(_markdown, row.cells)) + " |")
    return "\n".join(lines) + "\n"


def markdown_head(columns: Sequence[str]) -> str:
    """Return the first two lines of a Markdown table; column names are escaped."""
    return "| " + " | ".join(map(escape_markdown, columns)) + " |\n" + "|---" * len(columns) + "|"


def _markdown(cell: Cell) -> str:
    # a number holds no sign that could be markup, and "\[78.12, 84.40]" would be hard to read
    text = escape_markdown(cell.text) if cell.value is None else cell.text
    text = f"<u>{text}</u>" if cell.place == 1 else text
    text = f"**{text}**" if 1 <= cell.place <= 3 else text
    return f"{text} {MAY_BE_BEST}" if cell.may_be_best else text


def latex(table: ReportTable) -> str:
    """Return the table as LaTeX (packages booktabs; ± needs no package); title and notes are comments."""
    ranked = [_latex_row(row) for row in table.rows if not row.is_control]
    controls = [_latex_row(row) for row in table.rows if row.is_control]
    rule = [r"\midrule"] if ranked and controls else []
    head = " & ".join(map(escape_latex, table.columns)) + r" \\"
    lines = [table.title, *table.notes]
    if signs := beyond_latex("".join([*table.columns, *(cell.text for row in table.rows for cell in row.cells)])):
        lines.append(f"Compile with XeLaTeX or LuaLaTeX and a font that has {signs}")
    note = "".join(map(latex_comment, lines))
    body = "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule", head, r"\midrule"])
    return note + "\n".join([body, *ranked, *rule, *controls, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv(table: ReportTable) -> str:
    """Return the table as CSV, with the texts of its cells; numbers for programs are in the Parquet files."""
    rows = [[cell.text for cell in row.cells] for row in table.rows]
    frame = pl.DataFrame(rows, schema=[str(i) for i in range(len(table.columns))], orient="row")
    return pl.DataFrame([table.columns], orient="row").write_csv(include_header=False) + frame.write_csv(
        include_header=False
    )


def _latex_row(row: TableRow) -> str:
    return " & ".join(map(_latex, row.cells)) + r" \\"


def _latex(cell: Cell) -> str:
    text = escape_latex(cell.text)
    text = rf"\underline{{{text}}}" if cell.place == 1 else text
    text = rf"\textbf{{{text}}}" if 1 <= cell.place <= 3 else text
    return f"{text} {escape_latex(MAY_BE_BEST)}" if cell.may_be_best else text


def terminal(table: ReportTable) -> Table:
    """Return the table for the terminal, notes below."""
    shown = Table(title=table.title, caption="\n".join(table.notes), caption_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if i else "left")
    for i, row in enumerate(table.rows):
        last_ranked = i + 1 < len(table.rows) and not row.is_control and table.rows[i + 1].is_control
        shown.add_row(*map(_shown, row.cells), end_section=last_ranked)
    return shown


def _shown(cell: Cell) -> Text | str:
    if cell.value is None:  # text that users choose stays a string: the console makes its control characters visible
        return cell.text
    style = " ".join(["bold"] * (1 <= cell.place <= 3) + ["underline"] * (cell.place == 1))
    text = Text(cell.text, style)
    return Text.assemble(text, f" {MAY_BE_BEST}") if cell.may_be_best else text
