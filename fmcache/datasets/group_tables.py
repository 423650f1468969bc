"""Read a table of tiles and their groups: CSV with different delimiters, encodings and names of columns."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.datasets.file_names import tile_key
from fmcache.datasets.folder import Pair
from fmcache.errors import SpecError, some

TABLES = (".csv", ".tsv", ".txt")
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
DELIMITERS = ",;\t|"
TILE_WORDS = ("tile", "image", "img", "filename", "file", "path", "name", "id")
GROUP_WORDS = ("group", "patient", "patientid", "subject", "case", "donor", "specimen", "slide", "wsi")
_SEPARATOR = re.compile(r"\s*sep=(.)\s*")  # the line above a table in which Excel names the delimiter

Row = list[str]


class Columns(NamedTuple):
    """Positions of the two columns, their names ('' without a header), and the rows below the header."""

    tile: int
    group: int
    names: tuple[str, str]
    rows: list[Row]


def read_groups(path: Path, pairs: Sequence[Pair], say: Callable[[str], None]) -> list[str]:
    """Return the group of each tile as listed in a table, '' for tiles that are not listed.

    `say` gets the names of the columns that were used, unless they are called tile and group, and the number of rows
    for unknown tiles.

    Raises
    ------
    SpecError
        When the table cannot be read, its columns cannot be identified, or it gives a tile two groups.
    """
    keys = [_keys_of(pair) for pair in pairs]
    known = {key for its in keys for key in its}
    columns = _columns(path, _rows(path, say), known)
    if columns.names != ("tile", "group"):
        tile, group = (name or f"number {at + 1}" for name, at in zip(columns.names, columns[:2], strict=True))
        say(f"{path}: tiles are in column {tile!r}, groups in column {group!r}")
    listed: dict[str, list[str]] = {}
    strangers = 0
    for row in columns.rows:
        if len(row) > columns.tile and (text := row[columns.tile].strip()):
            value = row[columns.group].strip() if len(row) > columns.group else ""
            names = _keys_in(text)
            strangers += not known.intersection(names)
            for name in names:
                listed.setdefault(name, []).append(value)
    if strangers:
        say(f"{path}: {strangers} of {len(columns.rows)} rows are for tiles that do not exist")
    found = []
    for pair, its in zip(pairs, keys, strict=True):
        values = next((listed[key] for key in its if key in listed), [""])
        if len(set(values)) > 1:
            raise SpecError(
                f"{path}: tile {pair.id!r} is listed with several groups",
                expected="one group for each tile",
                found=some(sorted(set(values))),
                next_step="remove the wrong rows; if tiles in several folders have the same name, write the folder "
                "too, as in P01/a.png",
            )
        found.append(values[0])
    return found


def _keys_of(pair: Pair) -> list[str]:
    """Return the names by which a table may list a tile, the most specific first."""
    name = tile_key(pair.image.name)
    folder = unicodedata.normalize("NFC", pair.image.parent.name)
    return [f"{folder}/{name}", pair.id, name, tile_key(pair.mask.name)]


def _keys_in(text: str) -> list[str]:
    parts = unicodedata.normalize("NFC", text).replace("\\", "/").split("/")
    name = tile_key(text)
    return [name, f"{parts[-2]}/{name}"] if len(parts) > 1 else [name]


def _rows(path: Path, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of a CSV file without blank rows."""
    if path.suffix.lower() in SHEETS:
        raise SpecError(f"--groups {path}: spreadsheets are not supported", next_step="save the sheet as CSV")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SpecError(
            f"--groups {path} {what}",
            expected="a CSV file with columns tile and group, or a regex with one (group)",
            next_step="check the path",
        )
    text = _decoded(path, say)
    first, _, rest = text.partition("\n")
    if named := _SEPARATOR.fullmatch(first):
        delimiter, text = named[1], rest
    else:
        delimiter = max(DELIMITERS, key=first.count)
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))
        ]
    except csv.Error as reason:
        raise SpecError(f"{path} cannot be read as CSV", found=str(reason), next_step="save it as CSV again") from None
    if not rows:
        raise SpecError(
            f"{path} is empty", expected="columns tile and group, a row for each tile", next_step="add the rows"
        )
    if max(map(len, rows)) < 2:
        raise SpecError(
            f"{path} has a single column",
            expected="two columns, tile and group, separated by a comma, semicolon or tab",
            found=some([row[0] for row in rows], 3),
            next_step="add the column, or save it as CSV again",
        )
    return rows


def _decoded(path: Path, say: Callable[[str], None]) -> str:
    raw = path.read_bytes()
    encoding = json.detect_encoding(raw)  # by the byte order mark, or by the positions of zero bytes
    try:
        return _lines(raw.decode(encoding))
    except UnicodeDecodeError as reason:
        problem = str(reason)
    try:
        text = _lines(raw.decode("cp1252")) if encoding == "utf-8" else ""
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise SpecError(f"{path} is not text in UTF-8", found=problem, next_step="save it as CSV in UTF-8")
    say(f"{path} is not UTF-8; it was read as Windows-1252")
    return text


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")


def _columns(path: Path, rows: Sequence[Row], known: set[str]) -> Columns:
    """Find the two columns: by their names; by their contents when several columns are possible; else by position."""
    width = max(map(len, rows))
    header, body = [cell.strip() for cell in rows[0]] + [""] * (width - len(rows[0])), list(rows[1:])
    if any(known.intersection(_keys_in(cell)) for cell in header if cell):
        header, body = [""] * len(header), list(rows)
    hits = Counter(at for row in body for at, cell in enumerate(row) if known.intersection(_keys_in(cell)))
    groups = _called(header, GROUP_WORDS)
    tiles = [at for at in _called(header, TILE_WORDS) if at not in groups] or [at for at in hits if at not in groups]
    tile = max(tiles, key=lambda at: hits[at]) if tiles else None
    if tile is not None and not hits[tile] and hits:
        tile = max((at for at in hits), key=lambda at: hits[at])
    groups = [at for at in groups if at != tile]
    if not groups and width == 2 and tile in (0, 1):
        groups = [1 - tile]
    if tile is None or not groups:
        raise SpecError(
            f"--groups {path}: the columns of tiles and groups cannot be identified",
            expected="columns called tile (or image, file, name) and group (or patient, case, slide)",
            found=f"columns {some(rows[0], 8)}",
            next_step="name them tile and group in the first row; write tiles by the names of their images",
        )
    at = groups[0]
    names = tuple(header[i].casefold() if header[i].casefold() in ("tile", "group") else header[i] for i in (tile, at))
    return Columns(tile, at, (names[0], names[1]), body)


def _called(header: Sequence[str], words: Sequence[str]) -> list[int]:
    """Return the columns whose name contains one of `words`, in the order of the words."""
    parts = [set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cell).casefold())) for cell in header]
    return list(dict.fromkeys(at for word in words for at, its in enumerate(parts) if word in its))
