"""How figures look, and how they are written as PNG and SVG. The same results give the same bytes.

Names are drawn unchanged, in any script for which a font is installed. Without such a font, a PNG shows code points; an
SVG holds the name, and the viewer chooses the font.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fmcache import fonts
from fmcache.report.escapes import plot
from fmcache.report.figure_rows import FigureRow, Standing
from fmcache.report.summary import Summary

# text stays text in SVG; no dates and no random ids are written
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "fmcache", "font.size": 8, "axes.spines.top": False,
         "axes.spines.right": False, "figure.constrained_layout.use": True, "axes.linewidth": 0.6,
         "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""Okabe and Ito's colours, which colour-blind readers can distinguish."""
CONTROL = "#888888"
DARK = "#333333"
PALE = "#bbbbbb"
STRIPE = "#f4f4f4"
MARKS: dict[Standing, dict[str, Any]] = {
    Standing.BEST: {"marker": "o", "color": COLOURS[0], "markerfacecolor": COLOURS[0], "markersize": 5.5},
    Standing.OTHER: {"marker": "o", "color": DARK, "markerfacecolor": "white", "markersize": 5},
    Standing.CONTROL: {"marker": "D", "color": CONTROL, "markerfacecolor": CONTROL, "markersize": 4},
}
"""The marker of an encoder says by shape, fill and colour what is known of it; its name is written beside it."""

Write = Callable[[str], str]
"""From a name to the text for matplotlib: without formulas, and with a replacement for characters that no font has."""


def names_shown(summary: Summary) -> list[str]:
    """Return the names that the figures of a summary show."""
    return [*summary.columns, *(row.encoder.display for row in summary.rows)]


def cover(texts: Sequence[str]) -> fonts.Cover:
    """Return the fonts that texts need besides matplotlib's default font, and the characters that no font has."""
    return fonts.cover(texts, font_manager.findfont(font_manager.FontProperties()))


FORMATS: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}}
"""The files of a figure, by ending, with the metadata that would differ between machines or days."""


def rendered(
    name: str, draw: Callable[[Write], Figure], texts: Sequence[str], kinds: Iterable[str] = FORMATS
) -> dict[str, bytes]:
    """Return a figure that shows `texts` as ``NAME.png`` and ``NAME.svg``, or as some of the two."""
    files = {}
    found = cover(texts)
    families = [*mpl.rcParams["font.family"], *(face.family for face in found.faces)]
    with mpl.rc_context(STYLE | ({"font.family": families} if found.faces else {})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the viewer of an SVG has its own fonts
        figure = draw(lambda text: plot(found.boxed(text)))
        for kind in kinds:
            if kind == "svg" and found.lacking:
                figure = draw(lambda text: plot("".join(map(_xml, text))))
            file = io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(file, format=kind, dpi=200, metadata=FORMATS[kind])
            figure.set_layout_engine("none")  # the second file has the layout of the first
            files[f"{name}.{kind}"] = file.getvalue()
    return files


def width_of(lines: Iterable[str], size: float) -> float:
    """Return the width in inches of the widest line at a font size in points."""
    font = font_manager.FontProperties(size=size)
    renderer = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=72)).get_renderer()
    widths = [renderer.get_text_width_height_descent(line, font, False)[0] for line in lines]
    return max(widths, default=0.0) / 72


def wrapped(text: str, write: Write, *, inches: float, size: float) -> str:
    """Return a text for matplotlib in lines of at most `inches`, broken at spaces where possible."""
    if width_of([write(text)], size) <= inches:
        return write(text)
    pieces = re.findall(r"\s*\S+\s*", text)
    pieces = [part for one in pieces for part in ([one] if width_of([write(one)], size) <= inches else one)]
    lines = [""]
    for piece in pieces:
        if lines[-1] and width_of([write((lines[-1] + piece).rstrip())], size) > inches:
            lines.append("")
        lines[-1] += piece
    return "\n".join(write(line.rstrip()) for line in lines)


def explain_marks(figure: Figure, rows: Iterable[FigureRow]) -> None:
    """Write above a figure what its markers mean; only those that occur."""
    there = {row.standing for row in rows}
    texts = {standing: standing.value for standing in Standing if standing in there}
    if Standing.BEST not in there and Standing.OTHER in there:
        texts[Standing.OTHER] = "encoder"
    handles = [Line2D([], [], linestyle="none", label=text, **MARKS[standing]) for standing, text in texts.items()]
    if len(handles) > 1:
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, handletextpad=0.2,
            columnspacing=1.5,
        )  # fmt: skip


def stripe(axes: Axes, places: npt.ArrayLike) -> None:
    """Shade every second row, so that the eye can follow it, and set the limits so that row 0 is at the top."""
    at = np.asarray(places, float)
    for y in at[1::2]:
        axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, linewidth=0, zorder=0)
    axes.set_ylim(at[-1] + 0.6, at[0] - 0.6)


def name_rows(axes: Axes, places: npt.ArrayLike, rows: Sequence[FigureRow], write: Write) -> None:
    """Write the names of rows on the y axis; controls in grey."""
    axes.set_yticks(np.asarray(places), [write(row.display) for row in rows])
    axes.tick_params(axis="y", length=0)
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color("#666666" if row.standing is Standing.CONTROL else "black")


def _xml(sign: str) -> str:
    """Return a character, or its code point when XML cannot hold it or it would break a line."""
    return f"[U+{ord(sign):04X}]" if unicodedata.category(sign) in ("Cc", "Cs") or sign in "\ufffe\uffff" else sign
