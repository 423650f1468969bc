import filecmp
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zarr

from fmcache.cache.header import Header, read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import find_caches, remove_cache, verify_cache
from fmcache.cache.writer import is_complete, open_writer, write_shard
from fmcache.errors import Busy, CacheCorrupt, CacheMismatch, CacheNotFound, CacheUnsealed, TokensOverflow

IDENTITY = {
    "format": 1,
    "kind": "tokens",
    "dataset": "toy",
    "tiles": {"a": "hash of a", "b": "hash of b"},
    "tile_px": 32,
    "views": {"seed": 0, "scale": 1.2},
    "encoder": {"name": "toy", "weights_sha256": "w", "mean": [0.5, 0.5, 0.5]},
    "tap": "last",
    "grid": "fit",
    "precision": "float32",
    "store": "float16",
}
ITEM = (3, 2, 2)
DEMAND = {"a": 5, "b": 1}


def value_of(tile: int, view: int) -> np.ndarray:
    return (np.arange(12).reshape(ITEM) + 100 * tile + 10 * view).astype("float16")


def fill(path: Path, identity=IDENTITY, demand=DEMAND, only=None, seal=True, **kwargs) -> list:
    with open_writer(path, "tokens", identity, ITEM, "float16", demand, {"made": "by hand"}, **kwargs) as writer:
        shards = writer.missing()
        writer.begin()
        for shard in shards[:only]:
            values = np.stack([value_of(shard.tile, view) for view in range(shard.first, shard.stop)])
            write_shard(path, "tokens", shard, values)
        if seal:
            writer.seal()
    return shards


@pytest.fixture
def small_shards(monkeypatch):
    """Two views per shard, so that a toy has several."""
    monkeypatch.setattr("fmcache.cache.layout.plan_layout.__defaults__", (2 * 3 * 2 * 2 * 2,))


@pytest.mark.usefixtures("small_shards")
def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "toy.zarr"
    assert len(fill(path)) == 4
    cache = open_cache(path, "tokens", IDENTITY)
    assert np.array_equal(cache.read("a", 1, 5), np.stack([value_of(0, v) for v in range(1, 5)]))
    assert np.array_equal(cache.read("b", 0, 1)[0], value_of(1, 0))
    assert cache.header.stored == (5, 1)
    assert (cache.item, cache.dtype) == (ITEM, np.float16)


def test_any_zarr_library_sees_named_axes_checksums_and_nan_for_holes(tmp_path):
    fill(tmp_path / "toy.zarr")
    array = zarr.open_group(tmp_path / "toy.zarr", mode="r")["tokens"]
    assert array.metadata.dimension_names == ("tile", "view", "channel", "row", "col")
    assert array.chunks == (1, 1, *ITEM)
    assert np.isnan(array[1, 1:]).all()
    text = (tmp_path / "toy.zarr" / "tokens" / "zarr.json").read_text()
    assert text.count("crc32c") == 2
    assert '"bitshuffle"' in text


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_cache_that_was_interrupted_is_refused_then_goes_on_and_ends_byte_for_byte_the_same(tmp_path, done):
    path, whole = tmp_path / "toy.zarr", tmp_path / "whole" / "toy.zarr"
    fill(path, only=done, seal=False)
    with pytest.raises(CacheUnsealed, match="never finished"):
        open_cache(path, "tokens", IDENTITY)
    assert len(fill(path)) == 4 - done
    fill(whole)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(whole, path, [str(f) for f in files], shallow=False)[0] == [str(f) for f in files]


def test_a_shard_without_its_record_is_written_again(tmp_path):
    path = tmp_path / "toy.zarr"
    fill(path, seal=False)
    next((path / "filling").iterdir()).unlink()
    with open_writer(path, "tokens", IDENTITY, ITEM, "float16", DEMAND, {}) as writer:
        assert len(writer.missing()) == 1
        with pytest.raises(CacheCorrupt, match="1 shards are missing"):
            writer.seal()


def test_a_killed_writer_leaves_a_cache_that_a_rerun_completes(tmp_path):
    path = tmp_path / "toy.zarr"
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_writer_and_reader as toy
        path = Path({str(path)!r})
        with toy.open_writer(path, "tokens", toy.IDENTITY, toy.ITEM, "float16", toy.DEMAND, {{}}) as writer:
            first = writer.missing()[0]
            writer.begin()
            values = toy.np.stack([toy.value_of(first.tile, v) for v in range(first.first, first.stop)])
            toy.write_shard(path, "tokens", first, values)
            print("written", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "written\n")
    assert len(fill(path)) == 1  # the lock died with the process, and only the other shard was missing
    assert verify_cache(path, lambda _: None).problems == []


def test_a_second_writer_gets_an_error_while_the_first_works(tmp_path):
    path = tmp_path / "toy.zarr"
    hold = f"""
        from pathlib import Path
        from fmcache.locks import locked
        with locked(Path({str(path)!r})):
            print("locked", flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(hold)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(Busy, match="another process"):
            fill(path)
        other.communicate("\n")
    fill(path)


def mutations():
    def changed(**fields):
        return {**IDENTITY, **fields}

    yield "dataset", changed(dataset="other")
    yield "tiles.a", changed(tiles={"a": "another hash", "b": "hash of b"})
    yield "tile_px", changed(tile_px=64)
    yield "views.seed", changed(views={"seed": 1, "scale": 1.2})
    yield "views.scale", changed(views={"seed": 0, "scale": 1.3})
    yield "encoder.name", changed(encoder={**IDENTITY["encoder"], "name": "x"})
    yield "encoder.weights_sha256", changed(encoder={**IDENTITY["encoder"], "weights_sha256": "x"})
    yield "encoder.mean", changed(encoder={**IDENTITY["encoder"], "mean": [0.5, 0.5, 0.4]})
    yield "tap", changed(tap="6")
    yield "grid", changed(grid="pad")
    yield "precision", changed(precision="float16")
    yield "store", changed(store="float32")


@pytest.mark.parametrize(("field", "identity"), list(mutations()), ids=[name for name, _ in mutations()])
def test_every_field_that_differs_is_refused_by_name_for_reading_and_writing(tmp_path, field, identity):
    path = tmp_path / "toy.zarr"
    fill(path)
    with pytest.raises(CacheMismatch) as reading:
        open_cache(path, "tokens", identity)
    with pytest.raises(CacheMismatch) as writing:
        fill(path, identity=identity)
    for error in (reading, writing):
        assert f"\n    {field}: expected" in str(error.value)
        assert str(error.value).count(": expected") == 1  # the one that differs and no other
        assert "--recompute" in str(error.value)
    fill(path, identity=identity, recompute=True)
    assert open_cache(path, "tokens", identity).header.stored == (5, 1)


def test_a_reader_may_leave_out_what_it_cannot_know(tmp_path):
    fill(tmp_path / "toy.zarr")
    known = {key: value for key, value in IDENTITY.items() if key != "encoder"}
    assert open_cache(tmp_path / "toy.zarr", "tokens", known).header.identity == IDENTITY


@pytest.mark.usefixtures("small_shards")
def test_more_views_and_new_tiles_are_added_without_changing_what_is_there(tmp_path):
    path = tmp_path / "toy.zarr"
    fill(path)
    more = {**IDENTITY, "tiles": {"b": "hash of b", "c": "hash of c"}}
    shards = fill(path, identity=more, demand={"b": 4, "c": 2})
    assert [(s.tile, s.first, s.stop) for s in shards] == [(1, 0, 2), (1, 2, 4), (2, 0, 2)]
    cache = open_cache(path, "tokens", IDENTITY)
    assert cache.header.tiles == ("a", "b", "c")
    assert cache.header.stored == (5, 4, 2)
    for name, tile, n in (("a", 0, 5), ("b", 1, 4), ("c", 2, 2)):
        assert np.array_equal(cache.read(name, 0, n), np.stack([value_of(tile, v) for v in range(n)]))
    assert verify_cache(path, lambda _: None).problems == []


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_tokens_that_overflow_stop_with_the_remedy_and_nothing_is_recorded(tmp_path, bad):
    path = tmp_path / "toy.zarr"
    with open_writer(path, "tokens", IDENTITY, ITEM, "float16", DEMAND, {}) as writer:
        shard = writer.missing()[0]
        writer.begin()
        values = np.stack([value_of(0, v) for v in range(5)])
        values[3, 1, 1, 0] = bad
        with pytest.raises(TokensOverflow, match="store: float32"):
            write_shard(path, "tokens", shard, values)
        assert shard in writer.missing()


@pytest.mark.parametrize("damage", ["flip a byte", "cut the end"])
def test_damage_on_disk_is_found_when_read_and_when_verified(tmp_path, damage):
    path = tmp_path / "toy.zarr"
    fill(path)
    shard = path / "tokens" / "c" / "0" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content if damage == "flip a byte" else content[:-9])
    cache = open_cache(path, "tokens", IDENTITY)
    with pytest.raises(CacheCorrupt, match="cannot be read"):
        cache.read("a", 0, 5)
    ticks = []
    problems = verify_cache(path, ticks.append).problems
    assert len(problems) == (1 if damage == "flip a byte" else 5)
    assert problems[0].startswith("tile a view 0")
    assert sum(ticks) == 6


def test_a_lost_shard_reads_as_missing_not_as_values(tmp_path):
    path = tmp_path / "toy.zarr"
    fill(path)
    (path / "tokens" / "c" / "1" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(CacheCorrupt, match="missing"):
        open_cache(path, "tokens", IDENTITY).read("b", 0, 1)


def test_more_views_than_stored_are_refused_with_the_remedy(tmp_path):
    fill(tmp_path / "toy.zarr")
    with pytest.raises(CacheMismatch, match="adds what is missing"):
        open_cache(tmp_path / "toy.zarr", "tokens", IDENTITY).read("b", 0, 2)


def test_another_format_version_and_foreign_groups_are_refused_by_name(tmp_path):
    path = tmp_path / "toy.zarr"
    fill(path)
    header = read_header(path)
    group = zarr.open_group(path, mode="r+")
    group.attrs.put({"fmcache": {**msgspec.to_builtins(header), "format": 2}})
    with pytest.raises(CacheMismatch, match="format 2"):
        open_cache(path, "tokens", {})
    group.attrs.put({"fmcache": {**msgspec.to_builtins(header), "state": "filling"}})
    with pytest.raises(CacheCorrupt, match="the attributes were changed"):
        open_cache(path, "tokens", {})
    group.attrs.put(msgspec.structs.replace(header, fingerprint="0" * 64).attributes())
    with pytest.raises(CacheCorrupt, match="fingerprint"):
        open_cache(path, "tokens", {})
    group.attrs.put({"somebody": "else"})
    with pytest.raises(CacheCorrupt, match="not a cache of fmcache"):
        open_cache(path, "tokens", {})
    with pytest.raises(CacheNotFound, match="fmcache extract"):
        open_cache(tmp_path / "nowhere.zarr", "tokens", {})


def test_caches_are_found_and_removed_and_nothing_else_is(tmp_path):
    path = tmp_path / "deep" / "toy.zarr"
    fill(path)
    broken = tmp_path / "broken.zarr"
    zarr.create_group(broken)
    found = {entry.path: entry for entry in find_caches(tmp_path)}
    assert isinstance(found[path].header, Header)
    assert found[broken].header is None
    assert "not a cache of fmcache" in found[broken].problem
    assert remove_cache(path) == found[path].bytes > 0
    assert not path.exists()
    (tmp_path / "notes").mkdir()
    with pytest.raises(CacheNotFound):
        remove_cache(tmp_path / "notes")
    assert (tmp_path / "notes").is_dir()


def test_a_full_disk_loses_the_shard_in_hand_and_no_more(tmp_path):
    path = tmp_path / "toy.zarr"
    script = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_writer_and_reader as toy
        path = Path({str(path)!r})
        big = {{"a": 1, "b": 1}}
        with toy.open_writer(path, "tokens", toy.IDENTITY, (64, 32, 32), "float16", big, {{}}) as writer:
            shards = writer.missing()
            writer.begin()
            toy.write_shard(path, "tokens", shards[0], toy.np.zeros((1, 64, 32, 32), "float16"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # writing fails from here, as on a full disk
            noise = toy.np.random.default_rng(0).standard_normal((1, 64, 32, 32)).astype("float16")
            try:
                toy.write_shard(path, "tokens", shards[1], noise)
            except OSError as error:
                print("refused", [s.tile for s in writer.missing()])
    """
    command = [
        sys.executable,
        "-c",
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + textwrap.dedent(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.stdout == "refused [1]\n", done.stderr
    assert not list(path.rglob("*.partial"))


GOLDEN = Path(__file__).parent / "golden"
"""Caches as earlier releases wrote them: they must be read for ever (FORMAT.md, section 7)."""


def test_golden_tokens_of_version_1_are_read_as_they_were_written():
    cache = open_cache(GOLDEN / "tokens-v1.zarr", "tokens", IDENTITY)
    assert (cache.header.tiles, cache.header.stored, cache.dtype) == (("a", "b"), (5, 1), np.float16)
    assert np.array_equal(cache.read("a", 0, 5), np.stack([value_of(0, view) for view in range(5)]))
    assert np.array_equal(cache.read("b", 0, 1)[0], value_of(1, 0))
    assert verify_cache(cache.path, lambda _: None).problems == []


def test_golden_view_bank_of_version_1_is_read_as_it_was_written():
    cache = open_cache(GOLDEN / "view-bank-v1.zarr", "view_bank", {"dataset": "toy", "labels": {"x": [0], "y": [1]}})
    stripes, framed = cache.read("a", 0, 2)
    assert np.array_equal(stripes, np.tile([0, 1], (4, 2)))
    assert np.array_equal(framed, [[255] * 4, [1] * 4, [1] * 4, [1] * 4])


@pytest.mark.parametrize("name", ["tokens-v1-checked.zarr", "view-bank-v1-checked.zarr"])
def test_golden_caches_with_checksums_are_read_as_they_were_written(tmp_path, name):
    path = tmp_path / name
    shutil.copytree(GOLDEN / name, path)
    header = read_header(path)
    assert header.array_sha256
    assert header.checksum
    cache = open_cache(path, header.kind, {"dataset": "toy"})
    assert verify_cache(path, lambda _: None).problems == []
    if header.kind == "tokens":
        assert header.identity == IDENTITY
        assert np.array_equal(cache.read("a", 0, 5), np.stack([value_of(0, view) for view in range(5)]))
    else:
        stripes, nothing, diagonal = cache.read("a", 0, 3)
        assert np.array_equal(stripes, np.tile([0, 1], (4, 2)))
        assert (nothing == 255).all()
        assert np.array_equal(diagonal, np.eye(4))
    (listed,) = path.glob("checksums-*.bin")
    listed.write_bytes(listed.read_bytes()[4:] + listed.read_bytes()[:4])
    with pytest.raises(CacheCorrupt, match="was changed after it was written"):
        open_cache(path, header.kind, {})


@pytest.mark.parametrize("name", ["tokens-v1-checked.zarr", "view-bank-v1-checked.zarr"])
def test_checksums_of_a_cache_are_those_that_format_md_says(name):
    path = GOLDEN / name
    said = json.loads((path / "zarr.json").read_text())["attributes"]["fmcache"]
    canonical = json.dumps({**said, "checksum": ""}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert said["checksum"] == hashlib.sha256(canonical.encode()).hexdigest()
    array = {"tokens": "tokens", "view_bank": "masks"}[said["kind"]]
    assert said["array_sha256"] == hashlib.sha256((path / array / "zarr.json").read_bytes()).hexdigest()
    listed = (path / f"checksums-{said['checksums_sha256'][:16]}.bin").read_bytes()
    assert said["checksums_sha256"] == hashlib.sha256(listed).hexdigest()
    axes = 3 if said["kind"] == "tokens" else 2
    described = json.loads((path / array / "zarr.json").read_text())
    found, block = [], described["chunk_grid"]["configuration"]["chunk_shape"][1]
    for tile, stored in enumerate(said["stored"]):
        for view in range(stored):
            shard = (path / array / "c" / str(tile) / str(view // block) / "/".join("0" * axes)).read_bytes()
            index = np.frombuffer(shard[-4 - 16 * block : -4], "<u8").reshape(-1, 2)
            offset, length = index[view % block].tolist()
            found.append(shard[offset : offset + length][-4:])
    assert listed == b"".join(found)


def test_a_cache_is_complete_only_if_it_holds_what_is_asked_for_and_nothing_is_left_to_do(tmp_path):
    path = tmp_path / "t.zarr"
    fill(path)

    def complete(**changed):
        asked = {"kind": "tokens", "expected": IDENTITY, "demand": DEMAND} | changed
        return is_complete(path, asked["kind"], asked["expected"], asked["demand"])

    assert complete()
    assert complete(expected={"tap": "last"})
    assert not complete(kind="view_bank")
    assert not complete(expected=IDENTITY | {"store": "another"})
    tile = next(iter(DEMAND))
    assert not complete(demand=DEMAND | {tile: DEMAND[tile] + 1})
    assert not complete(demand=DEMAND | {"unknown": 1})
    owner = path.with_name(f".{path.name}.lock.owner")
    for left in (owner, path.with_name(f".{path.name}.77.removed"), path / "checksums-0123456789abcdef.bin"):
        left.touch()
        assert not complete(), left
        left.unlink()
    for folder in ("filling", "damaged"):
        (path / folder).mkdir()
        (path / folder / "0.0").touch()
        assert not complete(), folder
        shutil.rmtree(path / folder)
    assert complete()
    next(file for file in (path / "tokens" / "c").rglob("*") if file.is_file()).unlink()
    assert not complete()
    assert not is_complete(tmp_path / "none.zarr", "tokens", {}, {})


def test_a_shard_made_for_a_cache_that_was_replaced_is_refused_and_writes_nothing(tmp_path):
    path = tmp_path / "x.zarr"
    (shard, _) = fill(path, seal=False)
    old = read_header(path).fingerprint
    values = np.stack([value_of(shard.tile, view) for view in range(shard.first, shard.stop)])
    write_shard(path, "tokens", shard, values, old)
    fill(path, IDENTITY | {"precision": "bfloat16"}, recompute=True)  # meanwhile, another command
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(Busy, match="another command has replaced or enlarged"):
        write_shard(path, "tokens", shard, values + 1, old)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
