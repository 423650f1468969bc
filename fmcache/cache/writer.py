"""Writing a cache: open (create, go on, or extend), write whole shards, seal. FORMAT.md is the contract.

One process holds the lock and decides what is missing; shards may be written from any process, each by one writer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import msgspec
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from fmcache.cache.format import ARRAY, AXES, FILLING, Header, Kind, check_identity, parse_header, with_tiles
from fmcache.cache.layout import Layout, Shard, missing_shards, plan_layout
from fmcache.cache.shardfile import ShardFiles, shard_files
from fmcache.cache.stores import FAST, Compressor, all_finite
from fmcache.errors import Busy, CacheCorrupt, TokensOverflow
from fmcache.identity import fingerprint, whole_file
from fmcache.manifest import IGNORE


class Writer:
    """A cache opened for writing; made by `open_writer`.

    Attributes
    ----------
    path
        The Zarr group.
    header
        What the group said when it was opened, tiles already extended to those asked for.
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
        """Return the shards still to be written, in tile then view order.

        Those that are recorded as written must be there too: version 0.1.0 recorded views that it had left out.
        """
        unrecorded = set(missing_shards(self.demand, self.header.stored, _filled(self.path), self.layout.block))
        files = self._files()
        return [
            shard
            for shard in missing_shards(self.demand, (), {}, self.layout.block)
            if shard in unrecorded or (files and not files.hold(shard.tile, shard.first, shard.stop))
        ]

    def _files(self) -> ShardFiles | None:
        if not (self.path / "zarr.json").exists():
            return None
        array = zarr.open_group(self.path, mode="r").get(self._array)
        return None if array is None else shard_files(self.path / self._array, array)

    def begin(self) -> None:
        """Mark the cache as filling and make room on its axes. Readers refuse it from here to `seal`."""
        attributes = msgspec.structs.replace(self.header, state="filling").attributes()
        if (self.path / "zarr.json").exists():
            group = zarr.open_group(self.path, mode="r+")
            group.attrs.put(attributes)
        else:
            group = zarr.create_group(self.path, zarr_format=3, attributes=attributes)
        array = group.get(self._array)
        shape = (self.layout.tiles, self.layout.views, *self.layout.item)
        if array is None:
            _create_array(group, self.header.kind, self.layout, self._compressor)
        elif array.shape != shape:
            array.resize(shape)

    def seal(self) -> None:
        """Record what is stored and mark the cache as sealed: the last act, in one rename.

        Raises
        ------
        CacheCorrupt
            When a shard is missing.
        """
        if absent := self.missing():
            raise CacheCorrupt(
                f"{self.path} cannot be sealed: {len(absent)} shards are missing",
                next_step="run extract again",
            )
        held = [*self.header.stored, *[0] * (self.layout.tiles - len(self.header.stored))]
        stored = tuple(max(pair) for pair in zip(held, self.demand, strict=True))
        self.header = msgspec.structs.replace(self.header, state="sealed", stored=stored)
        zarr.open_group(self.path, mode="r+").attrs.put(self.header.attributes())
        shutil.rmtree(self.path / FILLING, ignore_errors=True)


@contextlib.contextmanager
def open_writer(
    path: Path,
    kind: Kind,
    identity: dict[str, Any],
    item: tuple[int, ...],
    dtype: str,
    demand: dict[str, int],
    about: dict[str, Any],
    recompute: bool = False,
    compressor: Compressor = FAST,
) -> Iterator[Writer]:
    """Open the cache at `path` for writing, alone; create it, go on filling it, or extend it to new tiles and views.

    Parameters
    ----------
    path
        The Zarr group.
    identity
        Everything that can change a value; ``identity["tiles"]`` maps the id of every tile in `demand` to its hash.
    item, dtype
        Shape and type of one view: (channel, row, col) or (y, x).
    demand
        Number of views wanted of each tile.
    about
        Facts recorded beside the identity that change no value (titles, versions, device).
    recompute
        Remove what is there first.
    compressor
        For a new cache; one that is there goes on with its own.

    Raises
    ------
    Busy
        When another process is writing this cache.
    CacheMismatch
        When what is there was made from something else; the message names the fields that differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if recompute:
            shutil.rmtree(path, ignore_errors=True)
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
    if not (path / "zarr.json").exists():
        header = Header(
            kind=kind, state="filling", tiles=tuple(demand), stored=(), identity=identity,
            fingerprint=fingerprint(identity), about=about,
        )  # fmt: skip
        return Writer(path, header, plan_layout(len(demand), views, item, dtype), list(demand.values()), compressor)
    group = zarr.open_group(path, mode="r")
    header = parse_header(path, dict(group.attrs))
    added = {id_: hash_ for id_, hash_ in identity["tiles"].items() if id_ not in header.tiles}
    extended = with_tiles(header.identity, added)
    check_identity(path, identity, extended)
    header = msgspec.structs.replace(
        header,
        tiles=(*header.tiles, *added),
        identity=extended,
        fingerprint=fingerprint(extended),
        about=about,
    )
    layout = plan_layout(len(header.tiles), max(views, *header.stored, 0), item, dtype)
    if (array := group.get(ARRAY[kind])) is not None:
        # the shard size is fixed when the array is created: one that held few views must keep its small shards
        layout = layout._replace(
            block=int(array.shards[1]), views=max(layout.views, int(array.shape[1])),
            tiles=max(layout.tiles, int(array.shape[0])),
        )  # fmt: skip
    return Writer(path, header, layout, [demand.get(id_, 0) for id_ in header.tiles], compressor)


def write_shard(path: Path, kind: Kind, shard: Shard, values: npt.NDArray[Any]) -> None:
    """Write one shard whole, flush it to disk, and record it as done. Safe in any process.

    Parameters
    ----------
    values
        (view, channel, row, col) for tokens or (view, y, x) for masks, in the stored type.

    Raises
    ------
    TokensOverflow
        When a value is inf or NaN.
    """
    if values.dtype.kind == "f" and not all_finite(values):
        bad = int(values.size - np.isfinite(values).sum())
        raise TokensOverflow(
            f"{path}: {bad} of {values.size} tokens of tile {shard.tile} are inf or NaN in {values.dtype}",
            expected=f"magnitudes up to {np.finfo(values.dtype).max:g}",
            next_step="store: float32 in the recipe; if it stays, precision: float32 (the encoder itself overflows)",
        )
    array = _storing_all(zarr.open_group(path, mode="r+")[ARRAY[kind]])
    array[shard.tile : shard.tile + 1, shard.first : shard.stop] = values[np.newaxis]
    key = array.metadata.encode_chunk_key((shard.tile, shard.block, *[0] * (values.ndim - 1)))
    with (path / ARRAY[kind] / key).open("rb") as file:
        os.fsync(file.fileno())
    with whole_file(path / FILLING / f"{shard.tile}.{shard.block}", "w") as record:
        record.write(str(shard.weight))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; the operating system frees it when this process ends, however it ends.

    Raises
    ------
    Busy
        When another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(lock, timeout=0):
            yield
    except filelock.Timeout:
        raise Busy(
            f"another process is writing {path}",
            next_step="wait until it ends, or choose another --work folder",
        ) from None


def _filled(path: Path) -> dict[tuple[int, int], int]:
    filled = {}
    for record in (path / FILLING).glob("[0-9]*.[0-9]*"):
        tile, block = record.name.split(".")
        filled[int(tile), int(block)] = int(record.read_text())
    return filled


def _storing_all(array: Any) -> Any:
    """Return a Zarr array that also stores chunks in which every value is the fill value: a mask may be all ignored.

    Zarr does not keep this setting with the array; without it, it drops such chunks.
    """
    return zarr.Array(zarr.AsyncArray(array.metadata, array.store_path, {"write_empty_chunks": True}))


def _create_array(group: Any, kind: Kind, layout: Layout, compressor: Compressor) -> None:
    chunk = (1, 1, *layout.item)
    typesize = np.dtype(layout.dtype).itemsize
    group.create_array(
        ARRAY[kind],
        shape=(layout.tiles, layout.views, *layout.item),
        chunks=chunk,
        shards=(1, layout.block, *layout.item),
        dtype=layout.dtype,
        # a hole reads as NaN (or as ignored pixels), never as a plausible value
        fill_value=IGNORE if kind == "view_bank" else float("nan"),
        compressors=[
            BloscCodec(cname=compressor.name, clevel=compressor.level, shuffle="bitshuffle", typesize=typesize),
            Crc32cCodec(),
        ],
        dimension_names=AXES[kind],
    )
