"""The Zarr array of a cache: create it, and open it after its description was checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from fmcache.cache.encoding import Compressor
from fmcache.cache.header import ARRAY, AXES, METADATA, Header, Kind
from fmcache.cache.layout import Layout
from fmcache.errors import CacheCorrupt
from fmcache.identity import sha256_file
from fmcache.manifest import IGNORE

_REMOVE = "remove it with fmcache cache rm, then run the same fmcache extract again"


def open_array(path: Path, header: Header, mode: str = "r") -> Any:
    """Return the Zarr array of a cache.

    Raises
    ------
    CacheCorrupt
        When its description is missing, was changed after the seal, or has another shape than the header states.
    """
    described = path / ARRAY[header.kind] / METADATA
    try:
        sha256 = sha256_file(described)
        array = zarr.open_array(described.parent, mode=mode, zarr_format=3)
    except _UNREADABLE as reason:
        raise CacheCorrupt(
            f"{described} is missing or cannot be read",
            found=f"{type(reason).__name__}: {reason}"[:200],
            next_step=_REMOVE,
        ) from None
    if header.array_sha256 not in ("", sha256):
        raise CacheCorrupt(f"{described} was changed after it was written: its checksum differs", next_step=_REMOVE)
    if array.ndim != len(AXES[header.kind]) or array.shape[0] < len(header.stored):
        raise CacheCorrupt(
            f"{described} describes another array",
            expected=f"axes {', '.join(AXES[header.kind])} for {len(header.stored)} tiles",
            found=f"shape {array.shape}",
            next_step=_REMOVE,
        )
    return array


_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError)
"""What Zarr raises when metadata is damaged."""


def storing_all(array: Any) -> Any:
    """Return a Zarr array that also stores chunks in which every value is the fill value: a mask may be all ignored.

    Zarr does not store this setting with the array. Without the setting, Zarr drops such chunks.
    """
    return zarr.Array(zarr.AsyncArray(array.metadata, array.store_path, {"write_empty_chunks": True}))


def create_array(group: Any, kind: Kind, layout: Layout, compressor: Compressor) -> None:
    """Create the array of a cache in its group, according to FORMAT.md section 2."""
    chunk = (1, 1, *layout.item)
    typesize = np.dtype(layout.dtype).itemsize
    group.create_array(
        ARRAY[kind],
        shape=(layout.tiles, layout.views, *layout.item),
        chunks=chunk,
        shards=(1, layout.block, *layout.item),
        dtype=layout.dtype,
        # a missing view reads as NaN (or as ignored pixels), never as a plausible value
        fill_value=IGNORE if kind == "view_bank" else float("nan"),
        compressors=[
            BloscCodec(cname=compressor.name, clevel=compressor.level, shuffle="bitshuffle", typesize=typesize),
            Crc32cCodec(),
        ],
        dimension_names=AXES[kind],
    )
