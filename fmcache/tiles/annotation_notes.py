"""What annotations hold, in words: classes counted, those that no label has refused, what was left out or mended."""

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

MENDED, SKIPPED, PLANE = "mended", "skipped: ", "plane: "
"""What notes of reading count; the latter two are beginnings."""

BEYOND, CORNER = "beyond", "corner"
"""What notes count of regions on their image: those that reach beyond it, and images where all are in a corner."""


def told(notes: Mapping[str, int]) -> list[str]:
    """Return in words what reading annotations left out or mended."""
    lines = []
    if mended := notes.get(MENDED, 0):
        lines.append(f"{mended} regions whose outline crossed itself were mended")
    lines += [
        f"{n} regions lie on plane {key.removeprefix(PLANE)} of a stack: images must show that plane"
        for key, n in notes.items()
        if key.startswith(PLANE)
    ]
    if skipped := {key.removeprefix(SKIPPED): n for key, n in notes.items() if key.startswith(SKIPPED)}:
        lines.append(f"features skipped, as if not drawn: {_numbered(skipped)}")
    if beyond := notes.get(BEYOND, 0):
        lines.append(f"{beyond} regions reach beyond their image: are they in its pixels, not those of another level?")
    known = (MENDED, BEYOND, CORNER)
    if rest := {k: n for k, n in notes.items() if k not in known and not k.startswith((PLANE, SKIPPED))}:
        lines.append(f"features left out: {_numbered(rest)}")
    return lines


def listed(counts: Mapping[str, int]) -> str:
    """Return names of classes with counts for a message, as flags take them, most frequent first."""
    return _numbered({quoted(name): n for name, n in counts.items()})


def unused_classes(
    named: Mapping[str, Collection[str]], classes: Collection[str], notes: Mapping[str, int]
) -> list[str]:
    """Return a line on the classes that flags name and no region is of: most often they are mistyped.

    Parameters
    ----------
    named
        Classes by the flag that names them.
    classes, notes
        Classes of the regions that were read, and what notes of reading count.
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
    """Refuse classes that no label has, naming those of all files: a list that grows file by file helps nobody.

    Parameters
    ----------
    counts
        Regions by class and kind of object.
    known
        Classes that have a label or are ignored.
    where, files
        What the message begins with, and the files, looked at again for other properties.

    Raises
    ------
    TileError
        Listing the classes with their counts; when no feature tells its class, the properties that there are.
    """
    by_class: Counter[str] = Counter()
    for (name, _), n in counts.items():
        by_class[name] += n
    unknown = {name: n for name, n in by_class.items() if name not in known}
    if not unknown:
        return
    if by_class.keys() == {""}:
        _refuse_untold(where, files, selection)
    kinds: Counter[str] = Counter()
    for (name, kind), n in counts.items():
        if name in unknown and kind != ANNOTATION and not selection.objects:
            kinds[kind] += n
    hint = _misspelt(unknown, known)
    hint += f"leave out what is no annotation, {_numbered(kinds)}, with --objects annotation; or " if kinds else ""
    raise TileError(
        f"{where}annotations of classes that no label has: {listed(unknown)}",
        expected=", ".join(quoted(name) for name in [*known, *sorted(selection.skip)]),
        found=listed(by_class),
        next_step=f"{hint}add them to a label in --labels, to --ignore (no truth there) or to --skip (as if not "
        f"drawn), such as --skip {shlex.quote(quoted(next(iter(unknown))))}; in a manifest these are values, "
        f"ignore_values and skip, where '' is {NO_CLASS}",
    )


def _misspelt(unknown: Collection[str], known: Collection[str]) -> str:
    """Return a hint on classes that labels nearly have: spelt otherwise, or parted at their commas."""
    alike = {_plain(name): name for name in known}
    for name in unknown:
        if twin := alike.get(_plain(name)):
            both = f"{quoted(twin)}|{quoted(name)}"
            return (
                f"{quoted(name)} is {quoted(twin)} but for case, spaces or accents: give one label both, as {both}; or "
            )
        if {part.strip() for part in re.split(f"[{SIGNS}]", name)} & set(known) and quoted(name) != name:
            return (
                f"put a name that holds {' '.join(SIGNS)} into double quotes: --labels 'LABEL={quoted(name)},...'; or "
            )
    return ""


def _plain(name: str) -> str:
    """Return a name as it is known by: letters without case and accents, single spaces."""
    apart = unicodedata.normalize("NFKD", name).casefold()
    return " ".join("".join(sign for sign in apart if not unicodedata.combining(sign)).split())


def _refuse_untold(where: str, files: Sequence[Path], selection: Selection) -> None:
    """Refuse regions of which none tells its class where it is looked for, but whose features have other properties."""
    features = (feature for file in files for feature in read_features(file))
    if others := other_properties(features, selection.class_property):
        raise TileError(
            f"{where}no feature has properties.{selection.class_property or CLASS}"
            + ("" if selection.class_property else ", where QuPath writes the class"),
            found=f"properties (with some values): {described(others)}",
            next_step="name the one that holds the class: --class-property "
            f"{shlex.quote(quoted(next(iter(others))))}; or, for regions without a class, --skip or --ignore "
            "'(no class)', or a label: --labels 'tissue=(no class),...'",
        )


def _numbered(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{text} ({n})" for text, n in sorted(counts.items(), key=lambda item: -item[1]))
