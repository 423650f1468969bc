"""A view may hold one value everywhere, also the fill value: the shards show what was written, never the values."""

import msgspec
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, GzipCodec

from fmcache.cache.header import ARRAY, ATTRIBUTE, read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import verify_cache
from fmcache.cache.writer import open_writer, write_shard
from fmcache.errors import CacheCorrupt

ITEMS = {"tokens": (3, 2, 2), "view_bank": (5, 5)}
HALF, SINGLE = np.finfo("float16"), np.finfo("float32")
TOKENS = {
    "float16": [0.0, -0.0, 1.0, HALF.max, HALF.min, HALF.tiny, HALF.smallest_subnormal, -HALF.smallest_subnormal],
    "float32": [0.0, -0.0, 255.0, SINGLE.max, SINGLE.min, SINGLE.tiny, SINGLE.smallest_subnormal, 1e-40],
}
MASKS = {"a": [255, 255, 0, 255, 7], "b": [255], "c": [255, 255]}


@pytest.fixture(params=[1, 2, 300])
def views_a_shard(request, monkeypatch):
    def patch(kind, dtype):
        view_bytes = int(np.prod(ITEMS[kind])) * np.dtype(dtype).itemsize
        monkeypatch.setattr("fmcache.cache.layout.plan_layout.__defaults__", (request.param * view_bytes,))

    return patch


def constant(values, kind="view_bank", dtype="uint8"):
    """Views (view, ...) each of which holds one value everywhere."""
    return np.stack([np.full(ITEMS[kind], value, dtype) for value in values])


def write(path, values, kind="view_bank", dtype="uint8", only=None, seal=True, recompute=False):
    """Write a cache in which tile `id` has the constant views `values[id]`; return how many shards were missing."""
    demand = {tile: len(views) for tile, views in values.items()}
    identity = {"tiles": dict.fromkeys(values, "")}
    with open_writer(path, kind, identity, ITEMS[kind], dtype, demand, {}, recompute=recompute) as writer:
        shards = writer.missing()
        writer.begin()
        for shard in shards[:only]:
            views = constant(values[writer.header.tiles[shard.tile]], kind, dtype)
            write_shard(path, kind, shard, views[shard.first : shard.stop])
        if seal:
            writer.seal()
    return len(shards)


def check_holds(path, values, kind="view_bank", dtype="uint8"):
    """Check every bit of every view, read alone and together, and that the cache verifies."""
    cache = open_cache(path, kind, {})
    for tile, wanted in values.items():
        expected = constant(wanted, kind, dtype)
        assert cache.read(tile, 0, len(expected)).tobytes() == expected.tobytes()
        for view, one in enumerate(expected):
            assert cache.read(tile, view, view + 1).tobytes() == one.tobytes()
    assert verify_cache(path, lambda _: None).problems == []


def strip_checksums(path):
    """Take a cache's checksums of itself off, so that it says no more than fmcache 0.1.0 had it say."""
    said = msgspec.to_builtins(read_header(path))
    for field in ("array_sha256", "checksums_sha256", "checksum"):
        del said[field]
    zarr.open_group(path, mode="r+").attrs.put({ATTRIBUTE: said})
    for file in path.glob("checksums-*.bin"):
        file.unlink()


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def as_version_0_1_0_left_it(path, kind, tile, view):
    """Drop a chunk, and a shard that holds no other, as Zarr does with fill values by default."""
    strip_checksums(path)
    array = zarr.open_group(path, mode="r+")[ARRAY[kind]]
    array[tile, view] = array.fill_value


def with_foreign_codecs(path, kind):
    """Write the array of a cache again with codecs that only Zarr decodes, every view stored."""
    cache, array = open_cache(path, kind, {}), zarr.open_group(path, mode="r")[ARRAY[kind]]
    held = {tile: cache.read(tile, 0, n) for tile, n in zip(cache.header.tiles, cache.header.stored, strict=True)}
    group = zarr.open_group(path, mode="r+")
    del group[ARRAY[kind]]
    other = group.create_array(
        ARRAY[kind], shape=array.shape, chunks=array.chunks, shards=array.shards, dtype=array.dtype,
        fill_value=array.fill_value, compressors=[GzipCodec(level=1), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )  # fmt: skip
    for i, views in enumerate(held.values()):
        other[i, : len(views)] = views
    strip_checksums(path)
    assert open_cache(path, kind, {})._files is None


@pytest.mark.parametrize("foreign", [False, True])
def test_masks_of_every_constant_value_are_stored_and_read_back(tmp_path, views_a_shard, foreign):
    views_a_shard("view_bank", "uint8")
    values = {"a": [255, 0, 1, 127, 254] if foreign else list(range(256)), "b": [255]}
    write(tmp_path / "x.zarr", values)
    if foreign:
        with_foreign_codecs(tmp_path / "x.zarr", "view_bank")
    check_holds(tmp_path / "x.zarr", values)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("dtype", TOKENS)
def test_token_grids_of_every_kind_of_constant_are_stored_and_read_back(tmp_path, views_a_shard, dtype, foreign):
    views_a_shard("tokens", dtype)
    values = {"a": TOKENS[dtype], **{f"t{i}": [value] for i, value in enumerate(TOKENS[dtype])}}
    write(tmp_path / "x.zarr", values, "tokens", dtype)
    if foreign:
        with_foreign_codecs(tmp_path / "x.zarr", "tokens")
    check_holds(tmp_path / "x.zarr", values, "tokens", dtype)


def test_masks_all_ignored_survive_extension_interruption_and_recomputation_byte_for_byte(tmp_path, views_a_shard):
    views_a_shard("view_bank", "uint8")
    write(tmp_path / "whole.zarr", MASKS)
    whole = contents(tmp_path / "whole.zarr")
    for done in range(4):
        path = tmp_path / f"stopped-{done}.zarr"
        missing = write(path, MASKS, only=done, seal=False)
        assert write(path, MASKS) == max(missing - done, 0)
        check_holds(path, MASKS)
        assert contents(path) == whole
    write(tmp_path / "whole.zarr", MASKS, recompute=True)
    assert contents(tmp_path / "whole.zarr") == whole
    write(tmp_path / "grown.zarr", {"a": MASKS["a"][:3]})
    write(tmp_path / "grown.zarr", {"a": MASKS["a"][:3], "b": MASKS["b"]})
    write(tmp_path / "grown.zarr", MASKS)
    check_holds(tmp_path / "grown.zarr", MASKS)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("kind", ITEMS)
def test_a_view_that_is_in_no_shard_is_missing_whatever_its_neighbours_hold(tmp_path, views_a_shard, kind, foreign):
    dtype = {"tokens": "float16", "view_bank": "uint8"}[kind]
    views_a_shard(kind, dtype)
    path = tmp_path / "x.zarr"
    write(path, MASKS, kind, dtype)
    if foreign:
        with_foreign_codecs(path, kind)
    as_version_0_1_0_left_it(path, kind, 0, 1)
    as_version_0_1_0_left_it(path, kind, 1, 0)
    cache = open_cache(path, kind, {})
    for tile, first, stop in (("a", 1, 2), ("a", 0, 5), ("b", 0, 1)):
        with pytest.raises(CacheCorrupt, match="missing") as error:
            cache.read(tile, first, stop)
        assert "extract again" in error.value.next_step
    assert cache.read("a", 0, 1).tobytes() == constant([255], kind, dtype).tobytes()
    problems, next_step = verify_cache(path, lambda _: None)
    assert [problem.partition(":")[0] for problem in problems] == ["tile a view 1", "tile b view 0"]
    assert "extract again" in next_step


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_view_that_another_writer_stored_as_nan_or_infinity_is_refused_as_such(tmp_path, bad):
    path = tmp_path / "x.zarr"
    write(path, {"a": [1.0, 1.0], "b": [1.0]}, "tokens", "float16")
    with_foreign_codecs(path, "tokens")
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_group(path, mode="r+")["tokens"][0, 1] = bad
    with pytest.raises(CacheCorrupt, match="cannot be read") as error:
        open_cache(path, "tokens", {}).read("a", 0, 2)
    assert "inf or NaN" in error.value.found


def test_extracting_again_fills_a_sealed_cache_that_lacks_views_and_equals_a_new_one(tmp_path, views_a_shard):
    views_a_shard("view_bank", "uint8")
    for name in ("old", "new"):
        write(tmp_path / f"{name}.zarr", MASKS)
    assert write(tmp_path / "old.zarr", MASKS) == 0
    for tile, view in ((0, 0), (0, 3), (1, 0), (2, 0), (2, 1)):
        as_version_0_1_0_left_it(tmp_path / "old.zarr", "view_bank", tile, view)
    assert write(tmp_path / "old.zarr", MASKS) > 0
    check_holds(tmp_path / "old.zarr", MASKS)
    assert contents(tmp_path / "old.zarr") == contents(tmp_path / "new.zarr")
    assert write(tmp_path / "old.zarr", MASKS) == 0


def test_a_record_of_a_shard_that_lacks_a_view_does_not_count(tmp_path, views_a_shard):
    views_a_shard("view_bank", "uint8")
    path = tmp_path / "x.zarr"
    write(path, MASKS, seal=False)
    as_version_0_1_0_left_it(path, "view_bank", 1, 0)
    with open_writer(path, "view_bank", {"tiles": dict.fromkeys(MASKS, "")}, (5, 5), "uint8", {"b": 1}, {}) as writer:
        assert [shard.tile for shard in writer.missing()] == [1]
        with pytest.raises(CacheCorrupt, match="1 shards are missing"):
            writer.seal()
    assert write(path, MASKS) == 1
    check_holds(path, MASKS)
