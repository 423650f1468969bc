"""The list of the CRC-32C of every stored chunk, in a file beside the shards: it shows which chunk belongs where.

A chunk's own checksum, at its end, shows that the chunk is complete. The list shows that it is the chunk of *this* tile
and view. The header holds the sha256 of the list. Reading compares the two checksums, which costs nothing.

The list is named after its sha256: the list of the current header stays until a header with another list is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fmcache.cache.header import FILLING, Header
from fmcache.errors import CacheCorrupt
from fmcache.identity import fingerprint, whole_file
from fmcache.strict import decodable

CHECKSUMS = "checksums-{}.bin"
DAMAGED = "damaged"
"""Folder of marks, named like records. Each marks a shard that must be written again."""

_SHARD = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")

UNKNOWN = 0
"""Stands in place of a CRC-32C; nothing is compared then."""

Crcs = npt.NDArray[np.uint32]


@decodable
class Record(msgspec.Struct, frozen=True):
    """The content of ``filling/TILE.BLOCK``: `of` states tile and identity, `crc32c` the checksums of the chunks."""

    of: str
    crc32c: tuple[Annotated[int, Meta(ge=0, lt=2**32)], ...]


Records = dict[tuple[int, int], Record]
"""By (tile, block)."""


def bound_to(identity: dict[str, Any], tile: str) -> str:
    """Return the fingerprint of an identity reduced to one tile: it states what a shard of this tile was made from."""
    return fingerprint({**identity, "tiles": {tile: identity["tiles"].get(tile)}})


def write_record(path: Path, tile: int, block: int, record: Record) -> None:
    """Record a shard as written, and remove the mark that it was damaged."""
    name = f"{tile}.{block}"
    with whole_file(path / FILLING / name) as file:
        file.write(msgspec.json.encode(record))
    (path / DAMAGED / name).unlink(missing_ok=True)


def read_records(path: Path, header: Header) -> Records:
    """Return the records of a cache by (tile, block), only those that match the identity in `header`.

    A record that cannot be read, or has another identity, is ignored: its shard is written again.
    """
    records = {}
    expected = [bound_to(header.identity, tile) for tile in header.tiles]
    for tile, block in _named(path / FILLING):
        try:
            record = msgspec.json.decode((path / FILLING / f"{tile}.{block}").read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if tile < len(expected) and record.of == expected[tile]:
            records[tile, block] = record
    return records


def mark_damaged(path: Path, tile: int, block: int) -> None:
    """Mark a shard that must be written again."""
    with whole_file(path / DAMAGED / f"{tile}.{block}"):
        pass


def is_damaged(path: Path, tile: int, block: int) -> bool:
    """Return whether a shard is marked as damaged."""
    return (path / DAMAGED / f"{tile}.{block}").exists()


def damaged_shards(path: Path) -> set[tuple[int, int]]:
    """Return (tile, block) of the shards that are marked as damaged."""
    return set(_named(path / DAMAGED))


def write_checksums(path: Path, crcs: Sequence[Crcs]) -> str:
    """Write the CRC-32C of each tile's chunks, in the order of the tiles; return the list's sha256."""
    data = np.concatenate([np.empty(0, "<u4"), *crcs]).astype("<u4").tobytes()
    sha256 = hashlib.sha256(data).hexdigest()
    with whole_file(_list_of(path, sha256)) as file:
        file.write(data)
    return sha256


def drop_other_checksums(path: Path, header: Header) -> None:
    """Remove the lists of earlier headers."""
    for file in path.glob(CHECKSUMS.format("*")):
        if file != _list_of(path, header.checksums_sha256):
            file.unlink(missing_ok=True)


def read_checksums(path: Path, header: Header) -> list[Crcs] | None:
    """Return the CRC-32C of each tile's chunks, in the order of the tiles; None when the cache has no list.

    Raises
    ------
    CacheCorrupt
        When the list is missing, or is not the one that the header was sealed with.
    """
    if not header.checksums_sha256:
        return None
    file = _list_of(path, header.checksums_sha256)
    try:
        data = file.read_bytes()
    except OSError as reason:
        raise CacheCorrupt(f"{file} is missing or cannot be read", found=str(reason), next_step=_REMOVE) from None
    if hashlib.sha256(data).hexdigest() != header.checksums_sha256 or len(data) != 4 * sum(header.stored):
        raise CacheCorrupt(f"{file} was changed after it was written: its checksum differs", next_step=_REMOVE)
    stops = list(accumulate(header.stored))
    return np.split(np.frombuffer(data, "<u4"), stops[:-1]) if stops else []


def _list_of(path: Path, sha256: str) -> Path:
    return path / CHECKSUMS.format(sha256[:16])


def _named(folder: Path) -> list[tuple[int, int]]:
    named = (_SHARD.fullmatch(path.name) for path in folder.glob("[0-9]*"))
    return sorted((int(name[1]), int(name[2])) for name in named if name)


_REMOVE = "remove it with fmcache cache rm, then run the same fmcache extract again"
