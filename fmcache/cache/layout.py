"""How an array of views is split into chunks and shards, and which shards are not written yet. Integers only, no I/O.

Axes are (tile, view, ...). A chunk is one view. A shard is a range of views of one tile, with an upper limit in bytes.
Tiles need different numbers of views (training tiles V + 1, others 1): views 0..n-1 of each tile are requested.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

SHARD_BYTES = 64 * 2**20
"""A shard holds at most this many bytes before compression, but at least one view. It is the unit of work and of
memory."""


class Shard(NamedTuple):
    """Views `first` to `stop` - 1 of the tile at index `tile`: always written completely, by one writer."""

    tile: int
    block: int
    first: int
    stop: int

    @property
    def weight(self) -> int:
        """Number of views."""
        return self.stop - self.first


class Layout(NamedTuple):
    """Shapes of a cache array: (tile, view, *item), one chunk per view, `block` views per shard.

    `dtype` is a numpy name. `item` is the shape of one view, e.g. (channel, row, col).
    """

    tiles: int
    views: int
    item: tuple[int, ...]
    dtype: str
    block: int

    @property
    def view_bytes(self) -> int:
        """Bytes of one view before compression."""
        return math.prod(self.item) * np.dtype(self.dtype).itemsize


def plan_layout(tiles: int, views: int, item: tuple[int, ...], dtype: str, shard_bytes: int = SHARD_BYTES) -> Layout:
    """Return the layout whose shards hold as many views as fit into `shard_bytes`, but at least one."""
    view_bytes = Layout(tiles, views, item, dtype, 1).view_bytes
    return Layout(tiles, views, item, dtype, max(1, min(views, shard_bytes // view_bytes)))


def missing_shards(
    demand: Sequence[int],
    stored: Sequence[int],
    filled: Mapping[tuple[int, int], int],
    block: int,
    damaged: Collection[tuple[int, int]] = (),
) -> list[Shard]:
    """Return the shards to write so that views 0..demand[t]-1 of every tile t exist, in order of tile, then view.

    Parameters
    ----------
    demand
        Number of views wanted, by tile.
    stored
        Number of views in the sealed cache, by tile (shorter than `demand` when tiles were added).
    filled
        Number of views written after the seal, by (tile, block).
    block
        Views per shard.
    damaged
        (tile, block) of shards to write again, with all views that they held, unless they are in `filled`.
    """
    shards = []
    for tile, wanted in enumerate(demand):
        sealed = stored[tile] if tile < len(stored) else 0
        for index, first in enumerate(range(0, wanted, block)):
            stop = min(first + block, wanted)
            if (tile, index) in damaged:
                stop = max(stop, min(first + block, sealed))
                if filled.get((tile, index), 0) < stop - first:
                    shards.append(Shard(tile, index, first, stop))
                continue
            have = max(min(sealed - first, block), filled.get((tile, index), 0))
            if have < stop - first:
                shards.append(Shard(tile, index, first, stop))
    return shards


def raw_bytes(shards: Sequence[Shard], view_bytes: int) -> int:
    """Return the bytes of shards before compression."""
    return sum(shard.weight for shard in shards) * view_bytes
