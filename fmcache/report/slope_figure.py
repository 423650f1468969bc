"""From dataset to dataset: does the order of encoders stay?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcache.report.figure_rows import FigureRow, Standing, figure_rows
from fmcache.report.figure_style import COLOURS, MARKS, PALE, Write, explain_marks, width_of, wrapped
from fmcache.report.findings import Findings
from fmcache.report.label_placement import Floats, spread

SIZE = 7.5


def common(all_findings: Sequence[Findings]) -> list[str]:
    """Return the encoders that are ranked and have a Dice on every dataset, in the order of the first dataset."""
    ranked = [[row for row in figure_rows(of) if row.standing is not Standing.CONTROL] for of in all_findings]
    there = [[row.encoder for row in rows if not math.isnan(row.estimate)] for rows in ranked]
    return [name for name in there[0] if all(name in names for names in there)] if there else []


def dice_by_dataset(all_findings: Sequence[Findings], write: Write) -> Figure:
    """Return a line per encoder: its mean Dice on each dataset, minus the mean of these encoders on that dataset."""
    names = common(all_findings)
    rows = [{row.encoder: row for row in figure_rows(of)} for of in all_findings]
    dice = np.array([[of[name].estimate for of in rows] for name in names])
    levels = dice.mean(axis=0)
    at = dice - levels
    shown = {name: write(rows[0][name].display) for name in names}
    margin = width_of(shown.values(), SIZE) + 0.65
    high = max(2.8, 0.24 * len(names) + 1.0)
    wide = 2 * margin + 1.8 * (len(rows) - 1) + 0.6
    figure = Figure(figsize=(wide, high))
    figure.set_layout_engine("none")
    legend = 0.25
    axes = figure.add_axes((margin / wide, 0.1 / high, 1 - 2 * margin / wide, 1 - (0.65 + legend) / high))
    room = max(float(np.ptp(at)), 1e-9)
    axes.set(xlim=(0, len(rows) - 1), ylim=(at.min() - 0.05 * room, at.max() + 0.05 * room))
    for i, name in enumerate(names):
        best = any(of[name].standing is Standing.BEST for of in rows)
        axes.plot(range(len(rows)), at[i], color=COLOURS[0] if best else PALE, linewidth=1.2, zorder=2, clip_on=False)
        for x, of in enumerate(rows):
            axes.plot(x, at[i, x], linestyle="none", clip_on=False, zorder=3, **MARKS[of[name].standing])
    inches = high - 0.65 - legend - 0.1
    for x, side in ((0, -1), (len(rows) - 1, 1)):
        _ends(axes, [rows[x][name] for name in names], at[:, x], (x, side), write, inches)
    heads = [
        f"{wrapped(of.summary.record.dataset_title, write, inches=1.7, size=8)}\nmean {level:.1f}"
        for of, level in zip(all_findings, levels, strict=True)
    ]
    axes.set_xticks(range(len(rows)), heads)
    axes.tick_params(length=0, pad=8, labeltop=True, labelbottom=False)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for x in range(len(rows)):
        axes.axvline(x, color=PALE, linewidth=0.6, zorder=1)
    explain_marks(figure, [of[name] for of in rows for name in names])
    return figure


def _ends(axes: Axes, rows: list[FigureRow], values: Floats, at: tuple[int, int], write: Write, inches: float) -> None:
    """Write names and Dice beside the ends of the lines, apart from each other."""
    x, side = at
    low, high = axes.get_ylim()
    places = spread(values, 1.35 * SIZE / 72 / inches * (high - low), low, high)
    for row, value, y in zip(rows, values, places, strict=True):
        text = f"{write(row.display)}  {row.estimate:.1f}" if side < 0 else f"{row.estimate:.1f}  {write(row.display)}"
        axes.annotate(
            text, (x, value), (side * 18, (y - value) / (high - low) * inches * 72), textcoords="offset points",
            ha="right" if side < 0 else "left", va="center", fontsize=SIZE, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#777777", "shrinkA": 1, "shrinkB": 4,
                        "relpos": (1 if side < 0 else 0, 0.5)},
        )  # fmt: skip
