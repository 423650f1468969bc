"""Read the properties of a GeoJSON feature: its class, its kind of object, and the names of all properties."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from fmcache.errors import SpecError
from fmcache.manifest import GeojsonDataset
from fmcache.quoting import alternatives, quoted

CLASS = "classification"
OLD_CLASS = "pathClass"  # QuPath's internal name for the class, which scripts write
ANNOTATION = "annotation"
KINDS = (ANNOTATION, "detection", "cell", "tile", "tma_core", "root")
# before QuPath had objectType, it wrote the kind as the id
_KIND_OF_ID = {
    f"Path{name}Object": kind
    for name, kind in [
        ("Annotation", ANNOTATION),
        ("Detection", "detection"),
        ("Cell", "cell"),
        ("Tile", "tile"),
        ("Root", "root"),
    ]
} | {"TMACoreObject": "tma_core"}
_LITERAL = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|\b(?:None|True|False)\b""", re.DOTALL)
_CONSTANT = {"None": "null", "True": "true", "False": "false"}
USUAL = ("type", "label", "class", "class_name", "category", "structure", "name")
"""Properties in which other tools write the class, the most likely first."""

QUPATH = {"objectType", "object_type", "isLocked", "is_locked", "color", "colorRGB", "measurements"}
"""Properties of QuPath that are never the class."""

SHOWN = 3


class Selection(NamedTuple):
    """Which features are regions, and which property holds their class.

    Features of the classes `skip` count as not drawn. If `objects` is not empty, features of other kinds also count as
    not drawn. `class_property` is the property that names the class; empty means the property that QuPath writes.
    """

    skip: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    class_property: str = ""

    @classmethod
    def of(cls, dataset: GeojsonDataset) -> Selection:
        """Return the selection that the manifest defines for a dataset."""
        return cls(frozenset(dataset.skip), frozenset(dataset.objects), dataset.class_property)

    def leaves_out(self, name: str, kind: str) -> str:
        """Return the reason why a feature is left out, as text for the notes; empty when it is not left out."""
        if self.objects and kind not in self.objects:
            return f"{quoted(kind)} objects"
        return f"{quoted(name)}" if name in self.skip else ""


EVERYTHING = Selection()


def parse_objects(text: str) -> tuple[str, ...]:
    """Return the kinds of objects that `--objects` names; none for an empty text.

    Raises
    ------
    SpecError
        When QuPath has no such kind.
    """
    kinds = tuple(word.text for word in alternatives(text, "--objects"))
    if odd := [kind for kind in kinds if kind not in KINDS]:
        raise SpecError(
            f"--objects {text!r}: {', '.join(odd)} is not a kind of object",
            expected="|".join(KINDS),
            next_step="name one or several of these kinds",
        )
    return kinds


def parse_property(text: str) -> str:
    """Return the name of the property that `--class-property` names.

    Raises
    ------
    SpecError
        When the text is not one name.
    """
    words = alternatives(text, "--class-property")
    if len(words) > 1:
        raise SpecError(
            f"--class-property {text!r}", expected="one property of the features", next_step="name one property"
        )
    return words[0].text if words else ""


def class_name(properties: dict[str, Any], class_property: str = "") -> str:
    """Return the name of a feature's class, empty when it has none; never its colour.

    It is read from `class_property`, or by default from QuPath's ``classification``. The value is a name, ``{name}``,
    ``{names}`` of a derived class such as ``Tumor: Positive``, or one of these as text, as GeoPandas writes it.

    Raises
    ------
    TypeError, ValueError
        When the feature has a class but no name can be read from it.
    """
    keys = [class_property] if class_property else [CLASS, OLD_CLASS]
    found: Any = next((properties[key] for key in keys if properties.get(key) not in (None, "", {})), "")
    if isinstance(found, str) and found.lstrip().startswith("{"):
        found = _dictionary(found, keys[0])
    if isinstance(found, dict):
        if found and not found.keys() & {"name", "names"}:
            raise ValueError(f"{keys[0]} has no name, only {', '.join(map(str, found))}"[:150])
        found = found.get("name") or ": ".join(found.get("names") or ())
    if class_property and isinstance(found, int | float):
        found = f"{found:.0f}" if found == found // 1 else "" if found != found else found  # tables hold 3.0 and NaN
    if not isinstance(found, str):
        way = f"; --class-property {keys[0]} reads it" if isinstance(found, int | float) else ""
        raise TypeError(f"the class name is {found!r}, not text{way}")
    found.encode()  # raises for half of a surrogate pair, which can be neither shown nor typed
    return found


def object_kind(feature: dict[str, Any]) -> str:
    """Return a feature's kind of object in QuPath; an annotation when the feature states no kind."""
    properties = feature.get("properties") or {}
    kind = properties.get("objectType") or properties.get("object_type")
    if isinstance(kind, str):
        return _KIND_OF_ID.get(kind, kind.lower())
    return _KIND_OF_ID.get(str(feature.get("id")), ANNOTATION)


def other_properties(features: Iterable[dict[str, Any]], class_property: str) -> dict[str, list[str]] | None:
    """Return the properties of features with some of their values, the most likely first; None if any has a class."""
    keys = {class_property} if class_property else {CLASS, OLD_CLASS}
    seen: dict[str, list[str]] = {}
    for feature in features:
        properties = feature.get("properties") or {}
        if any(properties.get(key) is not None for key in keys):
            return None
        for key, value in ((key, value) for key, value in properties.items() if key not in QUPATH):
            values = seen.setdefault(key, [])
            if isinstance(value, str | int) and len(values) < SHOWN and (shown := str(value)[:40]) not in values:
                values.append(shown)
    likely = sorted(seen, key=lambda key: USUAL.index(key.lower()) if key.lower() in USUAL else len(USUAL))
    return {key: seen[key] for key in likely if seen[key]}


def described(properties: dict[str, list[str]]) -> str:
    """Return properties with some of their values, for a message."""
    return "; ".join(
        f"{quoted(key)} ({', '.join(quoted(value) for value in values)})" for key, values in properties.items()
    )


def _dictionary(text: str, key: str) -> dict[str, Any]:
    """Return a dictionary from text, written as JSON or as Python prints it."""
    for written in (text, _LITERAL.sub(_as_json, text)):
        try:
            found = json.loads(written)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise ValueError(f"{key} is text that looks like a dictionary but is not one: {text!r}"[:150])


def _as_json(found: re.Match[str]) -> str:
    single, double = found.groups()
    if single is None and double is None:
        return _CONSTANT[found[0]]
    # only Python escapes single quotes; all other backslash escapes are the same in both
    return '"' + re.sub(r"\\'", "'", single).replace('"', '\\"') + '"' if double is None else found[0]
