"""Parts of a shard: the byte ranges of some of its chunks, and a shard that holds only these chunks.

Such a partial shard is a valid shard of Zarr: its index marks the other chunks as missing, and has the right checksum.
The file alone shows that it is partial, and no reader takes a hole for data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import google_crc32c
import numpy as np

from fmcache.cache.shardfile import ABSENT, CRC_BYTES


class Span(NamedTuple):
    """Bytes `first` to `stop` - 1 of a shard."""

    first: int
    stop: int


def index_bytes(views: int) -> int:
    """Return the size of the index at the end of a shard of so many views."""
    return 16 * views + CRC_BYTES


def spans_of(end: bytes, views: int) -> dict[int, Span]:
    """Return the span of each chunk that a shard holds, by its position in the shard. `end`: the shard, or its end.

    Raises
    ------
    ValueError
        When `end` is shorter than the index, or the checksum of the index fails.
    """
    if len(end) < index_bytes(views):
        raise ValueError(f"{len(end)} bytes are shorter than the index of a shard")
    checked_crc(index := end[-index_bytes(views) :])
    table = np.frombuffer(index[:-CRC_BYTES], "<u8").reshape(-1, 2).tolist()
    return {i: Span(offset, offset + length) for i, (offset, length) in enumerate(table) if offset != ABSENT}


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the spans with neighbours made one, in order: as few requests as possible, and no byte in between."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and found[-1].stop == span.first:
            found[-1] = Span(found[-1].first, span.stop)
        else:
            found.append(span)
    return found


def checked_crc(data: bytes) -> int:
    """Return the CRC-32C at the end of a chunk or an index.

    Raises
    ------
    ValueError
        When it is not that of the bytes before it.
    """
    stated = int.from_bytes(data[-CRC_BYTES:], "little")
    if google_crc32c.value(data[:-CRC_BYTES]) != stated:
        raise ValueError("a checksum fails")
    return stated


def shard_of(chunks: Mapping[int, bytes], views: int) -> bytes:
    """Return a shard of so many views that holds the given chunks, by position; its index marks the others as missing.

    References
    ----------
    Zarr v3 sharding codec, version 1.0 (index: little-endian uint64 offset and length of each chunk, then CRC-32C).
    """
    table, at = np.full((views, 2), ABSENT, "<u8"), 0
    for position in sorted(chunks):
        table[position] = at, len(chunks[position])
        at += len(chunks[position])
    index = table.tobytes()
    crc = google_crc32c.value(index).to_bytes(CRC_BYTES, "little")
    return b"".join([*(chunks[position] for position in sorted(chunks)), index, crc])
