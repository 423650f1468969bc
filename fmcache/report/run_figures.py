"""Every run of every encoder: test Dice by label, and training curves."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmcache.report.figure_rows import FigureRow, figure_rows, places_of
from fmcache.report.figure_style import (
    COLOURS,
    CONTROL,
    MARKS,
    Write,
    explain_marks,
    name_rows,
    stripe,
    width_of,
    wrapped,
)  # fmt: skip
from fmcache.report.findings import Findings
from fmcache.report.interval_figures import ROW
from fmcache.report.summary import Row, Summary

COLUMNS = 6
"""Most encoders in a row of training curves."""
NARROW, WIDE, HIGH = 1.3, 2.0, 0.85
"""Least and most width, and height, of a panel of training curves in inches; longer names are wrapped."""


def dice_by_label(findings: Findings, write: Write) -> Figure:
    """Return one panel per label and one for the mean. Every seed is a dot, their mean is a bar."""
    summary = findings.summary
    rows = figure_rows(findings)
    places = places_of(rows)
    n = len(summary.columns)
    names = width_of((write(row.display) for row in rows), 8)
    figure = Figure(figsize=(names + 0.3 + 1.75 * n, 1.1 + ROW * (places[-1] + 1)))
    panels = figure.subplots(1, n, sharey=True, squeeze=False)[0]
    of_encoder = {row.encoder.name: row for row in summary.rows}
    colours = [colour for _, colour in summary.record.labels] + ["#444444"]
    for column, (axes, label, colour) in enumerate(zip(panels, summary.columns, colours, strict=True)):
        stripe(axes, places)
        of = {row.encoder: row for row in figure_rows(findings, label)}
        for y, row in zip(places, rows, strict=True):
            _dots(axes, y, 100 * of_encoder[row.encoder].dice[:, column], of[row.encoder])
        axes.set_title(wrapped(label, write, inches=1.6, size=8), fontsize=8)
        axes.spines["top"].set(visible=True, color=colour, linewidth=3)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("test Dice (%)")
    name_rows(panels[0], places, rows, write)
    explain_marks(figure, [row for label in summary.columns for row in figure_rows(findings, label)])
    return figure


def training_curves(findings: Findings, write: Write) -> Figure:
    """Return training loss and validation Dice per epoch: thin lines for runs, a thick mean, two panels per encoder."""
    summary = findings.summary
    columns = min(len(summary.rows), COLUMNS)
    bands = -(-len(summary.rows) // columns)
    panel = min(WIDE, max(NARROW, width_of((write(row.encoder.display) for row in summary.rows), 7)))
    titles = [wrapped(row.encoder.display, write, inches=panel, size=7) for row in summary.rows]
    title = 0.11 * (1 + max(text.count("\n") for text in titles)) + 0.06
    band = title + 2 * HIGH + 0.12
    wide, high = 0.6 + (panel + 0.08) * columns, band * bands + 0.3
    figure = Figure(figsize=(wide, high))
    figure.set_layout_engine("none")
    limits = _limits(summary)
    for i, (row, text) in enumerate(zip(summary.rows, titles, strict=True)):
        at, column = divmod(i, columns)
        left, top = 0.55 + (panel + 0.08) * column, high - band * at - title
        boxes = ((left, top - HIGH, panel, HIGH), (left, top - 2 * HIGH - 0.05, panel, HIGH))
        pair = [figure.add_axes((x / wide, y / high, w / wide, h / high)) for x, y, w, h in boxes]
        _curves(pair, row, CONTROL if row.is_control else COLOURS[0])
        pair[0].set_title(text, fontsize=7, pad=2, linespacing=1.0)
        first, last = row.curves[0]["epoch"][0], row.curves[0]["epoch"][-1]
        for axes, limit, word in zip(pair, limits, ("training loss", "validation Dice (%)"), strict=True):
            axes.set(ylim=limit, xlim=(first - 0.04 * last, 1.04 * last))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 5, 10)))
            axes.tick_params(labelsize=6, left=column == 0, labelleft=column == 0, labelbottom=False)
            if column == 0:
                axes.set_ylabel(word, fontsize=6.5)
        if i + columns >= len(summary.rows):
            pair[1].tick_params(labelbottom=True)
            pair[1].set_xlabel("epoch", fontsize=7)
    return figure


def _dots(axes: Axes, y: float, values: np.ndarray, row: FigureRow) -> None:
    mark = MARKS[row.standing]
    apart = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(len(values))
    axes.plot(values, y + apart, linestyle="none", marker="o", markersize=2.4, markeredgewidth=0, color=mark["color"],
              alpha=0.6, zorder=3)  # fmt: skip
    defined = values[~np.isnan(values)]
    if len(defined):
        axes.plot([defined.mean()] * 2, [y - 0.36, y + 0.36], color=mark["color"], linewidth=1.6, zorder=2)


def _limits(summary: Summary) -> list[tuple[float, float]]:
    """Return the common limits of all losses, and of all validation Dice in percent."""
    losses = np.concatenate([curve["loss"].to_numpy() for row in summary.rows for curve in row.curves])
    dice = [100 * curve["val_dice"].drop_nulls().to_numpy() for row in summary.rows for curve in row.curves]
    return [(0.0, 1.05 * float(np.nanmax(losses))), (0.0, 1.05 * float(max(one.max(initial=1) for one in dice)))]


def _curves(pair: list[Axes], row: Row, colour: str) -> None:
    runs = pl.concat([curve.select("epoch", "loss", pl.col("val_dice").cast(pl.Float64) * 100) for curve in row.curves])
    for axes, column in zip(pair, ("loss", "val_dice"), strict=True):
        for curve in row.curves:
            known = curve.drop_nulls(column)
            scale = 1 if column == "loss" else 100
            axes.plot(known["epoch"], scale * known[column], color=colour, linewidth=0.4, alpha=0.45)
        mean = runs.drop_nulls(column).group_by("epoch").agg(pl.col(column).mean()).sort("epoch")
        axes.plot(mean["epoch"], mean[column], color=colour, linewidth=1.1, marker="o", markersize=1.3)
