"""The paper's table, encoder x label, as Markdown, CSV, LaTeX and for the terminal; one place decides on a cell."""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from fmcache.report.summary import Row, Summary

COLLAPSED, FALLING = "†", "‡"


class Cell(NamedTuple):
    """A cell: its text and its place in the column (1: best, up to 3: bold, 0: not ranked)."""

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
    """Return an encoder's name with the marks of its flags."""
    return row.encoder.display + (COLLAPSED if row.collapsed else "") + (FALLING if row.falling else "")


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know to read the table: which Dice, what the spread means, and the flags."""
    how = {
        "pooled": "Dice from counts summed over all test tiles",
        "per_tile": "Dice of each test tile, averaged over the tiles that hold or were given the label",
        "puma": "Dice as in the PUMA challenge: counts summed over all test tiles, a label without a hit is 0, the "
        "background is left out (at the tile size of the recipe, where the challenge has 1024 px)",
    }[summary.reduction]
    lines = [
        f"{how}; in percent; 'mean' is the mean over labels. Mean ± standard deviation over seeds.",
        "The split is fixed: the spread is over seeds only and says nothing of other tiles or patients.",
    ]
    if len(summary.ranked) > 1:
        lines.append("Best underlined, best three bold, among encoders; controls and random weights are not ranked.")
    lines += [
        f"{COLLAPSED} {row.encoder.display}: {len(row.collapsed)} of {len(row.seeds)} seeds collapsed "
        f"(a label was never predicted): {_seeds(row.collapsed)}."
        for row in summary.rows
        if row.collapsed
    ]
    lines += [
        f"{FALLING} {row.encoder.display}: the training loss of {len(row.falling)} of {len(row.seeds)} seeds was still "
        f"falling at the end; {_outlook(row)}."
        for row in summary.rows
        if row.falling
    ]
    if len({len(row.seeds) for row in summary.rows}) > 1:
        lines.append("Seeds: " + ", ".join(f"{row.encoder.display} {len(row.seeds)}" for row in summary.rows) + ".")
    return lines


def markdown(summary: Summary) -> str:
    """Return the table as Markdown."""

    def show(cell: Cell) -> str:
        text = f"<u>{cell.text}</u>" if cell.place == 1 else cell.text
        return f"**{text}**" if 1 <= cell.place <= 3 else text

    lines = ["| " + " | ".join(["encoder", *summary.columns]) + " |", "|---" * (len(summary.columns) + 1) + "|"]
    controls_begun = False
    for row in summary.rows:
        if row.is_control and not controls_begun:
            controls_begun = True
            lines.append("| *controls* |" + " |" * len(summary.columns))
        lines.append("| " + " | ".join([name(row), *(show(cell) for cell in cells(summary, row))]) + " |")
    return "\n".join(lines) + "\n"


def latex(summary: Summary) -> str:
    """Return the table as LaTeX (packages booktabs; ± needs no package)."""

    def show(cell: Cell) -> str:
        text = _escaped(cell.text)
        text = rf"\underline{{{text}}}" if cell.place == 1 else text
        return rf"\textbf{{{text}}}" if 1 <= cell.place <= 3 else text

    def line(row: Row) -> str:
        return " & ".join([_escaped(name(row)), *(show(cell) for cell in cells(summary, row))]) + r" \\"

    ranked = [line(row) for row in summary.ranked]
    controls = [line(row) for row in summary.rows if row.is_control]
    rule = [r"\midrule"] if ranked and controls else []
    head = " & ".join(["Encoder", *(_escaped(column) for column in summary.columns)]) + r" \\"
    note = "".join(f"% {text}\n" for text in notes(summary))
    body = "\n".join([rf"\begin{{tabular}}{{l{'r' * len(summary.columns)}}}", r"\toprule", head, r"\midrule"])
    return note + "\n".join([body, *ranked, *rule, *controls, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_text(summary: Summary) -> str:
    """Return the table as CSV: one line per encoder and label, machine-readable, in percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["study", "dataset", "encoder", "title", "label", "seeds", "dice_mean_percent", "dice_std_percent",
         "collapsed_seeds", "still_falling_seeds", "control", "random_weights", "params", "dice"]
    )  # fmt: skip
    for row in summary.rows:
        for column, mean, std in zip(summary.columns, row.mean, row.std, strict=True):
            writer.writerow(
                [summary.record.study, summary.record.dataset, row.encoder.name, row.encoder.display, column,
                 len(row.seeds), _number(mean), _number(std), len(row.collapsed), len(row.falling),
                 row.encoder.control, row.encoder.random_weights, row.encoder.params, summary.reduction]
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


def _outlook(row: Row) -> str:
    if not row.rising:
        return "none of them had its best validation Dice there: they were learning their training tiles by heart"
    return f"{len(row.rising)} of them had their best validation Dice there: a larger budget may change its rank"


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.4f}"


def _escaped(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", COLLAPSED: r"$\dagger$", FALLING: r"$\ddagger$"}
    signs |= {sign: "\\" + sign for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(sign, sign) for sign in text)
