"""Features of GeoJSON -> regions with class names -> mask of label ids.

Polygons are stored with shapely and drawn with rasterio (GDAL), which supports holes and MultiPolygons. A pixel belongs
to a polygon when its centre does, so that neighbours with a common edge leave no gap and share no pixel. OpenCV and
Pillow also draw the outline, which would make every region half a pixel larger. GDAL is available as wheels for all
systems and Python versions of fmcache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from fmcache.errors import TileError
from fmcache.manifest import IGNORE
from fmcache.quoting import quoted
from fmcache.tiles.annotation_notes import PLANE, REPAIRED, SKIPPED, listed
from fmcache.tiles.classes import ANNOTATION, EVERYTHING, Selection, class_name, object_kind
from fmcache.tiles.geojson import SHAPES, read_features
from fmcache.tiles.unwarned import unwarned

FIRST_PLANE = "z 0, t 0"
FAR_PX = 1e9
# errors raised while a feature is parsed that is not valid GeoJSON
ODD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, ShapelyError)


class Annotation(NamedTuple):
    """A region: the name of its class (empty when it has none), its outline (a Polygon or MultiPolygon, (x, y)), and
    its kind of object in QuPath."""

    name: str
    geometry: BaseGeometry
    kind: str = ANNOTATION


class Mask(NamedTuple):
    """Label ids (y, x) uint8, and the share of pixels under two or more different labels."""

    mask: npt.NDArray[np.uint8]
    overlap: float


def read_annotations(
    path: Path, notes: Counter[str] | None = None, selection: Selection = EVERYTHING
) -> list[Annotation]:
    """Return the regions of a GeoJSON file in file order: a FeatureCollection, a list of features or one feature.

    Outlines that cross themselves are repaired. Features that are not regions (points, lines, empty outlines) are left
    out, and so are features excluded by `selection`. `notes`, when passed, counts what was left out or repaired;
    `fmcache.tiles.annotation_notes.sentences` turns it into text.

    Raises
    ------
    TileError
        When the file is not GeoJSON, a feature is not valid GeoJSON, or regions lie on several planes of a stack.

    References
    ----------
    RFC 7946, The GeoJSON Format; planes are read from ``geometry.plane``, where QuPath writes them.
    """
    notes = Counter() if notes is None else notes
    annotations = []
    planes: Counter[str] = Counter()
    for i, feature in enumerate(read_features(path)):
        try:
            name, kind = class_name(feature.get("properties") or {}, selection.class_property), object_kind(feature)
            if reason := selection.leaves_out(name, kind):
                notes[SKIPPED + reason] += 1
                continue
            parts = list(_polygons(feature["geometry"], notes))
            whole = _repaired(parts, notes) if parts else shapely.MultiPolygon()
            plane = _plane(feature)
        except ODD as why:
            raise TileError(
                f"{path}: feature {i} cannot be read",
                expected="a GeoJSON feature with a Polygon or MultiPolygon, as QuPath exports it",
                found=f"{type(why).__name__}: {why}"[:200],
                next_step="correct or delete it and export the annotations again, as GeoJSON",
            ) from None
        if not whole.is_empty:
            annotations.append(Annotation(name, whole, kind))
            planes[plane] += 1
    _refuse_planes(path, planes)
    notes.update({PLANE + plane: n for plane, n in planes.items() if plane != FIRST_PLANE})
    return annotations


def class_counts(annotations: Sequence[Annotation]) -> Counter[str]:
    """Return the number of regions by class name."""
    return Counter(annotation.name for annotation in annotations)


def rasterise(
    annotations: Sequence[Annotation],
    ids: Mapping[str, int],
    size_px: tuple[int, int],
    *,
    order: Sequence[str] = (),
    origin: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    fill: int = IGNORE,
) -> Mask:
    """Return the label of every pixel: the label of the last drawn region that contains the pixel's centre.

    Parameters
    ----------
    ids
        Label id by class name; 255 for a class whose pixels are ignored.
    size_px
        (width, height) of the mask; regions are cut off at its edges.
    order
        Class names from lowest to highest: later ones cover earlier ones. Empty: the order of the file.
    origin, scale
        (x, y) of the mask's upper left corner in the coordinates of the annotations, and the number of mask pixels per
        unit of these coordinates.
    fill
        Label id of pixels in no region, such as pixels in a hole with no other region below it.

    Raises
    ------
    TileError
        When `ids` or a given `order` lacks a class. The message lists all class names with their counts.
    """
    counts = class_counts(annotations)
    _refuse_unknown(counts, ids, "that no label has", "add them to a label's values, to ignore_values or to skip")
    if order:
        rank = {name: i for i, name in enumerate(order)}
        _refuse_unknown(
            counts, rank, "without a place in the order", f"add them to the order ({', '.join(map(quoted, order))})"
        )
        annotations = sorted(annotations, key=lambda a: rank[a.name])  # stable: file order within a class
    width, height = size_px
    window = shapely.box(*origin, origin[0] + width / scale, origin[1] + height / scale)
    shapes = [(a.geometry, ids[a.name]) for a in annotations if a.geometry.intersects(window)]
    place = Affine(1 / scale, 0.0, origin[0], 0.0, 1 / scale, origin[1])
    mask = _drawn(shapes, (height, width), place, fill)
    labels = {label for _, label in shapes}
    covered = np.zeros((height, width), dtype=np.uint8)
    for label in labels if len(labels) > 1 else ():
        covered += _drawn([(shape, 1) for shape, its_label in shapes if its_label == label], (height, width), place, 0)
    return Mask(mask, float((covered > 1).mean()) if covered.size else 0.0)


def _drawn(
    shapes: Sequence[tuple[BaseGeometry, int]], shape: tuple[int, int], place: Affine, fill: int
) -> npt.NDArray[np.uint8]:
    if not shapes:
        return np.full(shape, fill, dtype=np.uint8)
    with unwarned(NotGeoreferencedWarning):  # tiles have no geographic coordinates
        drawn = rasterize(shapes, out_shape=shape, transform=place, fill=fill, dtype="uint8")
    return np.asarray(drawn, dtype=np.uint8)


def _refuse_unknown(counts: Counter[str], known: Mapping[str, int], what: str, next_step: str) -> None:
    if unknown := {name: n for name, n in counts.items() if name not in known}:
        raise TileError(
            f"annotations of classes {what}: {listed(unknown)}",
            expected=", ".join(quoted(name) for name in known),
            found=listed(counts),
            next_step=next_step,
        )


def _refuse_planes(path: Path, planes: Mapping[str, int]) -> None:
    if len(planes) > 1:
        raise TileError(
            f"{path}: regions lie on several planes of a stack",
            expected="regions of one plane: the plane of the image",
            found="; ".join(f"{plane}: {n} regions" for plane, n in planes.items()),
            next_step="export one plane: in QuPath select its objects (Automate > Script editor: selectObjects "
            "{it.getROI().getZ() == 0 && it.getROI().getT() == 0}), then File > Export objects as GeoJSON, selected "
            "objects",
        )


def _plane(feature: dict[str, Any]) -> str:
    plane = (feature["geometry"] or {}).get("plane") or feature.get("plane") or {}
    z, t, c = (int(plane.get(axis) or 0) for axis in "ztc")
    return f"z {z}, t {t}" + (f", channel {c}" if c > 0 else "")  # -1: all channels


def _polygons(geometry: dict[str, Any] | None, notes: Counter[str]) -> Iterator[shapely.Polygon]:
    """Yield the polygons of a geometry, in two dimensions."""
    kind = (geometry or {}).get("type")
    if not geometry or not (geometry.get("coordinates") or geometry.get("geometries")):
        notes["empty"] += 1
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part, notes)
    elif kind in ("Polygon", "MultiPolygon"):
        _check_depth(kind, geometry["coordinates"])
        for rings in geometry["coordinates"] if kind == "MultiPolygon" else [geometry["coordinates"]]:
            outer, *holes = [_points(ring) for ring in rings] or [[]]
            if _encloses(outer):
                yield shapely.Polygon(outer, [hole for hole in holes if _encloses(hole)])
            else:
                notes["empty"] += 1
    elif kind in SHAPES:
        notes[f"no region ({kind})"] += 1
    else:
        raise ValueError(f"{kind!r} is not a type of geometry")


def _check_depth(kind: str, coordinates: Any) -> None:
    """Refuse coordinates with too many or too few brackets, with an error that names this cause."""
    depth, found = {"Polygon": 3, "MultiPolygon": 4}[kind], 0
    while isinstance(coordinates, list) and coordinates:
        coordinates, found = coordinates[0], found + 1
    if found != depth and isinstance(coordinates, int | float):
        raise ValueError(
            f"coordinates of a {kind} in {found} brackets, but GeoJSON needs {depth}: [[[x, y], ...]] is a ring"
        )


def _points(ring: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    points = [(float(x), float(y)) for x, y, *_ in ring]
    for x, y in points:
        if not (-FAR_PX < x < FAR_PX and -FAR_PX < y < FAR_PX):  # also true for NaN
            raise ValueError(f"coordinates ({x}, {y}) are not on any image")
    return points


def _encloses(ring: list[tuple[float, float]]) -> bool:
    return len(ring) - (len(ring) > 1 and ring[0] == ring[-1]) >= 3


def _repaired(parts: list[shapely.Polygon], notes: Counter[str]) -> BaseGeometry:
    whole: BaseGeometry = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    if shapely.is_valid(whole):
        return whole
    notes[REPAIRED] += 1
    # "structure" keeps the area inside any loop or part; the older method makes holes where two of them overlap
    repaired = shapely.make_valid(whole, method="structure", keep_collapsed=False)
    areas = [part for part in shapely.get_parts(repaired) if part.geom_type == "Polygon"]
    return areas[0] if len(areas) == 1 else shapely.MultiPolygon(areas)
