"""NAME.overview.png: the slide with the labels over it, a legend and a scale bar; built up while the map arrives."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fmcache.maps.contract import GLASS, Band, MapGeometry, MapOutput, Pixels, one_line
from fmcache.tiles.lettering import Lettering
from fmcache.tiles.sheet import overlay

SIDE_PX = 2000
"""The longer side of the picture is at most this."""

TEXT_PX, LINE_PX, GAP = 20, 32, 16
NARROWEST_PX = 480
BAR_SHARE = 0.25
BARS_UM = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
NAME_SIGNS = 60
"""Longer names are shortened in the legend."""


class Overview(MapOutput):
    """Reduces map and slide by a whole number: labels to the middle px of each square, the slide to its mean."""

    def __init__(self, geometry: MapGeometry, file: IO[bytes]) -> None:
        self._geometry, self._file = geometry, file
        self._factor = max(1, ceil(max(geometry.height, geometry.width) / SIDE_PX))
        shape = (ceil(geometry.height / self._factor), ceil(geometry.width / self._factor))
        self._labels = np.full(shape, GLASS, np.uint8)
        self._sums: npt.NDArray[np.uint32] | None = None

    def add(self, strip: Band) -> None:
        rows = self._middles(len(self._labels), self._geometry.height)
        columns = self._middles(self._labels.shape[1], self._geometry.width)
        here = (rows >= strip.top) & (rows < strip.top + len(strip.labels))
        self._labels[here] = strip.labels[np.ix_(rows[here] - strip.top, columns)]
        if strip.picture is not None:
            self._add_picture(strip.picture, strip.top)

    def finish(self) -> None:
        picture = self._picture()
        tinted = overlay(picture, self._labels, self._geometry.labels)
        glass = self._labels == GLASS
        tinted[glass] = picture[glass]
        self._with_legend(Image.fromarray(tinted)).save(self._file, "PNG")

    def _middles(self, count: int, end: int) -> npt.NDArray[np.intp]:
        return np.minimum(np.arange(count) * self._factor + self._factor // 2, end - 1)

    def _add_picture(self, picture: Pixels, top: int) -> None:
        if self._sums is None:
            self._sums = np.zeros((*self._labels.shape, 3), np.uint32)
        row_of = np.arange(top, top + len(picture)) // self._factor
        starts = np.flatnonzero(np.diff(row_of, prepend=-1))
        sums = np.add.reduceat(picture, starts, axis=0, dtype=np.uint32)
        columns = np.arange(0, picture.shape[1], self._factor)
        self._sums[row_of[starts]] += np.add.reduceat(sums, columns, axis=1)

    def _picture(self) -> Pixels:
        if self._sums is None:
            return np.full((*self._labels.shape, 3), 255, np.uint8)
        sides = zip(self._labels.shape, (self._geometry.height, self._geometry.width), strict=True)
        rows, columns = (np.diff(np.minimum(np.arange(n + 1) * self._factor, end)) for n, end in sides)
        mean = np.rint(self._sums / (rows[:, None] * columns)[..., None])
        return np.asarray(mean, dtype=np.uint8)

    def _with_legend(self, picture: Image.Image) -> Image.Image:
        """Return the picture above a scale bar and the names of labels with their colours."""
        labels = [(_shown(label.name), label.colour) for label in self._geometry.labels]
        bar_um, bar_px = scale_bar(self._geometry.mpp * self._factor, BAR_SHARE * max(picture.width, NARROWEST_PX))
        length = f"{bar_um // 1000} mm" if bar_um >= 1000 else f"{bar_um} um"
        pen = Lettering([length, *(name for name, _ in labels)], TEXT_PX)
        widths = [ceil(LINE_PX + pen.length(name)) for name, _ in labels]
        width = max(picture.width, NARROWEST_PX, 2 * GAP + max(widths), ceil(3 * GAP + bar_px + pen.length(length)))
        places = _flow(widths, width)
        sheet = Image.new("RGB", (width, picture.height + 2 * GAP + LINE_PX * (2 + places[-1][1])), "white")
        sheet.paste(picture)
        draw = ImageDraw.Draw(sheet)
        top = picture.height + GAP
        draw.rectangle((GAP, top + LINE_PX // 3, GAP + round(bar_px), top + LINE_PX // 2), fill="black")
        pen.write(draw, 2 * GAP + bar_px, top, length)
        for (name, colour), (left, line) in zip(labels, places, strict=True):
            y = top + LINE_PX * (1 + line)
            draw.rectangle((left, y + 2, left + TEXT_PX, y + 2 + TEXT_PX), fill=colour)
            pen.write(draw, left + LINE_PX - 4, y, name)
        return sheet


def scale_bar(mpp: float, most_px: float) -> tuple[int, float]:
    """Return the longest bar of 1, 2 or 5 times a power of ten um that fits, and its length in px."""
    um = max((bar for bar in BARS_UM if bar / mpp <= most_px), default=BARS_UM[0])
    return um, um / mpp


def _flow(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Return x and line of each key; a line that is full is followed by another."""
    places, x, line = [], GAP, 0
    for one in widths:
        if x > GAP and x + one + GAP > width:
            x, line = GAP, line + 1
        places.append((x, line))
        x += one + 2 * GAP
    return places


def _shown(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= NAME_SIGNS else name[: NAME_SIGNS - 1] + "…"
