"""The figure of a sweep: lines over a numeric field, or a coloured table of settings and encoders."""

from __future__ import annotations

import functools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from fmcache.report.figure_style import COLOURS, CONTROL, Write, names_shown, rendered, width_of, wrapped
from fmcache.report.sweep import FIELD_TITLES, SUBSET, Point, SweptDataset, shown_setting
from fmcache.settings import Setting, value_text
from fmcache.specs import short_field

CELL, ROW = 0.45, 0.21
"""Width and height of a cell of the coloured table in inches."""
MOST_ROWS = 200
"""With more settings there is no figure."""
APART = 0.012
"""Distance of two encoders at one value, as a share of the axis: so that their intervals do not cover each other."""
LINES = "Mean Dice with 95 % intervals by {field}; encoders at one value are drawn slightly apart. Dashed: controls."
CELLS = (
    "Mean Dice in percent by setting (rows) and encoder (columns). The darker a cell, the further it is below the best "
    "encoder of its setting. • may be the best under its setting. Grey: controls."
)


def sweep_caption(swept: SweptDataset) -> str:
    """Return how to read the figure of a sweep."""
    if not swept.is_numeric:
        return CELLS
    (field,) = swept.fields
    return LINES.format(field=FIELD_TITLES.get(field, short_field(field)))


def has_figure(swept: SweptDataset) -> bool:
    """Return whether a sweep has a figure: something has a Dice, and there are not too many settings."""
    scored = any(not math.isnan(point.estimate) for point in swept.points.values())
    return scored and len(swept.settings) <= MOST_ROWS


def sweep_figure(swept: SweptDataset) -> dict[str, bytes]:
    """Return ``sweep.png`` and ``sweep.svg``, if there is a figure."""
    if not has_figure(swept):
        return {}
    draw = dice_by_number if swept.is_numeric else dice_by_setting
    names = [*names_shown(swept.first.summary), *(encoder.display for encoder in swept.encoders)]
    return rendered("sweep", functools.partial(draw, swept), names)


def dice_by_number(swept: SweptDataset, write: Write) -> Figure:
    """Return mean Dice by the value of a numeric field: one line per encoder; bars are 95 % intervals."""
    figure = Figure(figsize=(6.5, max(3.2, 0.2 * len(swept.encoders) + 0.4)), layout="constrained")
    axes = figure.add_subplot()
    # for a subset the number of tiles, which `subset: 0` does not state
    ticks = {
        n: f"{n:g}" if SUBSET in swept.fields else value_text(s[0][1])
        for s in swept.settings
        for n in [swept.number(s)]
    }
    is_log = min(ticks) > 0
    span = (math.log(max(ticks) / min(ticks)) if is_log else max(ticks) - min(ticks)) or 1.0
    middle = (len(swept.encoders) - 1) / 2
    for i, encoder in enumerate(swept.encoders):
        step = APART * span * (i - middle) / max(1.0, middle / 3)
        some = [
            (swept.number(s), point) for s, point in swept.of(encoder.name).items() if point.estimate == point.estimate
        ]
        if not some:
            continue
        at = [number * math.exp(step) if is_log else number + step for number, _ in some]
        is_control = swept.is_control(encoder.name)
        axes.errorbar(
            at, [100 * point.estimate for _, point in some], yerr=np.array([_bars(point) for _, point in some]).T,
            marker="o", markersize=3, capsize=2, linewidth=1.0, label=str(i),
            color=CONTROL if is_control else COLOURS[i % len(COLOURS)],
            linestyle=("--", ":", "-.")[i % 3] if is_control else "-" if i < len(COLOURS) else (0, (6, 1)),
        )  # fmt: skip
    if is_log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    (field,) = swept.fields
    axes.set_xlabel(write(FIELD_TITLES.get(field, short_field(field))))
    axes.set_ylabel("test Dice, mean over labels (%)")
    # inside the axes the legend would cover points; with 15 encoders it would cover all of them
    legend = figure.legend(frameon=False, loc="outside right upper")
    for text in legend.get_texts():
        # a label with a leading _ would not appear in the legend
        text.set_text(write(swept.encoders[int(text.get_text())].display))
    return figure


def dice_by_setting(swept: SweptDataset, write: Write) -> Figure:
    """Return mean Dice as a coloured table: a row per setting, a column per encoder."""
    encoders, settings = swept.encoders, swept.settings
    tops = [wrapped(encoder.display, write, inches=1.6, size=7) for encoder in encoders]
    names = [write(shown_setting(setting)) for setting in settings]
    left = width_of(names, 7) + 0.15
    above = width_of((line for top in tops for line in top.split("\n")), 7) + 0.15
    wide, high = left + CELL * len(encoders) + 0.1, above + ROW * len(settings) + 0.1
    figure = Figure(figsize=(wide, high))
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / wide, 0.1 / high, CELL * len(encoders) / wide, ROW * len(settings) / high))
    behind = {key: _behind(swept, key[1], point) for key, point in swept.points.items() if not point.row.is_control}
    most = max((one for one in behind.values() if not math.isnan(one)), default=0.0)
    colour = ScalarMappable(Normalize(0, 1.4 * most or 1.0), "Blues")
    for x, encoder in enumerate(encoders):
        for y, setting in enumerate(settings):
            if point := swept.points.get((encoder.name, setting)):
                _cell(axes, x, y, point, colour, behind.get((encoder.name, setting), math.nan))
    axes.set(xlim=(-0.5, len(encoders) - 0.5), ylim=(len(settings) - 0.5, -0.5))
    axes.set_xticks(range(len(encoders)), tops, rotation=90, fontsize=7)
    axes.set_yticks(range(len(settings)), names, fontsize=7)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def _bars(point: Point) -> tuple[float, float]:
    """Return how far the interval reaches below and above the estimate, in percent."""
    if math.isnan(point.low):
        return 0.0, 0.0
    return 100 * max(0.0, point.estimate - point.low), 100 * max(0.0, point.high - point.estimate)


def _behind(swept: SweptDataset, setting: Setting, point: Point) -> float:
    """Return how far an encoder is below the best encoder of a setting."""
    ranked = [p.estimate for (_, at), p in swept.points.items() if at == setting and not p.row.is_control]
    return (
        max(one for one in ranked if not math.isnan(one)) - point.estimate
        if point.estimate == point.estimate
        else math.nan
    )


def _cell(axes: Axes, x: int, y: int, point: Point, colour: ScalarMappable, behind: float) -> None:
    fill = "#eeeeee" if math.isnan(behind) else colour.to_rgba(np.array(behind))
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="white", linewidth=0.6))
    text = "–" if math.isnan(point.estimate) else f"{100 * point.estimate:.1f}{' •' if point.may_be_best else ''}"
    light = 1.0 if isinstance(fill, str) else float(np.dot(fill[:3], (0.299, 0.587, 0.114)))
    axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color="white" if light < 0.45 else "black")
