"""What happens to a cache on a disk: killed writers, damaged and exchanged files, removals that stopped half-way."""

import functools
import json
import os
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from fmcache.cache.checksums import damaged_shards
from fmcache.cache.header import ATTRIBUTE, read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import find_caches, remove_cache, verify_cache
from fmcache.cache.writer import open_writer, write_shard
from fmcache.cli import app
from fmcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound, CacheUnsealed, FmcacheError

VIEWS = {"a": 7, "b": 1, "c": 5}
ITEM = (6, 4, 4)


@pytest.fixture(autouse=True)
def _three_views_a_shard(monkeypatch):
    monkeypatch.setattr("fmcache.cache.layout.plan_layout.__defaults__", (3 * 6 * 4 * 4 * 2,))


def values_of(tile, views=range(7), seed=0):
    def noise(view):
        return np.random.default_rng([seed, ord(tile[0]), view]).integers(0, 9, ITEM).astype("float16")

    return np.stack([noise(view) for view in views])


def write(path, views=VIEWS, seed=0, only=None, recompute=False):
    """Write what is missing of a cache; return the (tile, block) that were written."""
    identity = {"seed": seed, "tiles": dict.fromkeys(views, "hash")}
    with open_writer(path, "tokens", identity, ITEM, "float16", views, {}, recompute=recompute) as writer:
        shards = writer.missing()
        if shards or writer.header.state == "filling":
            writer.begin()
        for shard in shards[:only]:
            tile = writer.header.tiles[shard.tile]
            write_shard(path, "tokens", shard, values_of(tile, range(shard.first, shard.stop), seed))
        if only is None and writer.header.state == "filling":
            writer.seal()
    return [(shard.tile, shard.block) for shard in shards]


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def problems(path):
    return verify_cache(path, lambda _: None).problems


def holds(path, views=VIEWS, seed=0):
    cache = open_cache(path, "tokens", {"seed": seed})
    return all(np.array_equal(cache.read(tile, 0, n), values_of(tile, range(n), seed)) for tile, n in views.items())


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "x.zarr")
    return tmp_path / "x.zarr"


def shard(path, tile, block):
    return path / "tokens" / "c" / str(tile) / str(block) / "0" / "0" / "0"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "removed", "of another tile"])
def test_a_damaged_shard_is_marked_by_verify_and_redone_alone(path, damage):
    whole, file = contents(path), shard(path, 0, 1)
    if damage == "flipped":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif damage == "removed":
        file.unlink()
    elif damage == "of another tile":
        shutil.copy(shard(path, 2, 0), file)
    else:
        file.write_bytes(file.read_bytes()[:100] if damage == "cut" else b"")
    found, next_step = verify_cache(path, lambda _: None)
    assert {problem.partition(":")[0] for problem in found} <= {f"tile a view {view}" for view in (3, 4, 5)}
    assert found
    assert "extract again: it rewrites only 1 damaged shard" in next_step
    assert write(path, {"b": 1}) == []  # not asked for: not redone, still marked
    assert damaged_shards(path) == {(0, 1)}
    assert write(path, {"a": 4}) == [(0, 1)]  # with all the views that it held
    assert problems(path) == []
    assert contents(path) == whole


def test_a_shard_that_is_simply_gone_is_written_again_without_verify(path):
    whole = contents(path)
    shard(path, 2, 1).unlink()
    with pytest.raises(CacheCorrupt, match="missing") as raised:
        open_cache(path, "tokens", {}).read("c", 0, 5)
    assert "extract again" in raised.value.next_step
    assert write(path) == [(2, 1)]
    assert contents(path) == whole


def test_shards_that_changed_places_are_found_when_read_and_by_verify(path):
    one, other, aside = shard(path, 0, 0), shard(path, 2, 0), path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    cache = open_cache(path, "tokens", {})
    for tile in "ac":
        with pytest.raises(CacheCorrupt, match="another place"):
            cache.read(tile, 0, 1)
    assert len(problems(path)) == 6
    assert sorted(write(path)) == [(0, 0), (2, 0)]
    assert holds(path)


def test_ids_that_changed_places_in_the_metadata_are_found(path):
    file = path / "zarr.json"
    text = json.loads(file.read_text())
    text["attributes"][ATTRIBUTE]["tiles"] = ["b", "a", "c"]
    file.write_text(json.dumps(text))
    with pytest.raises(CacheCorrupt, match="the attributes were changed"):
        open_cache(path, "tokens", {})


@pytest.mark.parametrize("name", ["zarr.json", "tokens/zarr.json", "checksums"])
def test_no_flipped_byte_of_the_metadata_is_believed_or_ends_in_a_traceback(path, name):
    file = next(path.glob("checksums-*.bin")) if name == "checksums" else path / name
    good = file.read_bytes()
    for at in range(0, len(good), 3):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        file.write_bytes(bad)
        try:
            assert holds(path)
        except FmcacheError:
            continue
        assert json.loads(bad) == json.loads(good), f"byte {at}"  # white space


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"attributes": 3}', b"\xff\xfe", b"[" * 10**5])
@pytest.mark.parametrize("name", ["zarr.json", "tokens/zarr.json"])
def test_damaged_metadata_of_one_cache_is_one_line_and_the_others_go_on(path, tmp_path, name, content):
    write(tmp_path / "y.zarr")
    (path / name).write_bytes(content)
    for ask in (lambda: open_cache(path, "tokens", {}).read("a", 0, 1), lambda: problems(path), lambda: write(path)):
        with pytest.raises(CacheCorrupt, match=r"zarr\.json|not a Zarr group|not a cache of fmcache") as raised:
            ask()
        assert "cache rm" in raised.value.next_step or "check the path" in raised.value.next_step
    assert [entry.path.name for entry in find_caches(tmp_path)] == ["x.zarr", "y.zarr"]
    remove_cache(path)
    write(path)
    assert holds(path)


def test_a_cache_that_was_removed_half_way_is_not_believed_under_a_new_identity(path):
    write(path, {**VIEWS, "d": 3}, only=1)  # records are there
    (path / "zarr.json").unlink()  # as a kill of `cache rm` or --recompute could leave it
    with pytest.raises(CacheNotFound):
        open_cache(path, "tokens", {})
    assert len(write(path, seed=1)) == 6
    assert holds(path, seed=1)


def test_records_of_another_identity_are_not_believed(path, tmp_path):
    write(tmp_path / "other.zarr", seed=1, only=2)
    write(path, recompute=True, only=0)
    for name in ("filling", "tokens/c"):
        shutil.copytree(tmp_path / "other.zarr" / name, path / name, dirs_exist_ok=True)
    assert len(write(path)) == 6
    assert holds(path)


def test_a_half_removed_cache_can_still_be_removed(path):
    (path / "zarr.json").unlink()
    assert remove_cache(path) > 0
    assert not path.exists()
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(CacheNotFound):
        remove_cache(path)


def test_a_removal_of_several_goes_on_after_one_that_is_gone_already(path, tmp_path):
    write(tmp_path / "y.zarr")
    paths = [str(tmp_path / name) for name in ("gone.zarr", "x.zarr", "y.zarr")]
    done = CliRunner().invoke(app, ["cache", "rm", "--yes", *paths])
    assert done.exit_code == 1
    assert f"there is no cache {paths[0]}" in done.output
    assert not path.exists()
    assert not (tmp_path / "y.zarr").exists()


KILLED = """
import os, sys
from pathlib import Path
from fmcache import identity
from fmcache.cache.verify import remove_cache
import shutil
real = shutil.rmtree
def dying(folder, **options):
    if Path(folder).exists():
        (Path(folder) / "zarr.json").unlink()
        os.kill(os.getpid(), 9)
identity.shutil.rmtree = dying
remove_cache(Path(sys.argv[1]))
"""


def test_a_removal_that_is_killed_leaves_no_cache_and_the_next_writer_sweeps(path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, env=dict(os.environ))
    assert done.returncode == -9
    assert not path.exists()
    assert [left.name.split(".")[-1] for left in path.parent.glob(".x.zarr.*") if left.is_dir()] == ["removed"]
    write(path)
    assert holds(path)
    assert [left for left in path.parent.glob(".x.zarr.*") if left.is_dir()] == []


def test_what_killed_writers_left_is_swept_by_the_next_and_the_cache_equals_an_uninterrupted_one(tmp_path):
    path, whole = tmp_path / "x.zarr", tmp_path / "whole.zarr"
    write(whole)
    write(path, only=2)
    (path / "tokens" / "c" / "0" / "0" / "0" / "0" / "0.deadbeef.partial").write_bytes(b"half a shard")
    (path / "filling" / ".1.0.77.partial").write_bytes(b"half a record")
    (path / "filling" / "1.0").write_bytes(b'{"of": "')
    (path / "checksums-0123456789abcdef.bin").write_bytes(b"of a seal that never ended")
    with pytest.raises(CacheUnsealed):
        open_cache(path, "tokens", {})
    write(path)
    assert contents(path) == contents(whole)


def test_an_extract_of_fewer_views_ends_well_after_one_of_more_was_killed(tmp_path):
    path, fewer = tmp_path / "x.zarr", {"a": 2, "b": 1, "c": 1}
    write(path, only=4)
    write(path, fewer)
    assert holds(path, fewer)
    assert problems(path) == []
    write(path)
    assert holds(path)
    assert problems(path) == []


@pytest.mark.parametrize("crc32c", [[2**32 + 5, 1, 1], [-1, 0, 0], [1] * 9, [], [1, 2, 3]])
def test_a_record_of_other_checksums_is_no_traceback_and_its_shard_is_found_and_redone(tmp_path, crc32c):
    path = tmp_path / "x.zarr"
    write(path, only=3)
    record = path / "filling" / "0.0"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"crc32c": crc32c}))
    assert len(write(path)) >= 3
    if problems(path):
        assert write(path) == [(0, 0)]
    assert problems(path) == []
    assert holds(path)


def test_a_writer_that_was_killed_just_after_its_seal_leaves_nothing_that_stays(path):
    whole = contents(path)
    (path / "filling").mkdir()
    (path / "filling" / "0.0").write_bytes(b"{}")
    (path / "checksums-0123456789abcdef.bin").write_bytes(b"of the header before")
    assert write(path) == []
    assert contents(path) == whole
    assert not (path / "filling").exists()


def test_a_mark_of_damage_outlives_an_extract_that_did_not_ask_for_the_shard(path):
    file = shard(path, 0, 1)
    file.write_bytes(file.read_bytes()[:-1])
    assert problems(path)
    assert len(write(path, {"d": 2})) == 1
    assert damaged_shards(path) == {(0, 1)}
    assert write(path) == [(0, 1)]
    assert not (path / "damaged").exists()
    assert problems(path) == []


def test_a_seal_that_was_killed_before_its_last_act_is_gone_on_with(path):
    before = read_header(path)
    with open_writer(
        path, "tokens", {"seed": 0, "tiles": dict.fromkeys([*VIEWS, "d"], "hash")}, ITEM, "float16", {"d": 2}, {}
    ) as writer:
        writer.begin()
        for one in writer.missing():
            write_shard(path, "tokens", one, values_of("d", range(one.first, one.stop)))
    assert read_header(path).checksums_sha256 == before.checksums_sha256
    assert write(path, {**VIEWS, "d": 2}) == []
    assert holds(path, {**VIEWS, "d": 2})
    assert len(list(path.glob("checksums-*.bin"))) == 1


def test_a_cache_of_the_first_version_is_read_extended_and_then_bound(path):
    as_first_version(path)
    assert holds(path)
    assert write(path) == []
    assert len(write(path, {**VIEWS, "d": 2})) == 1
    assert holds(path, {**VIEWS, "d": 2})
    shutil.copy(shard(path, 2, 0), shard(path, 0, 0))
    assert len(problems(path)) == 3


def masks_of(seed):
    return np.random.default_rng(seed).integers(0, 3, (3, 8, 8)).astype("uint8")


def write_bank(path, seed, recompute=False):
    identity = {"seed": seed, "tiles": {"a": "hash", "b": "hash"}}
    with open_writer(path, "view_bank", identity, (8, 8), "uint8", {"a": 3, "b": 3}, {}, recompute=recompute) as writer:
        writer.begin()
        for one in writer.missing():
            write_shard(path, "view_bank", one, masks_of([seed, one.tile])[one.first : one.stop])
        writer.seal()


def as_first_version(path):
    """Take from a cache what fmcache 0.1.0 did not write."""
    said = msgspec.to_builtins(read_header(path))
    for field in ("array_sha256", "checksums_sha256", "checksum"):
        del said[field]
    text = json.loads((path / "zarr.json").read_text())
    text["attributes"][ATTRIBUTE] = said
    (path / "zarr.json").write_text(json.dumps(text))
    next(path.glob("checksums-*.bin")).unlink()


@pytest.mark.parametrize("first_version", [False, True])
@pytest.mark.parametrize("kind", ["tokens", "view_bank"])
def test_a_cache_that_is_replaced_while_it_is_read_never_gives_what_another_seed_made(tmp_path, kind, first_version):
    path = tmp_path / "y.zarr"
    make = functools.partial(write if kind == "tokens" else write_bank, path)
    make(seed=0)
    if first_version:
        as_first_version(path)
    cache = open_cache(path, kind, {"seed": 0})
    assert np.array_equal(cache.read("a", 0, 3), values_of("a", range(3)) if kind == "tokens" else masks_of([0, 0]))
    make(seed=1, recompute=True)
    with pytest.raises(CacheMismatch, match="changed while it was read") as raised:
        cache.read("b", 0, 1)
    assert "seed: expected 0, found 1" in raised.value.found
    assert "run the same command again" in raised.value.next_step
    make(seed=0, recompute=True)
    again = open_cache(path, kind, {"seed": 0})
    remove_cache(path)
    with pytest.raises(CacheMismatch, match="changed while it was read"):
        again.read("b", 0, 1)


def test_a_cache_that_is_replaced_while_it_is_opened_is_not_called_damaged(path, monkeypatch):
    from fmcache.cache import reader

    real = reader.open_array

    def replaced(*args):
        write(path, seed=1, recompute=True)
        return real(*args)

    monkeypatch.setattr(reader, "open_array", replaced)
    with pytest.raises(CacheMismatch, match="changed while it was read"):
        open_cache(path, "tokens", {"seed": 0})


def test_a_cache_that_is_extended_while_it_is_read_is_read_on(path):
    cache = open_cache(path, "tokens", {})
    write(path, {**VIEWS, "a": 9, "d": 2})
    assert np.array_equal(cache.read("a", 0, 7), values_of("a"))


def test_damage_found_while_a_cache_is_read_is_still_called_damage(path):
    cache = open_cache(path, "tokens", {})
    shard(path, 0, 0).write_bytes(b"short")
    with pytest.raises(CacheCorrupt, match="cannot be read"):
        cache.read("a", 0, 1)
