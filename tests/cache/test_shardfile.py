"""Reading without Zarr, against Zarr's own reading of the same files."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from fmcache.cache.encoding import FAST, SMALL
from fmcache.cache.header import ATTRIBUTE, read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.writer import open_writer, write_shard
from fmcache.errors import CacheCorrupt

VIEWS = {"a": 7, "b": 1, "c": 5}
ITEMS = {"tokens": (6, 4, 4), "view_bank": (9, 9)}


def make(path, kind="tokens", dtype="float16", compressor=FAST):
    """A cache of noise, three views a shard."""
    rng, identity = np.random.default_rng(0), {"tiles": dict.fromkeys(VIEWS, "")}
    with open_writer(path, kind, identity, ITEMS[kind], dtype, VIEWS, {}, compressor=compressor) as writer:
        writer.begin()
        for shard in writer.missing():
            values = rng.integers(0, 9, (shard.weight, *ITEMS[kind])).astype(dtype)
            write_shard(path, kind, shard, values)
        writer.seal()
    return path


@pytest.fixture(autouse=True)
def _three_views_a_shard(monkeypatch):
    monkeypatch.setattr("fmcache.cache.layout.plan_layout.__defaults__", (3 * 6 * 4 * 4 * 2,))


def strip_checksums(path):
    """Take a cache's checksums of itself off, so that its array may be another."""
    said = msgspec.to_builtins(read_header(path))
    for field in ("array_sha256", "checksums_sha256", "checksum"):
        del said[field]
    zarr.open_group(path, mode="r+").attrs.put({ATTRIBUTE: said})


def opened(path, kind="tokens"):
    cache = open_cache(path, kind, {})
    return cache, zarr.open_group(path, mode="r")[{"tokens": "tokens", "view_bank": "masks"}[kind]]


@pytest.mark.parametrize(
    ("kind", "dtype", "compressor"),
    [
        ("tokens", "float16", FAST),
        ("tokens", "float32", FAST),
        ("tokens", "float16", SMALL),
        ("view_bank", "uint8", FAST),
    ],
)
def test_every_run_of_views_equals_what_zarr_reads_and_zarr_is_not_asked(
    tmp_path, monkeypatch, kind, dtype, compressor
):
    cache, array = opened(make(tmp_path / "x.zarr", kind, dtype, compressor), kind)
    expected = {tile: array[i, :n] for i, (tile, n) in enumerate(VIEWS.items())}
    monkeypatch.delattr(zarr.Array, "get_basic_selection")
    for tile, n in VIEWS.items():
        for first in range(n):
            for stop in range(first + 1, n + 1):
                assert np.array_equal(cache.read(tile, first, stop), expected[tile][first:stop])


def test_threads_do_not_read_into_each_others_buffers(tmp_path):
    cache, array = opened(make(tmp_path / "x.zarr"))
    expected = array[0, :7]
    with ThreadPoolExecutor(8) as pool:
        for values in pool.map(lambda _: cache.read("a", 0, 7), range(200)):
            assert np.array_equal(values, expected)


@pytest.mark.parametrize(
    "codecs",
    [
        [GzipCodec(level=1), Crc32cCodec()],
        [BloscCodec(cname="lz4"), GzipCodec(level=1)],
    ],
)
def test_a_cache_with_other_codecs_is_read_through_zarr(tmp_path, codecs):
    path = make(tmp_path / "x.zarr")
    _, array = opened(path)
    values = array[:]
    del zarr.open_group(path, mode="r+")["tokens"]
    other = zarr.open_group(path, mode="r+").create_array(
        "tokens",
        shape=values.shape,
        chunks=(1, 1, *ITEMS["tokens"]),
        shards=(1, 4, *ITEMS["tokens"]),
        dtype="float16",
        fill_value=float("nan"),
        compressors=codecs,
    )
    other[:] = values
    strip_checksums(path)
    cache, _ = opened(path)
    assert np.array_equal(cache.read("a", 2, 6), values[0, 2:6])
    other[0, 4] = np.nan
    with pytest.raises(CacheCorrupt, match="missing"):
        cache.read("a", 2, 6)


@pytest.mark.parametrize("kind", ["tokens", "view_bank"])
def test_a_chunk_that_was_never_written_is_missing_in_masks_too(tmp_path, kind):
    path = make(tmp_path / "x.zarr", kind, {"tokens": "float16", "view_bank": "uint8"}[kind])
    _, array = opened(path, kind)
    zarr.open_group(path, mode="r+")[array.basename].resize((3, 9, *ITEMS[kind]))  # room for views that are in no chunk
    strip_checksums(path)
    cache, _ = opened(path, kind)
    cache.header = msgspec.structs.replace(cache.header, stored=(9, 9, 9))  # as a writer that lies
    with pytest.raises(CacheCorrupt, match="missing"):
        cache.read("b", 0, 2)
    with pytest.raises(CacheCorrupt, match="missing"):
        cache.read("b", 5, 6)


@pytest.mark.parametrize("at", [0, 3, 6, 20, -1, -5, -30])
def test_any_byte_that_changed_is_found(tmp_path, at):
    path = make(tmp_path / "x.zarr")
    shard = path / "tokens" / "c" / "0" / "1" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[at] ^= 4
    shard.write_bytes(content)
    cache, _ = opened(path)
    with pytest.raises(CacheCorrupt, match="checksum"):
        cache.read("a", 3, 6)
    assert cache.read("a", 0, 3).shape == (3, *ITEMS["tokens"])


@pytest.mark.parametrize("left", [0, 10, 60])
def test_a_shard_file_cut_short_is_found(tmp_path, left):
    path = make(tmp_path / "x.zarr")
    shard = path / "tokens" / "c" / "0" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:left])
    cache, _ = opened(path)
    with pytest.raises(CacheCorrupt, match="cannot be read"):
        cache.read("a", 3, 4)


def test_a_chunk_of_another_size_is_refused_not_left_half_filled(tmp_path):
    cache, _ = opened(make(tmp_path / "x.zarr"))
    with pytest.raises(ValueError, match="a chunk holds 192 bytes, expected 384"):
        cache._files.read_into(0, 0, 1, np.empty((1, 12, 4, 4), "float16"))
