"""A study whose working folder is a URL: equal to a local one byte for byte, resumed, refused, read once."""

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import google_crc32c as crc32c
import msgspec
import numpy as np
import pytest
import torch
import yaml
import zarr
from typer.testing import CliRunner

import fmcache
from fmcache.cache import layout, writer
from fmcache.cache.reader import open_cache
from fmcache.cli import app
from fmcache.errors import Busy, CacheCorrupt, CacheNotFound, CacheUnsealed, StoreUnavailable
from fmcache.manifest import Manifest
from fmcache.remote import cache_copies, lease, result_copies, uploads
from fmcache.remote.copies import home_of, local_work
from fmcache.remote.objects import Objects
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import at_url, places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.stages.report import report

URL = "s3://bucket/teams/ours"
MANIFEST = {
    "format": 1,
    "default": "toy",
    "datasets": {
        "toy": {
            "format": "demo", "seed": 1, "size_px": 32, "source": "drawn", "licence": "MIT",
            "labels": [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))],
            "tiles": [{"id": f"t{i}"} for i in range(5)],
            "splits": {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3", "t4"]},
        }
    },
}  # fmt: skip
SHARDS = 2 * 2 + 3
"""Of one cache: two training tiles of four views, three tiles of one view, two views a shard."""


def recipe(views=3, **fit):
    return Recipe(
        name="toy", datasets=("toy",), encoders=("raw-pixels",), tile_px=32, views=ViewSpec(count=views),
        decoder=DecoderSpec(width=4), fit=FitSpec(**{"seeds": 2, "epochs": 2, "batch": 2} | fit),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """One thread, shards of two views, the manifest in the current folder, uploads that start soon."""
    before = torch.get_num_threads()
    monkeypatch.setattr(writer, "plan_layout", lambda *a: layout.plan_layout(*a)._replace(block=2))
    monkeypatch.setattr(uploads, "POLL_S", 0.05)
    monkeypatch.chdir(tmp_path)
    Path("data_manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    yield
    torch.set_num_threads(before)


def run(stage, work=URL, of=None, **flags):
    lines = []
    failures = stage(
        of or recipe(), Manifest(Path("data_manifest.yaml")), Flags(local_work(work), "cpu", 1, **flags), lines.append
    )
    if failures:
        raise failures[0].error
    return lines


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Return a function that moves to another machine: one without a local copy."""

    def move(name="elsewhere"):
        monkeypatch.setenv("FMCACHE_COPIES", str(tmp_path / name))

    return move


def at(server, part=""):
    """Return the bytes of the objects below the URL, leases left out."""
    found = {}
    for one in server.client.list_objects_v2(Bucket="bucket", Prefix="teams/ours/").get("Contents", ()):
        if part in one["Key"] and not one["Key"].endswith(".lock"):
            body = server.client.get_object(Bucket="bucket", Key=one["Key"])["Body"].read()
            found[one["Key"].removeprefix("teams/ours/")] = body
    return found


def on_disk(work):
    names = ("cache", "results")
    files = [file for name in names for file in (work / name).rglob("*") if not file.name.startswith(".")]
    return {file.relative_to(work).as_posix(): file.read_bytes() for file in files if file.is_file()}


def timeless(files):
    """Return the sha256 of files by name, without the times that a command took."""
    hashes = {}
    for name, data in files.items():
        if name.endswith("run.json"):
            said = {k: v for k, v in json.loads(data).items() if k not in ("wall_s", "extraction", "sha256")}
            data = json.dumps(said).encode()
        elif name.endswith(".zarr/zarr.json"):
            said = json.loads(data)["attributes"]["fmcache"]
            said["about"].pop("extraction", None)
            data = json.dumps({k: v for k, v in said.items() if k != "checksum"}).encode()
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What the same study has in a local working folder."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "plan_layout", lambda *a: layout.plan_layout(*a)._replace(block=2))
        patch.chdir(folder)
        run(extract, folder / "work")
        run(fit, folder / "work")
    return timeless(on_disk(folder / "work"))


def tokens(of=None):
    return places.tokens_path(local_work(URL), "toy", "raw-pixels", of or recipe(), "last")


def test_a_study_at_a_url_equals_a_local_one_and_the_second_run_reads_no_shard(server, local, elsewhere):
    run(extract)
    sent = server.of("PUT", ".zarr/tokens/c/") + server.of("PUT", ".zarr/masks/c/")
    assert len(sent) == len(set(sent)) == 2 * SHARDS  # one request for each shard
    run(fit)
    assert timeless(at(server)) == local
    assert len(local) > 2 * SHARDS + 12
    assert at(server) == on_disk(local_work(URL))
    server.clear()
    run(fit, of=recipe(seeds=3))  # the copy has everything
    assert server.of("GET", "/c/") == []
    run(extract)
    assert server.of("GET", "/c/") + server.of("PUT", "/c/") == []

    elsewhere()
    server.clear()
    lines = run(fit, of=recipe(seeds=3))
    assert "0 of 3 runs to do" in "\n".join(lines)
    assert len(server.of("GET", "/c/")) == 2 * SHARDS
    elsewhere("a third machine")
    at_url.fetch_results(local_work(URL))
    for folder in places.results(local_work(URL)).rglob("seed-002"):
        assert folder.is_dir()
    server.clear()
    run(fit, of=msgspec.structs.replace(recipe(views=1), name="fewer"))
    assert len(server.of("GET", "/c/")) == 2 * 5  # views 0 and 1 of each tile: one shard


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """The files of a cache of tokens and one of masks in which a training tile has six views in one shard."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(extract, folder / "work", recipe(views=5))
    return on_disk(folder / "work")


@pytest.fixture
def shards_of_six(server, sealed, tmp_path):
    """The same caches at the URL, and in the local folder `work`."""
    for name, data in sealed.items():
        server.client.put_object(Bucket="bucket", Key=f"teams/ours/{name}", Body=data)
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_bytes(data)
    server.clear()
    return {name: data for name, data in sealed.items() if re.search("/c/[01]/", name)}  # of the training tiles


def index_of(shard):
    """Return (offset, length) of each chunk of a shard of six views."""
    numbers = struct.unpack("<12Q", shard[-100:-4])
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def read_of(server, name):
    """Return (bytes asked for, bytes sent) of each read of an object, and forget it."""
    found = [(asked, sent) for path, asked, sent in server.answers if path.endswith(name)]
    server.answers = [one for one in server.answers if not one[0].endswith(name)]
    return found


def few(views, **more):
    return msgspec.structs.replace(recipe(views=views, seeds=1, epochs=1), name=f"few-{views}", **more)


def results_of(work):
    return {k: v for k, v in timeless(on_disk(work)).items() if k.startswith("results/")}


def test_a_fit_that_counts_fewer_views_reads_only_their_bytes_and_equals_a_local_one(server, shards_of_six, tmp_path):
    run(fit, of=few(1))
    for name, shard in shards_of_six.items():
        (first, one), (second, other) = index_of(shard)[:2]
        assert second == first + one  # neighbours: one request
        assert read_of(server, name) == [("bytes=-100", 100), (f"bytes={first}-{second + other - 1}", one + other)]
        held = (local_work(URL) / name).read_bytes()
        assert held[:-100] == shard[first : second + other]
        assert index_of(held) == [(0, one), (one, other)] + [(2**64 - 1, 2**64 - 1)] * 4
        assert crc32c.value(held[-100:-4]).to_bytes(4, "little") == held[-4:]
    whole = [(asked, sent) for path, asked, sent in server.answers if "/c/" in path]
    assert [asked for asked, _ in whole] == [""] * 2 * 3  # validation and test tiles have one view
    run(fit, tmp_path / "work", of=few(1))
    assert results_of(local_work(URL)) == results_of(tmp_path / "work")
    server.clear()
    run(fit, of=few(1, fit=FitSpec(seeds=2, epochs=1, batch=2)))
    assert server.of("GET", "/c/") == []


def test_no_reader_takes_a_hole_of_a_partial_shard_for_data(server, shards_of_six, sealed):
    run(fit, of=few(1))
    path = tokens(few(5))
    cache = open_cache(path)
    assert cache.read("t0", 0, 2).shape[0] == 2
    with pytest.raises(CacheCorrupt, match="views of tile 't0' are missing"):
        cache.read("t0", 1, 3)
    array = zarr.open_group(path, mode="r")["tokens"]
    assert np.isnan(array[0, 2:]).all()
    assert not np.isnan(array[0, :2]).any()


def test_a_partial_shard_grows_by_what_it_lacks_and_a_whole_one_is_read_in_one_request(
    server, shards_of_six, sealed, tmp_path
):
    run(fit, of=few(1))
    server.clear()
    run(fit, of=few(3))
    for name, shard in shards_of_six.items():
        spans = index_of(shard)
        first, last = spans[2][0], sum(spans[3])
        assert read_of(server, name) == [("bytes=-100", 100), (f"bytes={first}-{last - 1}", last - first)]
        assert (local_work(URL) / name).read_bytes()[:-100] == shard[spans[0][0] : last]
    assert [path for path, *_ in server.answers if "/c/" in path] == []
    run(fit, tmp_path / "work", of=few(3))
    run(fit, of=few(5))
    for name, shard in shards_of_six.items():
        assert read_of(server, name) == [("", len(shard))]
    run(fit, tmp_path / "work", of=few(5))
    assert {k: v for k, v in on_disk(local_work(URL)).items() if k in sealed} == sealed
    assert {k: v for k, v in results_of(tmp_path / "work").items() if "few-1" not in k} == {
        k: v for k, v in results_of(local_work(URL)).items() if "few-1" not in k
    }


def test_an_extract_reads_the_rest_of_partial_shards_and_never_uploads_one(server, shards_of_six, sealed, tmp_path):
    run(fit, of=few(1))
    server.clear()
    run(extract, of=recipe(views=5))
    assert sorted(path.removeprefix("/bucket/teams/ours/") for path in server.of("GET", "/c/")) == sorted(shards_of_six)
    assert server.of("PUT", "/c/") == []
    assert {k: v for k, v in at(server).items() if k in sealed} == sealed


def test_a_cache_that_grows_from_partial_shards_equals_a_local_one(server, shards_of_six, tmp_path, elsewhere):
    run(fit, of=few(1))
    run(extract, of=recipe(views=7))
    run(extract, tmp_path / "work", of=recipe(views=7))
    expected = timeless({k: v for k, v in on_disk(tmp_path / "work").items() if ".zarr/" in k})
    assert timeless(at(server, ".zarr/")) == expected


def test_a_partial_shard_stays_when_another_machine_extends_the_cache(server, shards_of_six, elsewhere):
    run(fit, of=few(1))
    elsewhere()
    run(extract, of=recipe(views=7))
    elsewhere("copies")
    server.clear()
    run(fit, of=few(1, fit=FitSpec(seeds=2, epochs=1, batch=2)))
    assert server.of("GET", "/c/") == []
    run(fit, of=few(7))  # now the copy has all
    server.clear()
    run(extract, of=recipe(views=7))
    assert server.of("GET", "/c/") + server.of("PUT", "/c/") == []


def test_shards_of_another_cache_in_the_copy_are_read_again_when_the_header_changes(
    server, shards_of_six, tmp_path, elsewhere
):
    run(fit, of=few(1))
    folder = tokens(few(5)) / "tokens" / "c"
    for one, other in (("0", "1"), ("3", "4")):  # partial shards, and whole ones
        (folder / one).rename(folder / "kept")
        (folder / other).rename(folder / one)
        (folder / "kept").rename(folder / other)
    elsewhere()
    run(extract, of=recipe(views=7))
    elsewhere("copies")
    again = msgspec.structs.replace(few(1), name="again")
    run(fit, of=again)
    run(fit, tmp_path / "work", of=again)
    assert {k: v for k, v in results_of(local_work(URL)).items() if "/again/" in k} == results_of(tmp_path / "work")


def test_verify_reads_partial_shards_whole(server, shards_of_six, sealed):
    run(fit, of=few(1))
    server.clear()
    assert command("cache", "verify", "--work", URL)[0] == 0
    assert {k: v for k, v in on_disk(local_work(URL)).items() if k in sealed} == sealed


def test_an_interrupted_read_of_parts_resumes_with_the_missing_ones(server, shards_of_six, sealed):
    asked = []

    def after_the_index(method, path):
        if method == "GET" and "tokens/c/1/" in path:
            asked.append(path)
            return ("403 Forbidden", "AccessDenied") if len(asked) == 2 else None
        return None

    server.fail = after_the_index
    with pytest.raises(StoreUnavailable, match=r"refused to read s3://bucket/teams/ours/cache.*/tokens/c/1/0"):
        run(fit, of=few(1))
    assert not [file for file in (tokens(few(5)) / "tokens" / "c" / "1").rglob("*") if file.is_file()]
    server.fail = None
    server.clear()
    run(fit, of=few(1))
    read = {name for name in sealed for path in server.of("GET", "/c/") if path.endswith(name)}
    assert [name for name in read if "tokens/c/1/" in name]
    assert not [name for name in read if "masks/c/" in name]


@pytest.mark.parametrize("part", ["chunk", "index", "replaced"])
def test_a_damaged_part_is_refused_and_what_is_not_read_may_be_damaged(server, shards_of_six, part):
    (name,) = [name for name in shards_of_six if "tokens/c/0/" in name]
    key, shard = f"teams/ours/{name}", bytearray(shards_of_six[name])
    spans = index_of(shard)

    def put(position):
        data = bytearray(shard)
        data[position] ^= 1
        server.client.put_object(Bucket="bucket", Key=key, Body=bytes(data))

    if part == "replaced":  # between the request for the index and that for the chunks

        def between(method, path):
            if method == "GET" and path.endswith(name):
                between.asked += 1
                if between.asked == 2:
                    server.fail = None
                    put(spans[5][0])

        between.asked, server.fail = 0, between
    else:
        put(spans[1][0] + 3 if part == "chunk" else -50)
    with pytest.raises(CacheCorrupt, match=r"s3://.*tokens/c/0/0/0/0/0 is damaged, or was written") as refused:
        run(fit, of=few(1))
    assert "cache verify s3://" in refused.value.next_step
    assert not (local_work(URL) / name).exists()
    put(spans[5][0] + 3)
    run(fit, of=few(1))


@pytest.mark.parametrize("listed", [True, False], ids=["encoders in the recipe", "every cached encoder"])
def test_a_damaged_shard_at_the_url_fails_its_encoder_and_the_others_are_fitted(server, elsewhere, listed):
    two = msgspec.structs.replace(recipe(), encoders=("raw-pixels", "colour-texture"))
    run(extract, of=two)
    (name,) = [name for name in at(server, "raw-pixels") if "tokens/c/0/0/" in name]
    server.client.put_object(Bucket="bucket", Key=f"teams/ours/{name}", Body=b"damaged")
    elsewhere()
    flags = Flags(local_work(URL), "cpu", 1)
    asked = two if listed else msgspec.structs.replace(two, encoders=())
    (failure,) = fit(asked, Manifest(Path("data_manifest.yaml")), flags, lambda _: None)
    assert failure[:2] == ("toy", "raw-pixels")
    assert isinstance(failure.error, CacheCorrupt)
    assert failure.error.problem.startswith(f"{URL}/{name} is damaged")
    assert {path.parts[-3] for path in (flags.work / "results").rglob("run.json")} == {"colour-texture"}


def test_grids_of_an_encoder_are_read_without_those_of_others(server, elsewhere):
    two = msgspec.structs.replace(recipe(), encoders=("raw-pixels", "colour-texture"))
    run(extract, of=two)
    elsewhere()
    server.clear()
    study = fmcache.Study(two, work=URL, device="cpu", threads=1)
    assert study.grids("toy", "colour-texture", "test").tokens.shape[:2] == (2, 1)
    assert server.of("GET", "colour-texture")
    assert not server.of("GET", "raw-pixels")


def test_a_damaged_chunk_of_a_partial_shard_in_the_copy_is_read_again(server, shards_of_six):
    run(fit, of=few(1))
    (name,) = [name for name in shards_of_six if "tokens/c/0/" in name]
    copy = local_work(URL) / name
    data = bytearray(copy.read_bytes())
    data[3] ^= 1
    copy.write_bytes(bytes(data))
    server.clear()
    run(fit, of=few(3))
    (one, length), *_, (other, last) = index_of(shards_of_six[name])[:4]
    second = one + length
    third = index_of(shards_of_six[name])[2][0]
    assert [asked for asked, _ in read_of(server, name)] == [
        "bytes=-100", f"bytes={one}-{second - 1}", f"bytes={third}-{other + last - 1}",
    ]  # fmt: skip
    assert copy.read_bytes()[:-100] == shards_of_six[name][one : other + last]


def test_a_partial_shard_is_never_uploaded(server, shards_of_six, sealed):
    run(fit, of=few(1))
    (name,) = [name for name in shards_of_six if "tokens/c/0/" in name]
    partial = (local_work(URL) / name).read_bytes()
    copy = cache_copies.CacheCopy(home_of(local_work(URL)), tokens(few(5)))
    with pytest.raises(CacheCorrupt, match="is not uploaded"), copy.writing():
        assert (local_work(URL) / name).read_bytes() == sealed[name]
        (local_work(URL) / name).write_bytes(partial)
    assert at(server, name) == {name: sealed[name]}


def test_any_zarr_reader_opens_the_cache_at_the_url_as_the_format_says(server):
    run(extract)
    group = {name.split(".zarr/")[1]: data for name, data in at(server, "raw-pixels").items()}
    store = zarr.storage.MemoryStore({name: zarr.core.buffer.cpu.Buffer.from_bytes(d) for name, d in group.items()})
    array = zarr.open_group(store, mode="r")["tokens"]
    assert array.shape[:2] == (5, 4)
    assert (array[0, 3] == zarr.open_group(tokens(), mode="r")["tokens"][0, 3]).all()


def test_a_report_by_url_is_that_of_the_machine_which_fitted(server, elsewhere):
    run(extract)
    run(fit)

    def reported():
        work = local_work(URL)
        at_url.fetch_results(work)
        report(places.results(work), places.reports(work), "toy")
        return {p.relative_to(work): p.read_bytes() for p in places.reports(work).rglob("*") if p.is_file()}

    here = reported()
    elsewhere()
    server.clear()
    assert reported() == here
    assert server.of("GET", ".zarr") == []
    server.clear()
    at_url.fetch_results(local_work(URL))
    assert server.of("GET", "results/") == []


def test_another_machine_extends_a_cache_and_an_old_copy_follows(server, tmp_path, elsewhere):
    run(extract)
    elsewhere()
    run(extract, of=recipe(views=4))
    run(extract, tmp_path / "work", of=recipe())
    run(extract, tmp_path / "work", of=recipe(views=4))
    assert timeless(at(server, ".zarr")) == timeless(
        {k: v for k, v in on_disk(tmp_path / "work").items() if ".zarr" in k}
    )
    elsewhere("copies")
    server.clear()
    run(fit, of=recipe(views=4))
    # views 0-3 of the training tiles are the same chunks; only the third shard of each is new
    assert len(server.of("GET", "/c/")) == 2 * 2
    assert on_disk(local_work(URL)) == at(server)


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import test_url
import fmcache
from fmcache.cache import layout, writer
from fmcache.cli import app
from fmcache.remote import objects, uploads
writer.plan_layout = lambda *a: layout.plan_layout(*a)._replace(block=2)
uploads.POLL_S = 0.05
send, sent = objects.Objects.write, []
def write(self, key, data, *more):
    if "raw-pixels" in key:
        sent.append(key)
        if [one for one in sent if {part!r} in one][{number}:]:
            os.kill(os.getpid(), signal.SIGKILL)
    send(self, key, data, *more)
objects.Objects.write = write
test_url.run(test_url.extract)
"""


@pytest.mark.parametrize(("part", "number"), [("tokens/c/", 3), ("float16.zarr/zarr.json", 1)])
def test_a_killed_upload_never_looks_complete_and_is_resumed_on_another_machine(
    server, local, monkeypatch, elsewhere, part, number
):
    code = KILLED.format(here=str(Path(__file__).parent), part=part, number=number)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    shards = sorted(at(server, "tokens/c/"))
    assert len(shards) == SHARDS if number == 1 else len(shards) <= 3
    elsewhere()
    ((_, cache), (_, masks)) = at_url.list_caches(local_work(URL))
    assert (cache.header.state, masks.header.state) == ("filling", "sealed")
    with pytest.raises((CacheUnsealed, CacheNotFound)):
        run(fit)
    with pytest.raises(Busy, match="another process is writing s3://") as refused:
        run(extract)
    assert "process" in refused.value.found
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.3)
    time.sleep(2.1)
    server.clear()
    run(extract)
    assert len(server.of("PUT", "tokens/c/")) == SHARDS - len(shards)
    assert timeless(at(server, ".zarr")) == {name: sha256 for name, sha256 in local.items() if ".zarr" in name}


def test_an_interrupted_body_leaves_a_free_lease_and_no_seal(server):
    copy = cache_copies.CacheCopy(home_of(local_work(URL)), tokens())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), copy.writing():
            raise KeyboardInterrupt
    assert at(server) == {}


def test_a_second_writer_is_refused_by_name(server, elsewhere):
    run(extract)
    home = home_of(local_work(URL))
    elsewhere()
    with cache_copies.CacheCopy(home, home.folder / tokens().relative_to(local_work(URL))).writing():
        with pytest.raises(Busy, match="another process is writing s3://bucket") as refused:
            run(extract, of=recipe(views=5))
        assert f"process {os.getpid()} on" in refused.value.found
    with (
        lease.leased(home.objects, "results/.toy.lock"),
        pytest.raises(Busy, match=r"s3://bucket/teams/ours/results/\.toy\.lock"),
    ):
        run(fit)


def test_a_refusal_in_the_middle_keeps_the_work_and_the_next_command_uploads_it(server):
    server.fail = lambda method, path: (
        ("403 Forbidden", "AccessDenied") if method == "PUT" and "tokens/c/1/" in path else None
    )
    with pytest.raises(StoreUnavailable, match="refused to write s3://bucket/teams/ours/cache") as refused:
        run(extract)
    assert "rights" in refused.value.next_step
    (_, cache), _ = at_url.list_caches(local_work(URL))
    assert cache.header.state == "filling"
    server.fail = None
    written = {file: file.stat().st_mtime_ns for file in (tokens() / "tokens" / "c").rglob("0") if file.is_file()}
    run(extract)
    assert written == {file: file.stat().st_mtime_ns for file in written}
    assert at_url.list_caches(local_work(URL))[0][1].header.state == "sealed"


def test_a_run_without_its_record_is_not_complete(server, elsewhere):
    run(extract)
    run(fit)
    server.client.delete_object(Bucket="bucket", Key="teams/ours/results/toy/toy/raw-pixels/seed-001/run.json")
    elsewhere()
    at_url.fetch_results(local_work(URL))
    assert [f.name for f in places.results(local_work(URL)).rglob("seed-*")] == ["seed-000"]
    assert "1 of 2 runs to do" in "\n".join(run(fit))
    assert at(server, "results") == {k: v for k, v in on_disk(local_work(URL)).items() if "results" in k}


def test_a_folder_that_vanishes_while_an_upload_looks_for_work_ends_nothing(server, monkeypatch):
    raised = []

    def vanishing(listing, wanted):
        def look(self, *pattern):
            if threading.current_thread().name == "upload" and wanted(self, *pattern) and raised.count(listing) < 2:
                raised.append(listing)
                raise FileNotFoundError
            return listing(self, *pattern)

        return look

    monkeypatch.setattr(Path, "iterdir", vanishing(Path.iterdir, lambda self: self.name == "filling"))
    monkeypatch.setattr(Path, "rglob", vanishing(Path.rglob, lambda self, pattern: pattern == "seed-*"))
    monkeypatch.setattr(result_copies, "POLL_S", 0.01)
    monkeypatch.setattr(uploads, "POLL_S", 0.001)
    run(extract)
    run(fit)
    assert len(set(raised)) == 2
    assert at(server) == on_disk(local_work(URL))


def test_a_store_whose_etags_are_no_md5_gets_nothing_twice(server, monkeypatch):
    below = Objects.below
    monkeypatch.setattr(
        Objects, "below", lambda self, key: {k: one._replace(etag="0x8D") for k, one in below(self, key).items()}
    )
    run(extract)
    run(fit)
    server.clear()
    run(extract)
    run(fit)
    assert [path for path in server.of("PUT") if not path.endswith(".lock")] == []
    assert sorted(path.rpartition("/")[2] for path in server.of("GET", "/seed-")) == ["run.json"] * 2


def test_recompute_replaces_caches_and_runs_at_the_url(server):
    run(extract)
    run(fit)
    before = at(server)
    server.clear()
    run(extract, recompute=True)
    assert len(server.of("PUT", "/c/")) == 2 * SHARDS
    run(fit, recompute=True)
    assert len(server.of("PUT", "run.json")) == 2
    assert timeless(at(server)) == timeless(before)
    assert at(server) == on_disk(local_work(URL))


def command(*words):
    # wide enough for the longest name in a table, which would be wrapped otherwise
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(word) for word in words])
    return done.exit_code, done.output, done.exception


def test_caches_at_a_url_are_listed_shown_verified_and_removed(server, elsewhere):
    run(extract)
    run(fit)
    url = f"{URL}/{tokens().relative_to(local_work(URL))}"
    elsewhere()
    code, text, _ = command("cache", "ls", "--work", URL)
    assert (code, text.count("sealed"), url in text) == (0, 2, True)
    assert '"fingerprint"' in command("cache", "info", url)[1]
    assert server.of("GET", "/c/") == []
    server.clear()
    code, text, _ = command("cache", "verify", "--work", URL)
    assert (code, text.count("no problems"), f"{url}: no problems" in text) == (0, 3, True)
    assert len(server.of("GET", "/c/")) == 2 * SHARDS

    (key,) = [f"teams/ours/{key}" for key in at(server, "tokens/c/1/1/")]
    data = bytearray(server.client.get_object(Bucket="bucket", Key=key)["Body"].read())
    data[5] ^= 1
    server.client.put_object(Bucket="bucket", Key=key, Body=bytes(data))
    lost = next(iter(at(server, "tokens/c/4/0/")))
    server.client.delete_object(Bucket="bucket", Key=f"teams/ours/{lost}")
    code, text, _ = command("cache", "verify", url)
    assert (code, "tile t1 view 2" in text, "tile t4 view 0" in text, "2 damaged shards" in text) == (
        1,
        True,
        True,
        True,
    )
    elsewhere("a third machine")
    server.clear()
    run(extract)
    assert sorted(server.of("PUT", "/c/")) == sorted(f"/bucket/{name}" for name in (key, f"teams/ours/{lost}"))
    assert command("cache", "verify", url)[0] == 0
    assert at(server, "damaged") == {}

    code, text, _ = command("cache", "rm", "--yes", url)
    assert (code, "freed" in text) == (0, True)
    assert at(server, "raw-pixels/32px") == {}
    assert not tokens().exists()
    assert command("cache", "rm", "--yes", url)[0] == 1
    elsewhere()  # its copy still has the cache; the URL decides
    with pytest.raises(CacheNotFound):
        run(fit)


def test_commands_report_what_is_wrong_with_a_url(server, elsewhere):
    code, _, error = command("report", "--work", "s3://absent/a")
    assert (code, "NoSuchBucket" in str(error)) == (1, True)
    code, _, error = command("plan", "--work", "ftp://bucket/a")
    assert (code, "s3://BUCKET/PREFIX" in str(error)) == (1, True)


def test_pins_of_two_machines_are_joined_and_the_first_stays(server, elsewhere):
    def pinned():
        file = places.weights_lock(local_work(URL))
        result_copies.share_pins(home_of(local_work(URL)), file)
        return yaml.safe_load(file.read_text()) if file.exists() else {}

    assert pinned() == {}
    places.weights_lock(local_work(URL)).write_text("# weights\na: {revision: 1}\n")
    assert pinned() == {"a": {"revision": 1}}
    elsewhere()
    places.weights_lock(local_work(URL)).write_text("# weights\na: {revision: 2}\nb: {revision: 2}\n")
    assert pinned() == {"a": {"revision": 1}, "b": {"revision": 2}}
    assert places.weights_lock(local_work(URL)).read_text().startswith("# weights\n")
    elsewhere("copies")
    assert pinned() == {"a": {"revision": 1}, "b": {"revision": 2}}


def test_the_commands_and_the_python_interface_take_a_url(server, local, elsewhere):
    fields = {"fit": {"seeds": 2, "epochs": 2, "batch": 2}, "decoder": {"width": 4}, "views": {"count": 3}}
    fields |= {"name": "toy", "datasets": ["toy"], "encoders": ["raw-pixels"], "tile_px": 32}
    Path("recipe.yaml").write_text(yaml.safe_dump(fields))
    code, text, error = command("run", "recipe.yaml", "--work", URL, "--device", "cpu", "--threads", "1")
    assert (code, "report: " in text) == (0, True), error
    differing = [name for name, sha256 in timeless(at(server)).items() if local.get(name) != sha256]
    assert [name for name in differing if not name.endswith("run.json")] == []  # a file writes encoders in full
    elsewhere()
    study = fmcache.Study("recipe.yaml", work=URL, device="cpu", threads=1)
    assert study.results()["seed"].unique().to_list() == [0, 1]
    assert len(study.grids("toy", "raw-pixels", "test")) == 2
