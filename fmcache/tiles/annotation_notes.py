"""Messages on annotations: counts of classes, unknown classes, and what was left out or repaired."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fmcache.errors import TileError
from fmcache.quoting import NO_CLASS, SIGNS, quoted
from fmcache.tiles.classes import ANNOTATION, CLASS, Selection, described, other_properties
from fmcache.tiles.geojson import read_features

REPAIRED, SKIPPED, PLANE = "repaired", "skipped: ", "plane: "
"""Keys of notes on reading; the last two are prefixes of keys."""

BEYOND, CORNER = "beyond", "corner"
"""Keys of notes on regions: regions that reach beyond their image, and images with all regions in one corner."""


def sentences(notes: Mapping[str, int]) -> list[str]:
    """Return sentences on what was left out or repaired while annotations were read."""
    lines = []
    if repaired := notes.get(REPAIRED, 0):
        lines.append(f"{repaired} regions whose outline crossed itself were repaired")
    lines += [
        f"{n} regions lie on plane {key.removeprefix(PLANE)} of a stack: images must show that plane"
        for key, n in notes.items()
        if key.startswith(PLANE)
    ]
    if skipped := {key.removeprefix(SKIPPED): n for key, n in notes.items() if key.startswith(SKIPPED)}:
        lines.append(f"features skipped, as if not drawn: {_numbered(skipped)}")
    if beyond := notes.get(BEYOND, 0):
        lines.append(
            f"{beyond} regions reach beyond their image: check that their unit is pixels of this image, not of another "
            "level"
        )
    known = (REPAIRED, BEYOND, CORNER)
    if rest := {k: n for k, n in notes.items() if k not in known and not k.startswith((PLANE, SKIPPED))}:
        lines.append(f"features left out: {_numbered(rest)}")
    return lines


def listed(counts: Mapping[str, int]) -> str:
    """Return names of classes, quoted as for flags, with counts; the most frequent first."""
    return _numbered({quoted(name): n for name, n in counts.items()})


def unused_classes(
    named: Mapping[str, Collection[str]], classes: Collection[str], notes: Mapping[str, int]
) -> list[str]:
    """Return a line on classes that flags name but no region has; the usual cause is a typing error.

    Parameters
    ----------
    named
        Classes by the flag that names them.
    classes, notes
        Classes of the regions that were read, and notes on reading.
    """
    seen = {*map(quoted, classes), *(key.removeprefix(SKIPPED) for key in notes if key.startswith(SKIPPED))}
    unused = [f"{quoted(name)} ({flag})" for flag, names in named.items() for name in names if quoted(name) not in seen]
    return [f"no region is of class {', '.join(unused)}: check the spelling"] if unused else []


def refuse_unknown_classes(
    counts: Mapping[tuple[str, str], int],
    known: Collection[str],
    where: str,
    files: Sequence[Path],
    selection: Selection,
) -> None:
    """Refuse classes that no label has; the error names those of all files, so that one correction is enough.

    Parameters
    ----------
    counts
        Regions by class and kind of object.
    known
        Classes that have a label or are ignored.
    where, files
        The beginning of the message, and the files, which are searched again for other properties.

    Raises
    ------
    TileError
        When there are such classes. The message lists them with their counts; when no feature has a class, it lists the
        properties of the features.
    """
    by_class: Counter[str] = Counter()
    for (name, _), n in counts.items():
        by_class[name] += n
    unknown = {name: n for name, n in by_class.items() if name not in known}
    if not unknown:
        return
    if by_class.keys() == {""}:
        _refuse_no_classes(where, files, selection)
    kinds: Counter[str] = Counter()
    for (name, kind), n in counts.items():
        if name in unknown and kind != ANNOTATION and not selection.objects:
            kinds[kind] += n
    hint = _misspelt(unknown, known)
    if kinds:
        hint += f"leave out objects that are not annotations, {_numbered(kinds)}, with --objects annotation; or "
    raise TileError(
        f"{where}annotations of classes that no label has: {listed(unknown)}",
        expected=", ".join(quoted(name) for name in [*known, *sorted(selection.skip)]),
        found=listed(by_class),
        next_step=f"{hint}add them to a label in --labels, to --ignore (their pixels are not scored) or to --skip (as "
        f"if not drawn), such as --skip {shlex.quote(quoted(next(iter(unknown))))}; in a manifest these are values, "
        f"ignore_values and skip, where '' is {NO_CLASS}",
    )


def _misspelt(unknown: Collection[str], known: Collection[str]) -> str:
    """Return a hint on classes similar to known ones: spelt differently, or split at a comma in their name."""
    alike = {_plain(name): name for name in known}
    for name in unknown:
        if twin := alike.get(_plain(name)):
            both = f"{quoted(twin)}|{quoted(name)}"
            return (
                f"{quoted(name)} differs from {quoted(twin)} only in case, spaces or accents: give one label both, as "
                f"{both}; or "
            )
        if {part.strip() for part in re.split(f"[{SIGNS}]", name)} & set(known) and quoted(name) != name:
            return (
                f"put a name that contains {' '.join(SIGNS)} into double quotes: --labels 'LABEL={quoted(name)},...'; "
                "or "
            )
    return ""


def _plain(name: str) -> str:
    """Return a name in normal form for comparison: without case and accents, with single spaces."""
    apart = unicodedata.normalize("NFKD", name).casefold()
    return " ".join("".join(sign for sign in apart if not unicodedata.combining(sign)).split())


def _refuse_no_classes(where: str, files: Sequence[Path], selection: Selection) -> None:
    """Refuse regions if none has a class at the expected property, but their features have other properties."""
    features = (feature for file in files for feature in read_features(file))
    if others := other_properties(features, selection.class_property):
        raise TileError(
            f"{where}no feature has properties.{selection.class_property or CLASS}"
            + ("" if selection.class_property else ", where QuPath writes the class"),
            found=f"properties (with some values): {described(others)}",
            next_step="name the property that holds the class: --class-property "
            f"{shlex.quote(quoted(next(iter(others))))}; or, for regions without a class, --skip or --ignore "
            "'(no class)', or a label: --labels 'tissue=(no class),...'",
        )


def _numbered(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{text} ({n})" for text, n in sorted(counts.items(), key=lambda item: -item[1]))
