"""Finds installed fonts that can draw the names in pictures: report figures and contact sheets.

matplotlib finds the fonts; it is loaded at the first call.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

FIRST = "DejaVu Sans"
"""This font comes with matplotlib: names that it can draw look the same on every machine."""

PLACEHOLDERS = ("Last Resort", ".LastResort", "Adobe Blank")
"""Fonts whose names start so draw a box or a blank for every character."""

UNUSABLE = (OSError, RuntimeError, ValueError, NotImplementedError)
"""Errors that matplotlib raises for a font file that is missing, broken or made of bitmaps."""

CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH")
SHOWN = 6


class Face(NamedTuple):
    """An installed font: its file and the name of its family."""

    path: str
    family: str

    def has(self, sign: str) -> bool:
        """Return whether the font can draw a character."""
        return _glyphs(self.path)(sign)


class Cover(NamedTuple):
    """An installed font for each character that the base font lacks, and the characters that no font has."""

    face_of: Mapping[str, Face]
    lacking: frozenset[str]

    @property
    def faces(self) -> tuple[Face, ...]:
        """The fonts, the preferred one first."""
        return tuple(dict.fromkeys(self.face_of.values()))

    def boxed(self, text: str) -> str:
        """Return the text; each character that no font has is replaced by its code point, as in ``[U+80BF]``."""
        return "".join(_box(sign) if sign in self.lacking else sign for sign in text)


def cover(texts: Iterable[str], base: str | bytes) -> Cover:
    """Return the fonts that are needed besides `base` (a font file, or its bytes) to draw all texts."""
    has = _glyphs(base)
    return _search(frozenset(sign for text in texts for sign in text if not has(sign)))


def hint(lacking: Iterable[str]) -> str:
    """Return a line that names the characters that no font has, and what to install; '' when there are none."""
    signs = sorted({sign for sign in lacking if not _is_blank(sign)})
    if not signs:
        return ""
    codes = {sign: f"U+{ord(sign):04X}" for sign in signs[:SHOWN]}
    named = ", ".join(f"{sign} ({code})" if sign.isprintable() else code for sign, code in codes.items())
    more = f" and {len(signs) - SHOWN} more" if len(signs) > SHOWN else ""
    packages = sorted({_package(sign) for sign in signs} - {""})
    install = f"; install a font (Debian, Ubuntu: apt install {' '.join(packages)}; others: notofonts.github.io)"
    return f"note: no installed font has {named}{more}: pictures show code points{install if packages else ''}"


def _box(sign: str) -> str:
    return " " if _is_blank(sign) else f"[U+{ord(sign):04X}]"


def _is_blank(sign: str) -> bool:
    return unicodedata.category(sign) == "Zs"


def _package(sign: str) -> str:
    """Return the Debian package of fonts that has a character; '' for control and unassigned characters and spaces."""
    if unicodedata.category(sign)[0] in "CZ":
        return ""
    words = unicodedata.name(sign, "").split()
    if words and words[0].startswith(CJK):
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(sign) == "So" else "fonts-noto-core"


@functools.lru_cache(maxsize=32)
def _search(wanted: frozenset[str]) -> Cover:
    """Choose `FIRST` for the characters it has; then repeatedly the font that has most of the remaining ones."""
    face_of: dict[str, Face] = {}
    left = set(wanted)
    faces = _installed() if wanted else []
    while left and faces:
        has = {face: {sign for sign in left if face.has(sign)} for face in faces}
        faces = [face for face in faces if has[face]]
        if faces:
            best = max(faces, key=lambda face: (face.family == FIRST, len(has[face])))  # of equal ones, the first
            face_of |= dict.fromkeys(sorted(has[best]), best)
            left -= has[best]
    return Cover(face_of, frozenset(left))


def _installed() -> list[Face]:
    """Return one face of each family, the plainest first; also of fonts that are newer than matplotlib's own list."""
    import matplotlib as mpl
    from matplotlib import font_manager

    manager = font_manager.fontManager
    for path in sorted(set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}):
        try:
            manager.addfont(path)
        except UNUSABLE:
            continue
    faces: dict[str, Face] = {}
    for entry in sorted(manager.ttflist, key=_oddness):
        first_in_file = getattr(entry, "index", 0) == 0  # PIL, and matplotlib before 3.11, can use no other
        formulas = Path(entry.fname).is_relative_to(mpl.get_data_path()) and entry.name != FIRST
        if first_in_file and not formulas and not entry.name.startswith(PLACEHOLDERS):
            faces.setdefault(entry.name, Face(entry.fname, entry.name))
    return list(faces.values())


def _oddness(entry: Any) -> tuple[bool, int, bool, str, str]:
    """Order of preference: upright, medium weight, without serifs; then by name, so that all runs choose the same."""
    weight = entry.weight if isinstance(entry.weight, int) else 400
    return entry.style != "normal", abs(weight - 400), "Serif" in entry.name, entry.name, entry.fname


@functools.lru_cache(maxsize=1024)
def _glyphs(font: str | bytes) -> Callable[[str], bool]:
    """Return a function that returns whether a font (its file, or its bytes) has a character."""
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(BytesIO(font) if isinstance(font, bytes) else font)
    except UNUSABLE:
        return lambda sign: False
    return lambda sign: unicodedata.category(sign) != "Cc" and bool(opened.get_char_index(ord(sign)))
