"""The pictures that compare encoders as one figure for a paper: a row for each tile, a column for each encoder."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from fmcache.report.figure_style import Write, rendered
from fmcache.report.picture_rows import Picture, PictureRows

PANEL, GAP, HEAD, FOOT, LEGEND = 1.15, 0.06, 0.38, 0.16, 0.3
"""Sizes in inches: the side of a picture, the space beside it, above it and below it, and the height of the legend."""

NAME_PT, SMALL_PT, LEAST_PT = 7.0, 6.0, 4.0
LONGEST_NAME = 15
"""Longer names are written in smaller letters, so that they do not reach the next column."""


def picture_file(rows: PictureRows) -> dict[str, bytes]:
    """Return the figure as ``pictures.png``; nothing where no tile is compared."""
    if not rows.compared:
        return {}
    return rendered("pictures", lambda write: picture_sheet(rows, write), names_in(rows), ["png"])


def picture_sheet(rows: PictureRows, write: Write) -> Figure:
    """Return the figure of `rows.compared`, which must not be empty: tile, truth and predictions, with a legend."""
    columns = max(len(row.pictures) for row in rows.compared)
    band = PANEL + HEAD + FOOT
    width, height = (PANEL + GAP) * columns, band * len(rows.compared) + LEGEND
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")  # all pictures are squares of one size
    for i, row in enumerate(rows.compared):
        bottom = height - (i + 1) * band + FOOT
        for column, picture in enumerate(row.pictures):
            left = (PANEL + GAP) * column + GAP / 2
            box = (left / width, bottom / height, PANEL / width, PANEL / height)
            _draw(figure.add_axes(box), picture, write)
        heading = (GAP / 2 / width, (bottom + PANEL + 0.2) / height)
        figure.text(*heading, write(row.title), fontsize=NAME_PT, fontweight="bold", va="bottom")
    patches = [Patch(facecolor=colour, edgecolor="#555555", label=write(label)) for label, colour in rows.legend]
    figure.legend(handles=patches, loc="lower left", ncols=len(patches), frameon=False, fontsize=NAME_PT)
    return figure


def names_in(rows: PictureRows) -> list[str]:
    """Return the texts that the figure shows."""
    shown = [text for row in rows.compared for one in row.pictures for text in (one.name, one.about)]
    return [*shown, *(row.title for row in rows.compared), *(label for label, _ in rows.legend)]


def _draw(axes: Axes, picture: Picture, write: Write) -> None:
    axes.set_axis_off()
    axes.imshow(np.asarray(Image.open(io.BytesIO(picture.file)).convert("RGB")), interpolation="none", aspect="auto")
    size = NAME_PT * min(1.0, LONGEST_NAME / len(picture.name))
    axes.set_title(write(picture.name), fontsize=max(LEAST_PT, size), pad=2)
    axes.text(0, -0.03, write(picture.about), transform=axes.transAxes, fontsize=SMALL_PT, va="top", color="#333333")
