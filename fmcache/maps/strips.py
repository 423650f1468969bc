"""Bands of any height -> strips of fixed height, so that files do not depend on how a map was computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fmcache.maps.contract import GLASS, STRIP_PX, Band, MapGeometry, Pixels, parts

ROWS = {"labels": 0, "probability": 1, "disagreement": 0, "picture": 0}
"""The axis of rows in each part of a band."""


class Strips:
    """Collects the bands of one map; keeps at most one strip."""

    def __init__(self, geometry: MapGeometry) -> None:
        self._geometry = geometry
        self._next = 0
        self._names: set[str] = set()
        self._kept: dict[str, Pixels] = {}

    def add(self, band: Band) -> Iterator[Band]:
        """Yield the strips that a band completes.

        Their arrays are valid only until the next strip.

        Raises
        ------
        ValueError
            When the band does not follow the one before, has another shape or dtype than the map, has other parts than
            the first band, or holds the id of no label.
        """
        self._check(band)
        given, rows, at = parts(band), len(band.labels), 0
        while at < rows:
            used = self._next % STRIP_PX
            count = min(STRIP_PX - used, rows - at)
            for name, pixels in given.items():
                kept = self._kept.setdefault(name, self._empty(name, pixels))
                _rows(kept, name, used, count)[...] = _rows(pixels, name, at, count)
            at += count
            self._next += count
            if self._next % STRIP_PX == 0 or self._next == self._geometry.height:
                yield self._strip(used + count)

    def finish(self) -> None:
        """Raise ValueError when bands are missing."""
        if self._next != self._geometry.height:
            raise ValueError(f"the map has {self._geometry.height} rows, and its bands end at row {self._next}")

    def _strip(self, rows: int) -> Band:
        whole = {name: _rows(pixels, name, 0, rows) for name, pixels in self._kept.items()}
        return Band(self._next - rows, **whole)

    def _empty(self, name: str, pixels: Pixels) -> Pixels:
        shape = list(pixels.shape)
        shape[ROWS[name]] = min(STRIP_PX, self._geometry.height)
        return np.empty(shape, np.uint8)

    def _check(self, band: Band) -> None:
        geometry, given = self._geometry, parts(band)
        rows = band.labels.shape[0]
        if band.top != self._next or band.top + rows > geometry.height:
            raise ValueError(f"a band of {rows} rows at row {band.top}: expected row {self._next} of {geometry.height}")
        self._names = self._names or set(given)
        if set(given) != self._names:
            raise ValueError(f"a band with {sorted(given)}: the first band has {sorted(self._names)}")
        expected = {
            "labels": (rows, geometry.width),
            "probability": (len(geometry.labels), rows, geometry.width),
            "disagreement": (rows, geometry.width),
            "picture": (rows, geometry.width, 3),
        }
        for name, pixels in given.items():
            if pixels.shape != expected[name] or pixels.dtype != np.uint8:
                raise ValueError(
                    f"{name} of a band: expected uint8 {expected[name]}, found {pixels.dtype} {pixels.shape}"
                )
        if ((band.labels >= len(geometry.labels)) & (band.labels != GLASS)).any():
            raise ValueError(f"a band holds other ids than those of {len(geometry.labels)} labels and {GLASS}")


def _rows(pixels: Pixels, name: str, top: int, count: int) -> Pixels:
    return pixels[:, top : top + count] if ROWS[name] else pixels[top : top + count]
