"""Reading a sealed cache: check that it is complete and has the expected identity, then read tiles and views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.buffer.cpu import NDBuffer

from fmcache.cache.checksums import read_checksums
from fmcache.cache.encoding import all_finite
from fmcache.cache.header import ARRAY, MADE_BY, METADATA, Header, Kind, check_identity, positions, read_header
from fmcache.cache.shardfile import shard_files
from fmcache.cache.zarr_array import open_array
from fmcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound, CacheUnsealed

NEVER_WRITTEN = "not in any shard: never written, or lost"
FILL = "run the same fmcache extract again: it writes what is missing"

Stamp = tuple[int, int, int] | None


class Cache:
    """A sealed cache, made by `open_cache`. `header` holds its identity, tiles and numbers of views."""

    def __init__(self, path: Path, header: Header, array: Any, stamp: Stamp) -> None:
        self.path, self.header, self._array, self._stamp = path, header, array, stamp
        self._files = shard_files(path / ARRAY[header.kind], array)
        self._refilled: Any = None if self._files else _with_other_fill(array)
        self._crcs = read_checksums(path, header)

    @property
    def views_a_shard(self) -> int:
        """Number of views in a full shard."""
        return int(self._array.shards[1])

    @property
    def item(self) -> tuple[int, ...]:
        """Shape of one view: (channel, row, col) or (y, x)."""
        return tuple(self._array.shape[2:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""
        dtype: np.dtype[Any] = np.dtype(self._array.dtype)
        return dtype

    def read(self, tile: str, first: int, stop: int) -> npt.NDArray[Any]:
        """Return views `first` to `stop` - 1 of a tile: (view, channel, row, col) or (view, y, x), as stored.

        Raises
        ------
        CacheMismatch, CacheCorrupt
            As in `read_into`.
        """
        values = np.empty((stop - first, *self.item), self.dtype)
        self.read_into(tile, first, stop, values)
        return values

    def read_into(self, tile: str, first: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Read views `first` to `stop` - 1 of a tile into `out`, without a temporary copy; safe in several threads.

        Parameters
        ----------
        out
            (view, channel, row, col) or (view, y, x) of the stored type; contiguous.

        Raises
        ------
        CacheMismatch
            When the cache has no such tile or too few views of it, or was replaced after it was opened.
        CacheCorrupt
            When a checksum fails or a chunk is missing.
        """
        (position,) = positions(self.path, self.header.tiles, [tile])
        if stop > self.header.stored[position]:
            raise CacheMismatch(
                f"{self.path} has too few views of tile {tile!r}",
                expected=f"{stop} views",
                found=f"{self.header.stored[position]} views",
                next_step="run fmcache extract again with this recipe: it adds what is missing",
            )
        try:
            there = self._read(position, first, stop, out)
        except (ValueError, RuntimeError, OSError) as reason:
            _check_unchanged(self.path, self.header, self._stamp)
            raise CacheCorrupt(
                f"{self.path}: tile {tile!r} cannot be read",
                found=str(reason),
                next_step=f"fmcache cache verify {self.path}: it marks damaged shards; then run the same "
                f"{MADE_BY[self.header.kind]} again",
            ) from reason
        if not there or not (self._files and self._crcs):  # without a list nothing else notices a replaced cache
            _check_unchanged(self.path, self.header, self._stamp)
        if not there:
            raise CacheCorrupt(f"{self.path}: views of tile {tile!r} are missing", found=NEVER_WRITTEN, next_step=FILL)

    def _read(self, position: int, first: int, stop: int, out: npt.NDArray[Any]) -> bool:
        if self._files:
            crcs = self._crcs[position][first:stop].tolist() if self._crcs else None
            return self._files.read_into(position, first, stop, out, crcs)
        self._array.get_basic_selection((position, slice(first, stop)), out=NDBuffer.from_numpy_array(out))
        if any(self._is_hole(position, first + i, view) for i, view in enumerate(out)):
            return False
        if out.dtype.kind == "f" and not all_finite(out):  # our writer refuses such values; another writer may not
            raise ValueError("tokens that are inf or NaN")
        return True

    def _is_hole(self, position: int, view: int, found: npt.NDArray[Any]) -> bool:
        """Return whether a view that was read through Zarr is not stored in any chunk.

        Then reading with another fill value gives other values. A stored view may equal the fill value everywhere, so
        its values alone do not show it.
        """
        filled = np.full_like(found, self._array.fill_value)
        if not np.array_equal(found, filled, equal_nan=True):
            return False
        return not np.array_equal(self._refilled[position, view], filled, equal_nan=True)


def open_cache(path: Path | str, kind: Kind | None = None, expected: Mapping[str, Any] = MappingProxyType({})) -> Cache:
    """Open a sealed cache. `kind` and `expected` (fields of the identity) are checked when they are given.

    `expected` may leave out fields of the identity that the caller cannot know.

    Raises
    ------
    CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
        When it does not exist, is not finished, has another identity, or breaks the format.
    """
    path = Path(path)
    stamp = _stamp(path)
    header = read_header(path)
    if header.state != "sealed":
        raise CacheUnsealed(
            f"{path} was never finished",
            next_step=f"run the same {MADE_BY[header.kind]} again: it finishes the cache",
        )
    if kind and header.kind != kind:
        raise CacheMismatch(f"{path} is of another kind", expected=kind, found=header.kind, next_step="check the path")
    check_identity(path, dict(expected), header.identity)
    try:
        return Cache(path, header, open_array(path, header), stamp)
    except CacheCorrupt:
        _check_unchanged(path, header, stamp)
        raise


def _stamp(path: Path) -> Stamp:
    """Return facts that change when the metadata file is replaced."""
    try:
        facts = (path / METADATA).stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _check_unchanged(path: Path, header: Header, stamp: Stamp) -> None:
    """Check that a cache is still the one that was opened. Otherwise the values just read may be of a new cache.

    Raises
    ------
    CacheMismatch
        When the cache was replaced.
    """
    if _stamp(path) == stamp:
        return
    try:
        now = read_header(path)
        check_identity(path, header.identity, now.identity)
        same = (now.state, now.checksums_sha256) == (header.state, header.checksums_sha256)
        found = "" if same else "a cache that was written later, or is being written now"
    except (CacheNotFound, CacheCorrupt, CacheMismatch) as reason:
        found = reason.problem
    if found:
        raise CacheMismatch(
            f"{path} changed while it was read",
            expected="the cache that was opened",
            found=found,
            next_step="wait until no process writes this cache, then run the same command again",
        )


def _with_other_fill(array: Any) -> Any:
    """Return a Zarr array of the same chunks with another fill value."""
    stated = {**array.metadata.to_dict(), "fill_value": 0 if array.fill_value != 0 else 1}
    return zarr.Array(zarr.AsyncArray(stated, array.store_path))
