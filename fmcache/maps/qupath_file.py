"""NAME.geojson: the regions of a map as annotations of QuPath, written while the map arrives."""

from __future__ import annotations

import gzip
from typing import IO, Any

import msgspec
import numpy as np
import shapely

from fmcache.manifest import Label
from fmcache.maps.contract import GLASS, Band, MapGeometry, MapOptions, MapOutput, Specks, one_line
from fmcache.maps.joining import Joiner, Region
from fmcache.maps.polygons import Geometries, Polygons
from fmcache.maps.tiny_regions import without_specks
from fmcache.tiles.sheet import rgb

START, BETWEEN, END = b'{"type":"FeatureCollection","features":[\n', b",\n", b"\n]}\n"


class QupathFile(MapOutput):
    """Writes GeoJSON: a FeatureCollection in px of level 0, with at most one decimal.

    Regions are 4-connected; what reaches into several strips is one polygon, with its holes (unless it was cut, see
    `fmcache.maps.joining`). Specks are left out, and the holes they leave are filled. The layout is that of QuPath 0.5
    and later (https://qupath.readthedocs.io, "Exporting annotations").

    Attributes
    ----------
    regions
        Number of polygons written.
    specks
        Specks of each label, then of glass.
    """

    def __init__(self, geometry: MapGeometry, file: IO[bytes], options: MapOptions) -> None:
        self._geometry = geometry
        # without the time, so that the same map gives the same bytes
        self._file = gzip.GzipFile("", "wb", 6, file, mtime=0) if options.gzip else file
        self._least_px = options.least_um2 / geometry.mpp**2
        self._polygons = Polygons()
        self._joiner = Joiner(geometry.width)
        self._properties = [_properties(label) for label in geometry.labels]
        self._specks = np.zeros((len(geometry.labels) + 1, 2), np.int64)
        self.regions = 0
        self._file.write(START)

    @property
    def specks(self) -> tuple[Specks, ...]:
        return tuple(Specks(*row) for row in self._specks.tolist())

    def add(self, strip: Band) -> None:
        labels, specks = without_specks(strip.labels, len(self._geometry.labels), self._least_px)
        self._specks += np.array(specks)
        pieces = self._polygons.of(labels, strip.top)
        for region in self._joiner.add(pieces, strip.top, strip.top + len(labels)):
            self._write(region)

    def finish(self) -> None:
        for region in self._joiner.finish():
            self._write(region)
        self._file.write(END)
        if isinstance(self._file, gzip.GzipFile):
            self._file.close()  # writes its end; the file below it stays open

    def _write(self, region: Region) -> None:
        px = float(shapely.area(region.pieces).sum())
        if px < self._least_px and not region.is_cut:
            self._specks[region.label if region.label != GLASS else -1] += (1, round(px))
        elif region.label != GLASS and region.pieces:
            for polygon in self._at_level_0(region.polygons()):
                self._file.write(BETWEEN if self.regions else b"")
                self._file.write(_feature(polygon, self._properties[region.label]))
                self.regions += 1

    def _at_level_0(self, polygons: Geometries) -> Geometries:
        filled = np.array([_without_small_holes(polygon, self._least_px) for polygon in polygons])
        scaled = shapely.transform(filled, lambda xy: np.round(xy * self._geometry.scale, 1))
        wrong = ~shapely.is_valid(scaled)  # rounding can make lines touch that were less than 0.1 px apart
        if wrong.any():
            scaled[wrong] = shapely.set_precision(scaled[wrong], 0.1)
        parts = shapely.get_parts(scaled)
        return np.asarray([part for part in parts if part.geom_type == "Polygon" and not part.is_empty])


def _without_small_holes(polygon: Any, least_px: float) -> Any:
    holes = [ring for ring in polygon.interiors if shapely.area(shapely.Polygon(ring)) >= least_px]
    return shapely.Polygon(polygon.exterior, holes)


def _properties(label: Label) -> dict[str, Any]:
    """Return the properties of a feature. QuPath's names of classes are one line."""
    return {"objectType": "annotation", "classification": {"name": one_line(label.name), "color": rgb(label.colour)}}


def _feature(polygon: Any, properties: dict[str, Any]) -> bytes:
    rings = [_numbers(ring) for ring in (polygon.exterior, *polygon.interiors)]
    geometry = {"type": "Polygon", "coordinates": rings}
    return msgspec.json.encode({"type": "Feature", "geometry": geometry, "properties": properties})


def _numbers(ring: Any) -> list[list[int | float]]:
    """Return the coordinates of a ring; whole numbers are written without a decimal."""
    tenths = np.rint(10 * shapely.get_coordinates(ring)).astype(np.int64).tolist()
    return [[n / 10 if n % 10 else n // 10 for n in point] for point in tenths]
