"""NAME.areas.csv: area of each label in mm2, its share of what was predicted, and its pixels; glass in a row below."""

from __future__ import annotations

import csv
from io import StringIO
from typing import IO

import numpy as np

from fmcache.maps.contract import GLASS, Band, MapGeometry, MapOutput, one_line

COLUMNS = ("map", "id", "label", "pixels", "mm2", "share")
NOT_PREDICTED = "(not predicted)"
_FORMULA = ("=", "+", "-", "@")
"""Spreadsheets read cells that start with one of these as formulas (OWASP, "CSV injection")."""


def cell(text: str) -> str:
    """Return a text on one line that spreadsheets do not compute: with a quote before the sign of a formula."""
    text = one_line(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


class Areas(MapOutput):
    """Counts the pixels of labels and writes them as CSV."""

    def __init__(self, geometry: MapGeometry, file: IO[bytes]) -> None:
        self._geometry, self._file = geometry, file
        self._counts = np.zeros(len(geometry.labels) + 1, np.int64)

    @property
    def px(self) -> tuple[int, ...]:
        """Pixels by label."""
        return tuple(self._counts[:-1].tolist())

    @property
    def glass_px(self) -> int:
        """Pixels that were not predicted."""
        return int(self._counts[-1])

    def add(self, strip: Band) -> None:
        for i, label in enumerate((*range(len(self._geometry.labels)), GLASS)):
            self._counts[i] += np.count_nonzero(strip.labels == label)

    def finish(self) -> None:
        table = StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        name, predicted = cell(self._geometry.name), sum(self.px)
        for i, (label, px) in enumerate(zip(self._geometry.labels, self.px, strict=True)):
            share = f"{px / predicted:.6f}" if predicted else ""
            writer.writerow((name, i, cell(label.name), px, self._mm2(px), share))
        writer.writerow((name, GLASS, NOT_PREDICTED, self.glass_px, self._mm2(self.glass_px), ""))
        self._file.write(table.getvalue().encode())

    def _mm2(self, px: int) -> str:
        return f"{px * self._geometry.mpp**2 / 1e6:.6f}"
