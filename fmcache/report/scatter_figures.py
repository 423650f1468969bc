"""Dice against the size of the encoder (Figure 1 of the paper) and against what it costs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fmcache.report.figure_rows import FigureRow, Standing, figure_rows
from fmcache.report.figure_style import CONTROL, MARKS, PALE, Write, explain_marks, wrapped
from fmcache.report.findings import Findings
from fmcache.report.label_placement import name_points, spread
from fmcache.report.summary import Row
from fmcache.scores.records import Extraction

NAME_SIZE = 7.0
NAME_INCHES = 1.7
NAME_ROOM = 0.15
"""Share of the x axis that is free on each side."""
Line = tuple[float, float, float, float]
"""x0, y0, x1, y1 in data units."""
DICE = "test Dice, mean over labels (%)"


EXTRACTION = "extraction time (ms per view)"
TRAINING = "training time of a decoder (s per run)"


class Point(NamedTuple):
    """An encoder in a scatter plot: its size or cost, and its Dice."""

    x: float
    row: FigureRow


def dice_by_size(findings: Findings, write: Write) -> Figure:
    """Return Figure 1 of the paper: mean Dice by parameters of the encoder; a line for each control without any."""
    points = _points(findings, lambda row: row.encoder.params / 1e6)
    sized = [point for point in points if point.x > 0]
    figure = Figure(figsize=(7.0, _height(len(sized))))
    axes = figure.add_subplot()
    _scatter(axes, sized)
    axes.set_xlabel("encoder parameters (millions)")
    flat = [point for point in points if point.x == 0]
    for point in flat:
        axes.axhline(point.row.estimate, color=CONTROL, linestyle="--", linewidth=0.8, zorder=1)
    if not sized:
        axes.set_xticks([])
    explain_marks(figure, [point.row for point in points])
    _name_lines(axes, flat, 0.75 * figure.get_figheight(), write)
    figure.draw_without_rendering()  # the layout must be final before names are placed
    low, high = axes.get_xlim()
    _name(axes, sized, [(low, point.row.estimate, high, point.row.estimate) for point in flat], write)
    return figure


def costs_of(findings: Findings) -> dict[str, list[Point]]:
    """Return the points of each cost that is recorded, by the title of its axis."""
    by_title = {
        title: [point for point in _points(findings, functools.partial(of, findings)) if point.x > 0]
        for title, of in COSTS.items()
    }
    return {title: points for title, points in by_title.items() if points}


def dice_by_cost(findings: Findings, write: Write) -> Figure:
    """Return a panel for each recorded cost: mean Dice by cost, and the encoders that none beats in both."""
    costs = costs_of(findings)
    figure = Figure(figsize=(7.0, 0.3 + sum(0.8 * _height(len(points)) for points in costs.values())))
    panels = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
    for axes, (title, points) in zip(panels, costs.items(), strict=True):
        _scatter(axes, points)
        axes.set_xlabel(title + _devices(findings, title))
    explain_marks(figure, [point.row for points in costs.values() for point in points])
    figure.draw_without_rendering()  # the layout must be final before names are placed
    for axes, points in zip(panels, costs.values(), strict=True):
        _name(axes, points, _front(axes, points), write)
    return figure


def _points(findings: Findings, x_of: Callable[[Row], float]) -> list[Point]:
    """Return the encoders that have a Dice and a recorded x."""
    rows = {row.encoder: row for row in figure_rows(findings)}
    points = [Point(x_of(row), rows[row.encoder.name]) for row in findings.summary.rows]
    return [point for point in points if not math.isnan(point.x + point.row.estimate)]


def _scatter(axes: Axes, points: list[Point]) -> None:
    for point in points:
        if not math.isnan(point.row.spread):
            axes.errorbar(point.x, point.row.estimate, yerr=point.row.spread, color=PALE, linewidth=0.8, zorder=1)
        axes.plot(point.x, point.row.estimate, linestyle="none", zorder=3, **MARKS[point.row.standing])
    axes.set_xscale("log")
    axes.margins(y=0.1)
    if points:
        axes.set_xlim(_limits([point.x for point in points]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(DICE)


def _limits(values: list[float]) -> tuple[float, float]:
    """Return the limits of a log axis with room for a name on both sides.

    They span a factor of 2.6 or more, so that one of the ticks 1, 2, 5, 10, ... is between them.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    half = max(high - low, math.log10(2.6)) / (1 - 2 * NAME_ROOM) / 2
    return 10 ** ((low + high) / 2 - half), 10 ** ((low + high) / 2 + half)


def _front(axes: Axes, points: list[Point]) -> list[Line]:
    """Draw steps through the encoders that no other one beats in Dice at a lower or equal cost; return the steps."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.row.estimate)):
        if point.row.standing is not Standing.CONTROL and (not best or point.row.estimate > best[-1].row.estimate):
            best.append(point)
    xs, ys = [point.x for point in best], [point.row.estimate for point in best]
    axes.step(xs, ys, where="post", color="#56b4e9", linewidth=0.9, linestyle=(0, (4, 2)), zorder=2)
    corners = [(a.x, a.row.estimate, b.x, b.row.estimate) for a, b in itertools.pairwise(best)]
    return [line for x0, y0, x1, y1 in corners for line in ((x0, y0, x1, y0), (x1, y0, x1, y1))]


def _name(axes: Axes, points: list[Point], lines: list[Line], write: Write) -> None:
    names = [_wrapped(point, write) for point in points]
    colours = ["#666666" if point.row.standing is Standing.CONTROL else "black" for point in points]
    at = np.array([(point.x, point.row.estimate) for point in points]).reshape(-1, 2)
    name_points(axes, at, names, size=NAME_SIZE, colours=colours, lines=np.reshape(lines, (-1, 4)))


def _wrapped(point: Point, write: Write) -> str:
    return wrapped(point.row.display, write, inches=NAME_INCHES, size=NAME_SIZE)


def _name_lines(axes: Axes, points: list[Point], inches: float, write: Write) -> None:
    """Write the names of horizontal lines to the right of axes of a height, apart from each other."""
    if not points:
        return
    names = [_wrapped(point, write) for point in points]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    lines = max(name.count("\n") + 1 for name in names)
    apart = lines * 1.35 * NAME_SIZE / 72 / inches * (high - low)
    places = spread(np.array([point.row.estimate for point in points]), apart, low, high)
    for point, name, y in zip(points, names, places, strict=True):
        axes.annotate(
            name, (1.0, point.row.estimate), (1.02, y), va="center", fontsize=NAME_SIZE, color="#666666",
            xycoords=axes.get_yaxis_transform(), textcoords=axes.get_yaxis_transform(), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": CONTROL, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _height(points: int) -> float:
    return max(3.6, 0.23 * points)


def _extraction_ms(findings: Findings, row: Row) -> float:
    cost = _extraction(findings, row)
    return 1000 * cost.seconds / cost.views if cost and cost.views else math.nan


def _cache_mb(findings: Findings, row: Row) -> float:
    cost = _extraction(findings, row)
    return cost.bytes / cost.cached_views / 1e6 if cost and cost.cached_views else math.nan


def _extraction(findings: Findings, row: Row) -> Extraction | None:
    """Return what a run of an encoder records about its token cache; all runs of an encoder have the same cache."""
    records = (run.record for run in findings.runs if run.record.encoder.name == row.encoder.name)
    return next((record.extraction for record in records if record.extraction), None)


def _devices(findings: Findings, title: str) -> str:
    """Return a warning for the title of an axis when its times were measured on several devices."""
    records = [run.record for run in findings.runs]
    of = {
        EXTRACTION: {record.extraction.device for record in records if record.extraction},
        TRAINING: {record.device for record in records},
    }
    devices = sorted(of.get(title, ()))
    return f"; not on one device: {', '.join(devices)}" if len(devices) > 1 else ""


def _training_s(findings: Findings, row: Row) -> float:
    return float(np.mean([run.record.wall_s for run in findings.runs if run.record.encoder.name == row.encoder.name]))


COSTS: dict[str, Callable[[Findings, Row], float]] = {
    EXTRACTION: _extraction_ms,
    "token cache on disk (MB per view)": _cache_mb,
    TRAINING: _training_s,
}
"""By the title of its axis, each cost of an encoder; NaN where it is not recorded."""
