"""The shards of a local copy as files, what the header says of them, and what the store keeps beside each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.cache.checksums import UNKNOWN, Crcs
from fmcache.cache.header import Header
from fmcache.cache.shardfile import ShardFiles
from fmcache.remote.shard_parts import checked_crc, spans_of

OF, VIEWS, CHUNKS = "fmcache-of", "fmcache-views", "fmcache-chunks"
"""Metadata of a shard's object: `of` of its record, the number of its views, the fingerprint of their CRC-32C."""
NAMED = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")
"""TILE.BLOCK: the names of records and marks of shards."""
REDO = "run the same fmcache extract again"

Place = tuple[int, int]
"""(tile, block) of a shard."""


class Stamp(NamedTuple):
    """Size and time of a file: by these it is seen whether a shard was written again."""

    size: int
    mtime_ns: int


class Shards(NamedTuple):
    """The shards of the copy of a cache; `files` is None when we do not write its format."""

    folder: Path
    block: int
    axes: int
    files: ShardFiles | None

    def path(self, place: Place) -> Path:
        """Return the file of a shard."""
        return self.folder / "/".join(["c", *map(str, place), *["0"] * (self.axes - 2)])

    def place(self, key: str) -> Place | None:
        """Return the place of a shard by the end of its key; None for another key."""
        named = re.search(rf"/{self.folder.name}/c/([0-9]{{1,18}})/([0-9]{{1,18}})(/0){{{self.axes - 2}}}$", key)
        return (int(named[1]), int(named[2])) if named else None

    def crcs(self, place: Place, views: int, first: int = 0) -> list[int] | None:
        """Return the CRC-32C of chunks `first` to `views` - 1 of a shard; None when they cannot be read."""
        at = place[1] * self.block
        try:
            return self.files.crcs(place[0], at + first, at + views) if self.files else None
        except (OSError, ValueError):
            return None

    def hold(self, place: Place, views: int) -> bool:
        """Return whether the first chunks of a shard are in its file; a partial shard has fewer than the cache."""
        first = place[1] * self.block
        return self.files.hold(place[0], first, first + views) if self.files else self.path(place).exists()

    def agree(self, place: Place, listed: Sequence[int]) -> bool:
        """Return whether a shard holds any of the listed chunks, and no other chunk in their place."""
        if (whole := self.crcs(place, len(listed))) is not None:
            return whole == listed
        held = [crcs[0] if (crcs := self.crcs(place, i + 1, i)) else None for i in range(len(listed))]
        return held.count(None) < len(held) and all(
            one in (None, other) for one, other in zip(held, listed, strict=True)
        )

    def chunks(self, place: Place, listed: Sequence[int]) -> dict[int, bytes]:
        """Return the chunks that a shard has and that are the listed ones, by position; those that are damaged not."""
        try:
            data = self.path(place).read_bytes()
            spans = spans_of(data, self.block)
        except (OSError, ValueError):
            return {}
        found = {position: data[span.first : span.stop] for position, span in spans.items() if position < len(listed)}
        return {position: chunk for position, chunk in found.items() if is_listed(chunk, listed[position])}

    def stamp(self, place: Place) -> Stamp | None:
        """Return size and time of a shard's file; None when there is none."""
        try:
            facts = self.path(place).stat()
        except FileNotFoundError:
            return None
        return Stamp(facts.st_size, facts.st_mtime_ns)


def stored_views(header: Header, shards: Shards, place: Place) -> int:
    """Return the number of views of a shard that the header says are stored."""
    tile, block = place
    return min(max(header.stored[tile] - block * shards.block, 0), shards.block) if tile < len(header.stored) else 0


def stored_places(header: Header, shards: Shards) -> list[Place]:
    """Return the places of all shards that the header says are stored."""
    return [(tile, block) for tile, views in enumerate(header.stored) for block in range(-(-views // shards.block))]


def listed_crcs(listed: Sequence[Crcs], shards: Shards, place: Place, views: int) -> list[int]:
    first = place[1] * shards.block
    crcs: list[int] = listed[place[0]][first : first + views].tolist()
    return crcs


def is_listed(chunk: bytes, listed: int) -> bool:
    """Return whether a chunk is complete and has the CRC-32C of the list, where that is known."""
    try:
        return checked_crc(chunk) == listed or listed == UNKNOWN
    except ValueError:
        return False
