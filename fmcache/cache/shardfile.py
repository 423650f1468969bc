"""Reading chunks directly from the shard files that our writer makes: for stage two, which reads all of them.

In Zarr every chunk is a task in one event loop, which takes longer than decoding the chunk. This module reads the same
bytes, checks the same checksums, and decodes into the caller's memory. Caches with other codecs are read through Zarr.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

LITTLE: Final = {"endian": "little"}
INDEX: Final = [{"name": "bytes", "configuration": LITTLE}, {"name": "crc32c"}]
CRC_BYTES: Final = 4
ABSENT: Final = 2**64 - 1
"""Offset and length of a chunk that was never written (Zarr's sharding codec)."""

Bytes = npt.NDArray[np.uint8]


class ShardFiles:
    """The shard files of one array, with the layout of FORMAT.md section 2; safe in several threads.

    References
    ----------
    Zarr v3 sharding codec, version 1.0 (index: little-endian uint64 offset and length of each chunk, then CRC-32C).
    """

    def __init__(self, folder: Path, views_per_shard: int, axes: int) -> None:
        self._folder, self._views, self._axes = folder, views_per_shard, axes
        self._buffers = threading.local()

    def hold(self, tile: int, first: int, stop: int) -> bool:
        """Return whether views `first` to `stop` - 1 of a tile were written. Only the shard indices are read.

        A damaged index counts as written: verifying the cache reports shards that cannot be read.
        """
        for shard in range(first // self._views, -(-stop // self._views)):
            at = shard * self._views
            try:
                with self._open(tile, shard) as file:
                    index = self._index(file)
            except FileNotFoundError:
                return False
            except ValueError:
                continue
            if (index[max(first - at, 0) : stop - at, 0] == ABSENT).any():
                return False
        return True

    def exists(self, tile: int, shard: int) -> bool:
        """Return whether the file of a shard exists."""
        return self._path(tile, shard).is_file()

    def crcs(self, tile: int, first: int, stop: int) -> list[int]:
        """Return the CRC-32C at the end of the chunks of views `first` to `stop` - 1, without reading the chunks.

        Raises
        ------
        ValueError, OSError
            When a shard is missing or damaged, or lacks a view.
        """
        found: list[int] = []
        while (done := first + len(found)) < stop:
            shard, at = divmod(done, self._views)
            with self._open(tile, shard) as file:
                index = self._index(file)[at : at + stop - done].tolist()
                if any(offset == ABSENT for offset, _ in index):
                    raise ValueError("a view is not in any shard")
                ends = (self._bytes(file, offset + length - CRC_BYTES, CRC_BYTES).tobytes() for offset, length in index)
                found += [int.from_bytes(end, "little") for end in ends]
        return found

    def read_into(
        self, tile: int, first: int, stop: int, out: npt.NDArray[Any], crcs: Sequence[int] | None = None
    ) -> bool:
        """Decode views `first` to `stop` - 1 of the tile at index `tile` into `out`; return whether all were there.

        Parameters
        ----------
        out
            (view, ...) of the stored type, contiguous.
        crcs
            CRC-32C that each view's chunk must have. 0 (or None for all views): only the chunk's own checksum is
            checked.

        Raises
        ------
        ValueError, RuntimeError
            When a checksum fails, a chunk cannot be decoded, or a chunk belongs to another tile or view.
        """
        done = first
        while done < stop:
            shard = done // self._views
            end = min((shard + 1) * self._views, stop)
            try:
                file = self._open(tile, shard)
            except FileNotFoundError:
                return False
            at = shard * self._views
            with file:
                here = slice(done - first, end - first)
                if not self._read_shard(file, range(done - at, end - at), out[here], crcs[here] if crcs else None):
                    return False
            done = end
        return True

    def _open(self, tile: int, shard: int) -> FileIO:
        return self._path(tile, shard).open("rb", buffering=0)

    def _path(self, tile: int, shard: int) -> Path:
        return self._folder / "/".join(["c", str(tile), str(shard), *["0"] * (self._axes - 2)])

    def _index(self, file: FileIO) -> npt.NDArray[np.uint64]:
        """Return (offset, length) of each chunk, valid until the next call that reads."""
        size, tail = file.seek(0, os.SEEK_END), 16 * self._views + CRC_BYTES
        if size < tail:
            raise ValueError(f"a shard file of {size} bytes is shorter than its index")
        return _checked(self._bytes(file, size - tail, tail), "index").view("<u8").reshape(-1, 2)

    def _read_shard(self, file: FileIO, chunks: range, out: npt.NDArray[Any], crcs: Sequence[int] | None) -> bool:
        index = self._index(file)
        # copied to a list of (offset, length), because the next read overwrites the buffer
        wanted = index[chunks.start : chunks.stop].tolist()
        for i, (view, (offset, length)) in enumerate(zip(out, wanted, strict=True)):
            if offset == ABSENT:
                return False
            encoded = _checked(self._bytes(file, offset, length), "chunk", (crcs[i] or None) if crcs else None)
            # Blosc would write fewer bytes without an error; its header states the number (chunk format of C-Blosc 1)
            if (held := int.from_bytes(encoded[4:8].tobytes(), "little")) != view.nbytes:
                raise ValueError(f"a chunk holds {held} bytes, expected {view.nbytes}")
            blosc.decompress(encoded, view)
        return True

    def _bytes(self, file: FileIO, offset: int, length: int) -> Bytes:
        """Return bytes of a file in this thread's buffer, valid until the next call."""
        buffer: Bytes = getattr(self._buffers, "held", np.empty(0, np.uint8))
        if len(buffer) < length:
            self._buffers.held = buffer = np.empty(length, np.uint8)
        file.seek(offset)
        if (got := file.readinto(buffer[:length].data)) != length:
            raise ValueError(f"a shard file gave {got} bytes, expected {length}")
        return buffer[:length]


def shard_files(folder: Path, array: Any) -> ShardFiles | None:
    """Return a reader of the shard files of a Zarr array in `folder`; None when we write another format."""
    stated, item = array.metadata.to_dict(), array.shape[2:]
    if [codec["name"] for codec in stated["codecs"]] != ["sharding_indexed"]:
        return None
    sharding, views = stated["codecs"][0]["configuration"], array.shards[1]
    names = [codec["name"] for codec in sharding["codecs"]]
    ours = (
        (array.shards, array.chunks) == ((1, views, *item), (1, 1, *item))
        and stated["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and names == ["bytes", "blosc", "crc32c"]
        and sharding["codecs"][0].get("configuration", LITTLE) == LITTLE  # values of one byte have no order
        and list(sharding["index_codecs"]) == INDEX
        and sharding["index_location"] == "end"
    )
    return ShardFiles(folder, views, array.ndim) if ours else None


def _checked(data: Bytes, what: str, expected: int | None = None) -> Bytes:
    """Return bytes without the CRC-32C at their end.

    Raises
    ------
    ValueError
        When the bytes do not match the CRC-32C, or it is not the expected one.
    """
    content, stated = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:].tobytes(), "little")
    if (found := google_crc32c.value(content)) != stated:
        raise ValueError(f"the checksum of the {what} is {found:#010x}, stored {stated:#010x}")
    if expected is not None and stated != expected:
        raise ValueError(
            f"the {what} belongs to another place: its checksum is {stated:#010x}, listed {expected:#010x}"
        )
    return content
