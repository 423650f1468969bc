"""The figures of a report, PNG and SVG. Only this module plots. The same results give the same bytes.

Names are drawn unchanged, in any script for which a font is installed. Without such a font, a PNG shows code points; an
SVG holds the name, and the viewer chooses the font.
"""

from __future__ import annotations

import functools
import io
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmcache import fonts
from fmcache.report.escapes import plot
from fmcache.report.summary import Row, Summary

# text stays text in SVG; no dates and no random ids are written
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "fmcache", "font.size": 8, "axes.spines.top": False,
         "axes.spines.right": False, "figure.constrained_layout.use": True}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
CONTROL = "#888888"

Write = Callable[[str], str]
"""From a name to the text for matplotlib: without formulas, and with a replacement for characters that no font has."""


def figures(summary: Summary) -> dict[str, bytes]:
    """Return the files of all figures by name: ``size``, ``labels`` and ``curves``, each as ``.png`` and ``.svg``."""
    files: dict[str, bytes] = {}
    for name, draw in (("size", dice_by_size), ("labels", dice_by_label), ("curves", training_curves)):
        files |= rendered(name, functools.partial(draw, summary), names_shown(summary))
    return files


def names_shown(summary: Summary) -> list[str]:
    """Return the names that the figures of a summary show."""
    return [*summary.columns, *(row.encoder.display for row in summary.rows)]


def cover(texts: Sequence[str]) -> fonts.Cover:
    """Return the fonts that texts need besides matplotlib's default font, and the characters that no font has."""
    return fonts.cover(texts, font_manager.findfont(font_manager.FontProperties()))


def rendered(name: str, draw: Callable[[Write], Figure], texts: Sequence[str]) -> dict[str, bytes]:
    """Return a figure that shows `texts` as ``NAME.png`` and ``NAME.svg``."""
    files = {}
    found = cover(texts)
    families = [*mpl.rcParams["font.family"], *(face.family for face in found.faces)]
    with mpl.rc_context(STYLE | ({"font.family": families} if found.faces else {})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the viewer of an SVG has its own fonts
        figure = draw(lambda text: plot(found.boxed(text)))
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            if kind == "svg" and found.lacking:
                figure = draw(lambda text: plot("".join(map(_xml, text))))
            file = io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(file, format=kind, dpi=200, metadata=metadata)
            files[f"{name}.{kind}"] = file.getvalue()
    return files


def _xml(sign: str) -> str:
    """Return a character, or its code point when XML cannot hold it or it would break a line."""
    return f"[U+{ord(sign):04X}]" if unicodedata.category(sign) in ("Cc", "Cs") or sign in "\ufffe\uffff" else sign


def dice_by_size(summary: Summary, write: Write) -> Figure:
    """Return Figure 1 of the paper: mean Dice by parameters of the encoder, one bubble each, with area by size."""
    figure = Figure(figsize=(5.0, 3.4))
    axes = figure.add_subplot()
    for i, row in enumerate(summary.rows):
        mean, std = 100 * row.mean[-1], 100 * row.std[-1]
        if math.isnan(mean):  # the test tiles have no label
            continue
        colour = CONTROL if row.is_control else COLOURS[i % len(COLOURS)]
        if row.encoder.params == 0:
            axes.axhline(mean, color=colour, linestyle="--", linewidth=0.8)
            name = write(row.encoder.display)
            axes.annotate(name, (1.0, mean), xycoords=("axes fraction", "data"), ha="right", va="bottom")
            continue
        millions = row.encoder.params / 1e6
        area = 30 + 25 * math.sqrt(millions)
        axes.errorbar(millions, mean, yerr=None if math.isnan(std) else std, color=colour, capsize=2, linewidth=0.8)
        axes.scatter(millions, mean, s=area, color=colour, alpha=0.6, edgecolor="white", zorder=3)
        axes.annotate(
            write(row.encoder.display), (millions, mean), xytext=(0, math.sqrt(area) / 2 + 3),
            textcoords="offset points", ha="center", zorder=4,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.2)
    axes.set_xlabel("encoder parameters (millions)")
    axes.set_ylabel(f"test Dice, mean over labels (%){_spread(summary)}")
    return figure


def dice_by_label(summary: Summary, write: Write) -> Figure:
    """Return one panel per label and one for the mean. Every run is a point, the mean over runs is a bar."""
    n = len(summary.columns)
    figure = Figure(figsize=(1.2 + _wide(map(write, summary.columns), 1.9, 0.08) * n, 0.9 + 0.28 * len(summary.rows)))
    panels = np.atleast_1d(figure.subplots(1, n, sharey=True))
    colours = [colour for _, colour in summary.record.labels] + ["#444444"]
    for column, (axes, title, colour) in enumerate(zip(panels, summary.columns, colours, strict=True)):
        for y, row in enumerate(reversed(summary.rows)):
            values = 100 * row.dice[:, column]
            axes.barh(y, 100 * row.mean[column], color=colour, alpha=0.35, hatch="///" if row.is_control else None)
            axes.plot(values, np.full(len(values), y), ".", color="black", markersize=3)
        axes.set_title(write(title))
        axes.set_xlim(0, 100)
        axes.set_xlabel("test Dice (%)")
    panels[0].set_yticks(range(len(summary.rows)), [write(row.encoder.display) for row in reversed(summary.rows)])
    return figure


def training_curves(summary: Summary, write: Write) -> Figure:
    """Return training loss and validation Dice per epoch: thin lines for runs, a thick mean, one column per encoder."""
    n = len(summary.rows)
    columns = min(n, 5)
    bands = -(-n // columns)
    panel = _wide((write(row.encoder.display) for row in summary.rows), 1.7, 0.06)
    figure = Figure(figsize=(0.6 + panel * columns, 2.6 * bands))
    panels = figure.subplots(2 * bands, columns, sharex=True, sharey=False, squeeze=False)
    top = max(float(curve["loss"].max() or 0) for row in summary.rows for curve in row.curves)  # type: ignore[arg-type]
    for axes in panels.flat:
        axes.set_visible(False)
    for i, row in enumerate(summary.rows):
        band, column = divmod(i, columns)
        loss, dice = panels[2 * band, column], panels[2 * band + 1, column]
        _curves(loss, dice, row, CONTROL if row.is_control else COLOURS[i % len(COLOURS)])
        loss.set_title(write(row.encoder.display), fontsize=7)
        loss.set_ylim(0, 1.05 * top)
        dice.set_ylim(0, 100)
        dice.set_xlabel("epoch")
        if column == 0:
            loss.set_ylabel("training loss")
            dice.set_ylabel("validation Dice (%)")
        for axes in (loss, dice):
            axes.set_visible(True)
    return figure


def _curves(loss: mpl.axes.Axes, dice: mpl.axes.Axes, row: Row, colour: str) -> None:
    for curve in row.curves:
        loss.plot(curve["epoch"], curve["loss"], color=colour, linewidth=0.5, alpha=0.6)
        tested = curve.drop_nulls("val_dice")
        dice.plot(tested["epoch"], 100 * tested["val_dice"], "o-", color=colour, linewidth=0.5, markersize=2, alpha=0.6)
    mean = np.mean([curve["loss"].to_numpy() for curve in row.curves], axis=0)
    loss.plot(row.curves[0]["epoch"], mean, color=colour, linewidth=1.6)


def _wide(titles: Iterable[str], least: float, sign: float) -> float:
    """Return the width of a panel in inches so that titles do not overlap, with `sign` inches per character."""
    signs = (sum(1 + (unicodedata.east_asian_width(s) in "WF") for s in title) for title in titles)
    return max(least, sign * max(signs))


def _spread(summary: Summary) -> str:
    what = "folds and seeds" if summary.folds else "seeds"
    return f", ± SD over {what}" if any(len(row.seeds) > 1 for row in summary.rows) else ""
