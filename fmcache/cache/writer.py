"""Writing a cache: open (create, resume, or extend), write whole shards, seal. FORMAT.md is the contract.

One process holds the lock and decides which shards are missing. Any process may write a shard, but only one process
writes the same shard.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zarr

from fmcache.cache.checksums import (
    CHECKSUMS,
    DAMAGED,
    UNKNOWN,
    Crcs,
    Record,
    Records,
    bound_to,
    damaged_shards,
    drop_other_checksums,
    is_damaged,
    read_checksums,
    read_records,
    write_checksums,
    write_record,
)
from fmcache.cache.encoding import FAST, Compressor, all_finite
from fmcache.cache.header import ARRAY, FILLING, METADATA, Header, Kind, check_identity, read_header, with_tiles
from fmcache.cache.layout import Layout, Shard, missing_shards, plan_layout
from fmcache.cache.shardfile import ShardFiles, shard_files
from fmcache.cache.zarr_array import create_array, open_array, storing_all
from fmcache.errors import Busy, CacheCorrupt, CacheMismatch, CacheNotFound, TokensOverflow
from fmcache.identity import fingerprint, remove_folder, sha256_file, sweep
from fmcache.locks import locked

CARRIED = ("extraction", "sides_px")
"""Facts in `about` that all writers of a cache add to. Other facts are those of the last writer."""


class Writer:
    """A cache opened for writing; made by `open_writer`.

    Attributes
    ----------
    path
        The Zarr group.
    header
        The header when the cache was opened; its tiles already include the requested ones.
    layout
        Shapes, for the forecast.
    """

    def __init__(
        self, path: Path, header: Header, layout: Layout, demand: Sequence[int], compressor: Compressor
    ) -> None:
        self.path, self.header, self.layout = path, header, layout
        self.demand, self._compressor = tuple(demand), compressor
        self._array = ARRAY[header.kind]

    def missing(self) -> list[Shard]:
        """Return the missing shards and those marked as damaged, in order of tile, then view.

        When only a record says that a shard was written, its file is checked too.
        """
        return self._missing(read_records(self.path, self.header))

    def _missing(self, records: Records) -> list[Shard]:
        files, block = self._files(), self.layout.block
        filled = {place: len(record.crc32c) for place, record in records.items()}
        damaged = damaged_shards(self.path)
        if files:
            damaged |= {
                (shard.tile, shard.block)
                for shard in missing_shards(self.demand, (), {}, block)
                if not self._is_there(files, shard)
            }
            filled = {place: views for place, views in filled.items() if place not in damaged}
        return missing_shards(self.demand, self.header.stored, filled, block, damaged)

    def _is_there(self, files: ShardFiles, shard: Shard) -> bool:
        """Return whether the file of a shard exists; without a list of chunks, also whether it holds all views.

        fmcache 0.1.0 recorded views that it had left out.
        """
        if self.header.checksums_sha256:
            return files.exists(shard.tile, shard.block)
        return files.hold(shard.tile, shard.first, shard.stop)

    def _files(self) -> ShardFiles | None:
        described = self.path / self._array / METADATA
        return shard_files(described.parent, open_array(self.path, self.header)) if described.exists() else None

    def begin(self) -> None:
        """Mark the cache as filling and enlarge its array. Readers refuse the cache from here to `seal`."""
        self.header = msgspec.structs.replace(self.header, state="filling", array_sha256="")
        if (self.path / METADATA).exists():
            group = zarr.open_group(self.path, mode="r+", zarr_format=3)
            group.attrs.put(self.header.attributes())
        else:
            group = zarr.create_group(self.path, zarr_format=3, attributes=self.header.attributes())
        shape = (self.layout.tiles, self.layout.views, *self.layout.item)
        if not (self.path / self._array / METADATA).exists():
            create_array(group, self.header.kind, self.layout, self._compressor)
        elif (array := open_array(self.path, self.header, "r+")).shape != shape:
            array.resize(shape)

    def seal(self) -> None:
        """Record what is stored and mark the cache as sealed. This is the last step, in one rename.

        Raises
        ------
        CacheCorrupt
            When a shard is missing.
        """
        records = read_records(self.path, self.header)
        if absent := self._missing(records):
            raise CacheCorrupt(
                f"{self.path} cannot be sealed: {len(absent)} shards are missing",
                next_step="run fmcache extract again",
            )
        held = [*self.header.stored, *[0] * (self.layout.tiles - len(self.header.stored))]
        stored = tuple(max(pair) for pair in zip(held, self.demand, strict=True))
        checksums = write_checksums(self.path, self._checksums(stored, records))
        self.header = msgspec.structs.replace(
            self.header,
            state="sealed",
            stored=stored,
            array_sha256=sha256_file(self.path / self._array / METADATA),
            checksums_sha256=checksums,
        )
        zarr.open_group(self.path, mode="r+", zarr_format=3).attrs.put(self.header.attributes())
        _tidy(self.path, self.header)

    def record(self, facts: dict[str, Any]) -> None:
        """Record facts in the `about` of a cache on disk when they differ from it; shards do not change."""
        now = read_header(self.path)
        if now.about | facts != now.about:
            self.header = msgspec.structs.replace(now, about=now.about | facts)
            zarr.open_group(self.path, mode="r+", zarr_format=3).attrs.put(self.header.attributes())

    def _checksums(self, stored: Sequence[int], records: Records) -> list[Crcs]:
        """Return the CRC-32C of the chunks of each tile: from the records for new shards, from the list for the others.

        A cache of fmcache 0.1.0 has no list. Then the checksums in the chunks are trusted once, and a view that is not
        in any shard is `UNKNOWN`.
        """
        listed, files = read_checksums(self.path, self.header), self._files()
        found = []
        for tile, views in enumerate(stored):
            crcs = np.zeros(views, np.uint32)
            if listed is not None and tile < len(listed):
                crcs[: len(listed[tile])] = listed[tile]
            elif files and tile < len(self.header.stored):
                crcs[: self.header.stored[tile]] = [
                    _crc_or_unknown(files, tile, view) for view in range(self.header.stored[tile])
                ]
            for block, first in enumerate(range(0, views, self.layout.block)):
                if record := records.get((tile, block)):
                    # a killed extract of more views may have recorded more views than are requested now
                    recorded = crcs[first : first + min(self.layout.block, len(record.crc32c))]
                    recorded[:] = record.crc32c[: len(recorded)]
            found.append(crcs)
        return found


@contextlib.contextmanager
def open_writer(
    path: Path,
    kind: Kind,
    identity: dict[str, Any],
    item: tuple[int, ...],
    dtype: str,
    demand: dict[str, int],
    about: dict[str, Any],
    *,
    recompute: bool = False,
    compressor: Compressor = FAST,
) -> Iterator[Writer]:
    """Open the cache at `path` for writing, with its lock; create it, resume it, or extend it to new tiles and views.

    Parameters
    ----------
    path
        The Zarr group.
    identity
        Everything that can change a value. ``identity["tiles"]`` maps the id of every tile in `demand` to its hash.
    item, dtype
        Shape and type of one view: (channel, row, col) or (y, x).
    demand
        Number of views wanted of each tile.
    about
        Facts recorded beside the identity that change no value (titles, versions, device).
    recompute
        First remove the existing cache.
    compressor
        Used for a new cache; an existing cache keeps its own.

    Raises
    ------
    Busy
        When another process is writing this cache.
    CacheMismatch
        When the existing cache has another identity; the message names the fields that differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if recompute:
            remove_folder(path)
        yield _open(path, kind, identity, item, dtype, demand, about, compressor)


def _open(
    path: Path,
    kind: Kind,
    identity: dict[str, Any],
    item: tuple[int, ...],
    dtype: str,
    demand: dict[str, int],
    about: dict[str, Any],
    compressor: Compressor,
) -> Writer:
    views = max(demand.values())
    if not (path / METADATA).exists():
        remove_folder(path)  # a kill may have left parts of another cache, whose records must not be used
        header = Header(
            kind=kind, state="filling", tiles=tuple(demand), stored=(), identity=identity,
            fingerprint=fingerprint(identity), about=about,
        )  # fmt: skip
        return Writer(path, header, plan_layout(len(demand), views, item, dtype), list(demand.values()), compressor)
    header = read_header(path)
    if header.state == "filling":
        sweep(path)
    else:
        _tidy(path, header)  # the process that sealed it may have been killed before this step
    if header.kind != kind:
        raise CacheMismatch(f"{path} is of another kind", expected=kind, found=header.kind, next_step="check the path")
    added = {id_: hash_ for id_, hash_ in identity["tiles"].items() if id_ not in header.tiles}
    extended = with_tiles(header.identity, added)
    check_identity(path, identity, extended)
    header = msgspec.structs.replace(
        header,
        tiles=(*header.tiles, *added),
        identity=extended,
        fingerprint=fingerprint(extended),
        about={key: header.about[key] for key in CARRIED if key in header.about} | about,
    )
    layout = plan_layout(len(header.tiles), max(views, *header.stored, 0), item, dtype)
    if (path / ARRAY[kind] / METADATA).exists():
        there = _layout_of(open_array(path, header))
        # the shard size is fixed when the array is created: an array that held few views keeps its small shards
        layout = layout._replace(
            block=there.block, views=max(layout.views, there.views), tiles=max(layout.tiles, there.tiles)
        )
    return Writer(path, header, layout, [demand.get(id_, 0) for id_ in header.tiles], compressor)


def _layout_of(array: Any) -> Layout:
    tiles, views, *item = array.shape
    return Layout(int(tiles), int(views), tuple(map(int, item)), str(array.dtype), int(array.shards[1]))


def is_complete(path: Path, kind: Kind, expected: dict[str, Any], demand: Mapping[str, int]) -> bool:
    """Return whether a sealed cache made from `expected` holds all views of `demand`, none of them marked as damaged.

    This takes no lock, changes nothing, and reads no shard. `open_writer` reports what is wrong with a cache.
    """
    try:
        header = read_header(path)
        check_identity(path, expected, header.identity)
        array = open_array(path, header)
    except (CacheNotFound, CacheMismatch, CacheCorrupt):
        return False
    if header.state != "sealed" or header.kind != kind or _has_leftovers(path):
        return False
    wanted = [demand.get(id_, 0) for id_ in header.tiles]
    known = demand.keys() <= set(header.tiles)
    return known and not Writer(path, header, _layout_of(array), wanted, FAST).missing()


def _has_leftovers(path: Path) -> bool:
    """Return whether a killed process left something that the next holder of the lock removes, or one is at work."""
    beside = path.parent.glob(f".{glob.escape(path.name)}.*")
    lists = list(path.glob(CHECKSUMS.format("*")))
    return (path / FILLING).exists() or len(lists) > 1 or any(not one.name.endswith(".lock") for one in beside)


def write_shard(path: Path, kind: Kind, shard: Shard, values: npt.NDArray[Any], made_for: str = "") -> None:
    """Write one whole shard, flush it to disk, and record it as done. Safe in any process.

    Parameters
    ----------
    values
        (view, channel, row, col) for tokens or (view, y, x) for masks, in the stored type.
    made_for
        The fingerprint of the cache that the values were made for. A worker on another machine may outlive the command
        that gave it the task, and meanwhile another command may have made another cache at this path.

    Raises
    ------
    Busy
        When the cache at `path` has another fingerprint than `made_for`.
    TokensOverflow
        When a value is inf or NaN.
    """
    if values.dtype.kind == "f" and not all_finite(values):
        bad = int(values.size - np.isfinite(values).sum())
        raise TokensOverflow(
            f"{path}: {bad} of {values.size} tokens of tile {shard.tile} are inf or NaN in {values.dtype}",
            expected=f"magnitudes up to {np.finfo(values.dtype).max:g}",
            next_step="write store: float32 in the recipe; if this does not help, the encoder itself overflows: write "
            "precision: float32",
        )
    header, array = _opened(path, _state(path / METADATA), _state(path / ARRAY[kind] / METADATA))
    if made_for and header.fingerprint != made_for:
        raise Busy(
            f"another command has replaced or enlarged {path} since this shard was started",
            expected=f"fingerprint {made_for[:12]}",
            found=f"fingerprint {header.fingerprint[:12]}",
            next_step="wait until it ends, then run the same command again",
        )
    key = array.metadata.encode_chunk_key((shard.tile, shard.block, *[0] * (values.ndim - 1)))
    written = path / ARRAY[kind] / key
    if is_damaged(path, shard.tile, shard.block):
        written.unlink(missing_ok=True)  # otherwise Zarr would read the damaged shard, to keep its other views
    array[shard.tile : shard.tile + 1, shard.first : shard.stop] = values[np.newaxis]
    with written.open("rb") as file:
        os.fsync(file.fileno())
    files = shard_files(path / ARRAY[kind], array)
    crcs = files.crcs(shard.tile, shard.first, shard.stop) if files else ()
    record = Record(bound_to(header.identity, header.tiles[shard.tile]), tuple(crcs))
    write_record(path, shard.tile, shard.block, record)


@functools.lru_cache(maxsize=16)
def _opened(path: Path, *_states: tuple[int, ...]) -> tuple[Header, Any]:
    """Return header and array of a cache being filled; a process reads them again only when their files change.

    Both describe all tiles: reading them for every shard would take longer than writing a small shard.
    """
    header = read_header(path)
    return header, storing_all(open_array(path, header, "r+"))


def _state(file: Path) -> tuple[int, ...]:
    try:
        facts = file.stat()
    except FileNotFoundError:
        return ()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _crc_or_unknown(files: ShardFiles, tile: int, view: int) -> int:
    try:
        return files.crcs(tile, view, view + 1)[0]
    except (ValueError, OSError):
        return UNKNOWN


def _tidy(path: Path, header: Header) -> None:
    """Remove files that a sealed cache no longer needs; marks of damaged shards that were not written again stay."""
    shutil.rmtree(path / FILLING, ignore_errors=True)
    sweep(path / DAMAGED)
    with contextlib.suppress(OSError):
        (path / DAMAGED).rmdir()
    drop_other_checksums(path, header)
