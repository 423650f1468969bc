"""An encoder's grids from the cache into memory, or onto the disk when memory is short."""

import collections
import shutil

import numpy as np
import psutil
import pytest
import torch

from fmcache.cache.reader import open_cache
from fmcache.cache.writer import open_writer, write_shard
from fmcache.decoders.batches import JoinedTaps, load_token_grids
from fmcache.errors import CacheCorrupt, NoRoom

TILES = {"a": 4, "b": 4, "c": 1}
CPU = torch.device("cpu")


def value_of(kind, tile, view):
    return np.full((2, 3, 3) if kind == "tokens" else (6, 6), 10 * tile + view)


@pytest.fixture
def caches(tmp_path):
    made = []
    for kind, item, dtype in (("tokens", (2, 3, 3), "float16"), ("view_bank", (6, 6), "uint8")):
        path, identity = tmp_path / "enc" / f"{kind}.zarr", {"tiles": dict.fromkeys(TILES, "hash")}
        with open_writer(path, kind, identity, item, dtype, TILES, {}) as writer:
            writer.begin()
            for shard in writer.missing():
                views = [value_of(kind, shard.tile, v) for v in range(shard.first, shard.stop)]
                write_shard(path, kind, shard, np.stack(views).astype(dtype))
            writer.seal()
        made.append(open_cache(path, kind, identity))
    return made


def is_right(grids, tiles, views):
    for i, tile in enumerate(tiles):
        for j, view in enumerate(views):
            at = "abc".index(tile)
            assert (grids.tokens[i, j].numpy() == value_of("tokens", at, view)).all()
            assert (grids.masks[i, j].numpy() == value_of("view_bank", at, view)).all()


def test_grids_come_in_the_order_asked_for(caches, tmp_path):
    grids = load_token_grids(*caches, ("b", "a"), range(1, 4), CPU, tmp_path)
    is_right(grids, "ba", range(1, 4))
    assert not grids.spilled
    is_right(load_token_grids(*caches, ("c",), range(1), CPU, tmp_path), "c", range(1))


def short_of_memory(monkeypatch, free):
    memory = collections.namedtuple("memory", "available")(free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_grids_that_do_not_fit_into_memory_are_mapped_from_a_file_that_leaves_no_trace(caches, tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 100)
    spill = tmp_path / "spill"
    grids = load_token_grids(*caches, ("a", "b"), range(1, 4), CPU, spill)
    assert grids.spilled
    assert list(spill.iterdir()) == []
    is_right(grids, "ab", range(1, 4))
    tokens, masks = grids.fetch(np.array([[1, 2], [0, 0]]), CPU)
    assert tokens.dtype == torch.float32
    assert tokens[:, 0, 0, 0].tolist() == masks[:, 0, 0].tolist() == [13, 1]


def test_neither_memory_nor_disk_is_an_error_that_says_so(caches, tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 100)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(NoRoom, match="neither into memory nor onto the disk"):
        load_token_grids(*caches, ("a", "b"), range(1, 4), CPU, tmp_path / "not" / "yet")


def test_a_lost_shard_is_noticed_while_several_tiles_are_read(caches, tmp_path):
    shutil.rmtree(tmp_path / "enc" / "tokens.zarr" / "tokens" / "c" / "1")
    with pytest.raises(CacheCorrupt, match="'b'"):
        load_token_grids(*caches, ("a", "b"), range(1, 4), CPU, tmp_path)


def test_taps_are_read_side_by_side_on_the_channel_axis(caches, tmp_path, monkeypatch):
    tokens, masks = caches
    other, identity = tmp_path / "other.zarr", {"tiles": dict.fromkeys(TILES, "hash")}
    with open_writer(other, "tokens", identity, (5, 3, 3), "float16", TILES, {}) as writer:
        writer.begin()
        for shard in writer.missing():
            views = [np.full((5, 3, 3), -(10 * shard.tile + v)) for v in range(shard.first, shard.stop)]
            write_shard(other, "tokens", shard, np.stack(views).astype("float16"))
        writer.seal()
    joined = JoinedTaps((tokens, open_cache(other)))
    assert joined.item == (7, 3, 3)
    for free in (2**40, 100):  # in memory, and mapped from a file
        short_of_memory(monkeypatch, free)
        grids = load_token_grids(joined, masks, ("b", "a"), range(1, 4), CPU, tmp_path / "spill")
        assert grids.spilled == (free == 100)
        for i, tile in enumerate("ba"):
            for j, view in enumerate(range(1, 4)):
                value = "abc".index(tile) * 10 + view
                assert (grids.tokens[i, j, :2] == value).all()
                assert (grids.tokens[i, j, 2:] == -value).all()
