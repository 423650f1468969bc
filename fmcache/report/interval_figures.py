"""How certain the order of encoders is: intervals, ranks, and differences of pairs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fmcache.report.figure_rows import FigureRow, Standing, figure_rows, places_of
from fmcache.report.figure_style import CONTROL, MARKS, PALE, Write, explain_marks, name_rows, stripe, width_of, wrapped
from fmcache.report.findings import Findings
from fmcache.statistics.evidence import score_name
from fmcache.statistics.schemas import MEAN

ROW = 0.23
"""Height of a row in inches."""
CELL = 0.37
"""Side of a cell of the pair matrix in inches."""


def forest(findings: Findings, write: Write) -> Figure:
    """Return estimates of the mean Dice with 95 % intervals and the standard deviation of runs, best first."""
    rows = figure_rows(findings)
    places = places_of(rows)
    names = width_of((write(row.display) for row in rows), 8)
    figure = Figure(figsize=(names + 5.2, 1.0 + ROW * (places[-1] + 1)))
    axes = figure.add_subplot()
    stripe(axes, places)
    for y, row in zip(places, rows, strict=True):
        _interval(axes, y, row)
        axes.text(1.02, y, _numbers(row), transform=axes.get_yaxis_transform(), va="center", fontsize=7)
    controls = [row.estimate for row in rows if row.standing is Standing.CONTROL and not math.isnan(row.estimate)]
    if controls:
        axes.axvline(max(controls), color=CONTROL, linestyle="--", linewidth=0.8, zorder=1)
    name_rows(axes, places, rows, write)
    axes.set_xlabel("test Dice, mean over labels (%)")
    axes.spines["left"].set_visible(False)
    explain_marks(figure, rows)
    return figure


def ranks(findings: Findings, write: Write) -> Figure:
    """Return the ranks that each encoder may have, one panel per label and one for the mean."""
    shown = [label for label in findings.summary.columns if any(row.ranks for row in figure_rows(findings, label))]
    rows = [row for row in figure_rows(findings) if row.standing is not Standing.CONTROL]
    names = width_of((write(row.display) for row in rows), 8)
    panel = max(1.5, 0.11 * len(rows))
    titles = [wrapped(label, write, inches=panel, size=8) for label in shown]
    figure = Figure(figsize=(names + 0.3 + (panel + 0.12) * len(shown), 1.1 + ROW * len(rows)))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, label, title in zip(panels, shown, titles, strict=True):
        of = {row.encoder: row for row in figure_rows(findings, label)}
        stripe(axes, range(len(rows)))
        order = [row.encoder for row in of.values()]
        for y, row in enumerate(rows):
            _rank_bar(axes, y, of[row.encoder], order.index(row.encoder) + 1)
        axes.set_title(title, fontsize=8, fontweight="bold" if label == MEAN else "normal")
        axes.set_xlim(0.4, len(rows) + 0.6)
        axes.set_xticks(_whole(len(rows)))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("rank")
    name_rows(panels[0], range(len(rows)), rows, write)
    explain_marks(figure, [row for label in shown for row in figure_rows(findings, label) if row.ranks])
    return figure


def pair_matrix(findings: Findings, write: Write) -> Figure:
    """Return the difference of mean Dice of each pair, row minus column; pairs that differ have a colour."""
    own = score_name(findings.evidence.score)
    table = findings.answer.pairs.filter(pl.col("label") == MEAN, pl.col("score") == own)
    known = {name for side in ("a", "b") for name in table[side]}
    rows = [row for row in figure_rows(findings) if row.encoder in known]
    at = {row.encoder: i for i, row in enumerate(rows)}
    names = [write(row.display) for row in rows]
    # three lines fit beside a cell
    tops = [wrapped(row.display, write, inches=max(1.5, width_of(names, 7) / 2.5), size=7) for row in rows]
    side = CELL * len(rows)
    coloured = table.filter("differs")["difference"]
    left, above = width_of(names, 8) + 0.12, _lines_wide(tops) + 0.12
    wide, high = left + side + (0.1 if coloured.is_empty() else 0.75), side + above + 0.06
    figure = Figure(figsize=(wide, high))
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / wide, 0.06 / high, side / wide, side / high))
    colour = _colours(100 * coloured.abs().to_numpy())
    for one in table.iter_rows(named=True):
        if one["difference"] is None:
            continue
        for a, b, sign in ((one["a"], one["b"], 1), (one["b"], one["a"], -1)):
            _cell(axes, at[b], at[a], sign * 100 * one["difference"], bool(one["differs"]), colour)
    for i in range(len(rows)):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, facecolor="#dddddd", edgecolor="white"))
    axes.set(xlim=(-0.5, len(rows) - 0.5), ylim=(len(rows) - 0.5, -0.5), aspect="equal")
    axes.set_xticks(range(len(rows)), tops, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    if not coloured.is_empty():
        bar = min(3.0, side)
        corner = ((left + side + 0.12) / wide, (0.06 + (side - bar) / 2) / high)
        beside = figure.add_axes((*corner, 0.12 / wide, bar / high))
        scale = figure.colorbar(colour, cax=beside, extend="both")
        scale.set_label("row − column (points of Dice)" if bar > 2 else "row − column")
        scale.outline.set_visible(False)
    return figure


def _interval(axes: Axes, y: float, row: FigureRow) -> None:
    mark = MARKS[row.standing]
    if not math.isnan(row.spread):
        axes.plot([row.estimate - row.spread, row.estimate + row.spread], [y + 0.27] * 2, color=PALE, linewidth=1.2)
    if not math.isnan(row.low):
        axes.plot([row.low, row.high], [y, y], color=mark["color"], linewidth=1.5, solid_capstyle="butt", zorder=2)
    axes.plot(row.estimate, y, linestyle="none", zorder=3, **mark)


def _numbers(row: FigureRow) -> str:
    if math.isnan(row.estimate):
        return row.cannot or "–"
    limits = f"{row.low:.1f} – {row.high:.1f}" if not math.isnan(row.low) else row.cannot
    return f"{row.estimate:.1f}  ({limits})"


def _rank_bar(axes: Axes, y: float, row: FigureRow, place: int) -> None:
    if row.ranks is None:
        return
    mark = MARKS[row.standing]
    axes.plot(row.ranks, [y, y], color=mark["color"], linewidth=3.5, alpha=0.35, solid_capstyle="round", zorder=2)
    axes.plot(place, y, linestyle="none", zorder=3, **mark)


def _whole(n: int) -> list[int]:
    """Return whole numbers from 1 to n for ticks, some of them when there are many."""
    step = 1 if n <= 5 else 5 if n <= 30 else 10
    return sorted({1, *range(step, n + 1, step)})


def _colours(sizes: npt.NDArray[np.float64]) -> ScalarMappable:
    """Return colours for differences whose absolute values are `sizes`.

    The scale ends at 1.5 times their median: one encoder far behind all others does not make the rest pale.
    """
    most = 1.5 * float(np.median(sizes)) if len(sizes) else 1.0
    return ScalarMappable(Normalize(-most, most), "RdBu")


def _cell(axes: Axes, x: int, y: int, value: float, differs: bool, colour: ScalarMappable) -> None:
    fill = colour.to_rgba(np.array(value)) if differs else (1.0, 1.0, 1.0, 1.0)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="#dddddd", linewidth=0.4))
    light = float(np.dot(fill[:3], (0.299, 0.587, 0.114)))
    ink = ("white" if light < 0.45 else "black") if differs else "#777777"
    axes.text(x, y, _signed(value), ha="center", va="center", fontsize=6.5, color=ink,
              fontweight="bold" if differs else "normal")  # fmt: skip


def _signed(value: float) -> str:
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "−")


def _lines_wide(texts: list[str]) -> float:
    return width_of((line for text in texts for line in text.split("\n")), 7)
