"""A file of annotations -> its GeoJSON features. Files may be compressed, in any Unicode encoding, and contain NaN.

Formats of other tools in files of the same endings are refused; the error names the format and how to convert it.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

import msgspec

from fmcache.errors import TileError

ENDINGS = (".geojson", ".json", ".geojson.gz", ".json.gz")
EXPORT = "export the annotations as GeoJSON (in QuPath: File > Export objects as GeoJSON)"
FEATURE = (
    '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[x, y], ...]]}, '
    '"properties": {"classification": {"name": "Tumor"}}}'
)
COLLECTION = "a FeatureCollection, a list of features or one feature"
# limits against decompression bombs: annotations compress about 10-fold, a file of zeros 1000-fold
MOST_TIMES, ALWAYS_BYTES = 100, 2**26
LFS = b"version https://git-lfs"
SHAPES = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection")
AS_RINGS = (
    "write each {one} as the ring of a feature (a hole as another ring), in pixels of the image, with its class in "
    "properties.classification.name"
)
XML_HEAD = 4096
XML = (
    ("<ASAP_Annotations", "ASAP XML", AS_RINGS.format(one="Annotation's Coordinate X, Y") + " (that of PartOfGroup)"),
    ("<V X=", "HALO XML", AS_RINGS.format(one="Region's V X, Y") + " (the Name of its Annotation)"),
    ("<version>", "CVAT XML", AS_RINGS.format(one="polygon's points") + " (its label); one file per image"),
    (
        "<Annotations",
        "Aperio ImageScope XML",
        'pip install wsi-annotations-kit; python -c "from wsi_annotations_kit.wsi_annotations_kit import Converter; '
        "Converter('a.xml', {'Tumor': 1}).geojson_save('a.geojson')\" with the Id of each Annotation, then "
        "--class-property structure (the tool rounds to pixels and fills holes, Regions of NegativeROA=1); or "
        + AS_RINGS.format(one="Region's Vertex X, Y"),
    ),
    ("<html", "a web page", "download the file itself: this is the page that shows or denies it"),
    ("<!DOCTYPE html", "a web page", "download the file itself: this is the page that shows or denies it"),
    ("<", "XML", EXPORT),
)


def read_features(path: Path) -> list[dict[str, Any]]:
    """Return the features of a GeoJSON file, each with a ``geometry``: of a FeatureCollection, a list, or one feature.

    Raises
    ------
    TileError
        When the file cannot be read, is not GeoJSON, or is not in a Unicode encoding. The error names other known
        formats.
    """
    document = _document(path, _text(path, _unpacked(path)))
    features = document
    if isinstance(document, dict):
        features = document.get("features") if document.get("type") == "FeatureCollection" else [document]
    if isinstance(features, list) and all(isinstance(f, dict) and "geometry" in f for f in features):
        return features
    kind, next_step = _kind(document)
    raise TileError(
        f"{path} holds no GeoJSON features" + (f": it is {kind}" if kind else ""),
        expected=f"{COLLECTION}: {FEATURE}",
        found=_odd(features),
        next_step=next_step,
    )


def xml_kind(text: str) -> tuple[str, str] | None:
    """Return the kind of an XML text and how to convert it to GeoJSON; None when it is not XML."""
    start_of = text.lstrip("\ufeff \t\r\n")[:XML_HEAD].lower()
    return next(((kind, way) for mark, kind, way in XML if start_of.startswith("<") and mark.lower() in start_of), None)


def _unpacked(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TileError(f"{path} does not exist", next_step="export the annotations as GeoJSON") from None
    except OSError as reason:
        raise TileError(f"{path} cannot be read", found=str(reason)[:200], next_step="pass a GeoJSON file") from None
    if data.startswith(LFS):
        raise TileError(f"{path} is a pointer of Git LFS, not the file itself", next_step="run git lfs pull")
    if data.startswith(b"PK\x03\x04"):
        raise TileError(f"{path} is a zip archive, not GeoJSON", next_step="unpack it and pass the files in it")
    if not data.startswith(b"\x1f\x8b"):
        return data
    most = max(ALWAYS_BYTES, MOST_TIMES * len(data))
    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as reason:
        raise TileError(
            f"{path} is compressed and damaged", found=str(reason)[:200], next_step="export or download it again"
        ) from None
    if len(unpacked) > most:
        raise TileError(
            f"{path} unpacks to more than {most / 2**20:.0f} MB",
            expected=f"at most {MOST_TIMES} times its {len(data)} bytes, as is usual for annotations",
            next_step="if this size is correct, unpack the file (gunzip) and pass the .geojson",
        )
    return unpacked


def _text(path: Path, data: bytes) -> str:
    encoding = json.detect_encoding(data)  # by the byte order mark, or by the positions of zero bytes
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as reason:
        near = data[max(reason.start - 20, 0) : reason.start + 20].decode("cp1252", errors="replace")
        raise TileError(
            f"{path} is not {encoding.upper().removesuffix('-SIG')} text",
            expected="UTF-8, or UTF-16 with a byte order mark",
            found=f"byte 0x{data[reason.start]:02x} at {reason.start}; as Windows text it reads {near!r}",
            next_step="save it as UTF-8 in a text editor (or iconv -f WINDOWS-1252 -t UTF-8), and check its letters",
        ) from None


def _document(path: Path, text: str) -> Any:
    if found := xml_kind(text):
        kind, next_step = found
        raise TileError(f"{path} is {kind}, not GeoJSON", expected=f"{COLLECTION}: {FEATURE}", next_step=next_step)
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise TileError(f"{path}: its JSON is nested too deeply", next_step=EXPORT) from None
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass  # NaN and Infinity are not valid JSON, but QuPath and Python write them in measurements
    try:
        return json.loads(text)
    except json.JSONDecodeError as reason:
        raise _not_json(path, text, reason) from None
    except (ValueError, RecursionError) as reason:
        raise TileError(
            f"{path} is not valid JSON", found=str(reason)[:200], next_step="export or download it again"
        ) from None


def _not_json(path: Path, text: str, reason: json.JSONDecodeError) -> TileError:
    """Return the error for text that is not JSON, with the text at the position where parsing stopped."""
    if not text.strip():
        return TileError(f"{path} is not valid JSON: it is an empty file", next_step=f"{EXPORT}, or download it again")
    sequence = text.startswith("\x1e")
    several = sequence or reason.msg == "Extra data"
    if several:
        join = "jq -s '[.[] | if .features then .features[] else . end]'"
        file = shlex.quote(str(path))
        join = f"tr -d '\\036' < {file} | {join}" if sequence else f"{join} {file}"
        return TileError(
            f"{path} holds several JSON documents, one after the other",
            expected=COLLECTION,
            found="a sequence of documents (RFC 8142)" if sequence else f"line {reason.lineno} begins another one",
            next_step="if they are the same, keep one of them; else make one list of their features: "
            f"{join} > ONE.geojson",
        )
    around = " ".join(text[max(reason.pos - 30, 0) : reason.pos + 10].split())
    comma = re.search(r",\s*$", text[: reason.pos]) and text[reason.pos : reason.pos + 1] in ("]", "}")
    return TileError(
        f"{path} is not valid JSON",
        found=f"{reason.msg}, line {reason.lineno}, column {reason.colno}: {around!r}",
        next_step="remove the comma before the bracket" if comma else "export or download it again",
    )


def _odd(features: Any) -> str:
    """Return a description of the first item in a list that is not a feature; empty when there is nothing to say."""
    if isinstance(features, list) and not all(isinstance(f, dict) for f in features[:1]):
        return ""
    if not isinstance(features, list) or not features:
        return ""
    if len(features) == 1:
        return f"an object with {', '.join(map(str, features[0]))}"[:200] if features[0] else "an empty object"
    i, odd = next((i, f) for i, f in enumerate(features) if not isinstance(f, dict) or "geometry" not in f)
    return f"number {i} of {len(features)} has no geometry: {repr(odd)[:80]}"


def _kind(document: Any) -> tuple[str, str]:
    """Return the kind of a document without features (empty if unknown), and how to convert it to GeoJSON."""
    if isinstance(document, list):
        if any(isinstance(item, dict) and item.keys() & {"annotations", "label"} for item in document):
            percent = " (its polygonlabels); in Label Studio, points are in percent of width and height"
            return "Label Studio JSON", AS_RINGS.format(one="polygon's points") + percent
        numbers = document and all(isinstance(item, int | float | list) for item in document)
        return ("a plain list of numbers" if numbers else ""), (AS_RINGS.format(one="outline") if numbers else EXPORT)
    if not isinstance(document, dict):
        return "null" if document is None else f"a single {type(document).__name__}", EXPORT
    kind, keys = document.get("type"), document.keys()
    if kind == "Topology":
        return "TopoJSON", "convert it: mapshaper FILE -o format=geojson"
    if "collection" in keys:
        return "JSON of Cytomine", AS_RINGS.format(one="location (WKT)") + "; in Cytomine, y starts at the lower edge"
    if keys >= {"images", "annotations"} or keys >= {"categories", "annotations"}:
        return "COCO JSON", AS_RINGS.format(one="annotation's segmentation") + "; one file per image"
    if isinstance(document.get("shapes"), list):
        return "LabelMe JSON", AS_RINGS.format(one="shape's points") + " (its label)"
    if "_via_img_metadata" in keys or any(isinstance(v, dict) and "regions" in v for v in document.values()):
        return "VIA JSON", AS_RINGS.format(one="region's all_points_x, all_points_y") + "; one file per image"
    if "elements" in keys or isinstance(document.get("annotation"), dict):
        return "an annotation of HistomicsTK", AS_RINGS.format(one="element's points")
    if isinstance(document.get("features"), list):
        esri = any(isinstance(f, dict) and "attributes" in f for f in document["features"])
        return ("Esri JSON", "convert it: ogr2ogr -f GeoJSON OUT FILE") if esri else ("", EXPORT)
    if kind in SHAPES:
        return f"a {kind} without a feature", "write it as the geometry of a feature that names its class"
    return "", EXPORT
