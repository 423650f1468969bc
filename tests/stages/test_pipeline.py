"""Both stages on the drawn tiles, in small: what the cache must not change, interruption, workers, walls."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
import yaml

from fmcache.cache.reader import open_cache
from fmcache.cache.writer import Writer
from fmcache.datasets.split import split
from fmcache.decoders.decoder import Decoder
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import train
from fmcache.demand import demands
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import grids_of_views, token_grids
from fmcache.errors import (
    CacheCorrupt,
    CacheMismatch,
    CacheNotFound,
    CacheUnsealed,
    NoRoom,
    ResultsMismatch,
    SpecError,
    TileError,
)
from fmcache.grid import GridGeometry
from fmcache.locks import locked
from fmcache.manifest import Manifest
from fmcache.report.summary import summarise
from fmcache.runtime.devices import Where
from fmcache.scores.run_files import find_runs, read_run, studies
from fmcache.specs import DecoderSpec, EncoderChoice, FitSpec, Recipe, ViewSpec
from fmcache.stages import encoder_runs, places, shards
from fmcache.stages import fit as fit_stage
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.stages.report import report
from fmcache.tiles.images import read_tile, resize_tile
from fmcache.tiles.views import render_mask, render_view

TINY = {
    "name": "tiny", "title": "Tiny ViT", "architecture": "vit_tiny_patch16_224",
    "arguments": {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}, "patch": 16, "width": 24,
    "prefix_tokens": 1, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "random_weights": True,
}  # fmt: skip
MANIFEST = {
    "format": 1,
    "default": "toy",
    "datasets": {
        "toy": {
            "format": "demo", "seed": 1, "size_px": 64, "source": "drawn", "licence": "MIT",
            "labels": [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))],
            "tiles": [{"id": f"t{i}"} for i in range(6)],
            "splits": {"train": ["t0", "t1", "t2"], "val": ["t3"], "test": ["t4", "t5"]},
        }
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return Manifest(folder / "data_manifest.yaml")


@pytest.fixture
def recipe(folder):
    return Recipe(
        name="toy",
        encoders=("raw-pixels", str(folder / "tiny.yaml")),
        tile_px=64,
        views=ViewSpec(count=4),
        decoder=DecoderSpec(width=6),
        fit=FitSpec(seeds=2, epochs=4, batch=2, validate_epochs=2, learning_rate=1e-2),
    )


AT = Where("cpu", "cpu", threads=1, processes=1)


def flags(work, **kwargs):
    return Flags(work, device="cpu", threads=1, **kwargs)


def jobs(recipe, manifest, work):
    (demand,) = demands(recipe, manifest)
    return fit_stage._runs_of_dataset(recipe, demand, AT, flags(work))[0]


def quiet(_):
    pass


def runs(work, study="toy"):
    return {
        (part.record.encoder.name, part.record.seed): part
        for part in map(read_run, find_runs(places.results(work), study))
    }


def change(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


class InTheLoop:
    """The usual way: render, encode and train, nothing stored."""

    def __init__(self, recipe, manifest, encoder, grid):
        self.tiles, self.views = manifest.dataset().splits.train, range(1, recipe.views.count + 1)
        self.recipe, self.encoder, self.grid = recipe, encoder, grid
        dataset = manifest.dataset()
        self.read = {e.id: resize_tile(read_tile(dataset, e, manifest.folder), recipe.tile_px) for e in dataset.tiles}

    def fetch(self, step, device):
        tokens, masks = [], []
        for tile, view in step.tolist():
            name, index = self.tiles[tile], self.views[view]
            image = render_view(self.recipe.views, "toy", name, index, self.read[name].image)
            tokens.append(token_grids(self.encoder, image[np.newaxis], self.grid, "float32")[0])
            masks.append(torch.from_numpy(render_mask(self.recipe.views, "toy", name, index, self.read[name].mask)))
        return torch.stack(tokens), torch.stack(masks)


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_training_from_the_cache_equals_training_with_the_encoder_in_the_loop(
    tmp_path, folder, manifest, recipe, store
):
    recipe = change(recipe, store=store, encoders=(str(folder / "tiny.yaml"),))
    assert extract(recipe, manifest, flags(tmp_path), quiet) == []
    (job,) = jobs(recipe, manifest, tmp_path)
    cached = encoder_runs._load(job)
    encoder = load_encoder(EncoderChoice(str(folder / "tiny.yaml")), torch.device("cpu"))
    grid = GridGeometry(64, 16)
    curves = []
    for source in (cached.train, InTheLoop(recipe, manifest, encoder, grid)):
        fitted = train(replace(cached, train=source, decoder=Decoder(Shape((24,), 6, 3, grid))), 0)
        curves.append([epoch.loss for epoch in fitted.curve])
    difference = np.abs(np.subtract(*curves)).max()
    assert difference < (1e-6 if store == "float32" else 1e-3)
    assert curves[0][0] != curves[0][-1]  # it did train


def test_a_sweep_writes_a_whole_part_per_run_and_a_rerun_does_nothing(tmp_path, manifest, recipe, contents):
    assert extract(recipe, manifest, flags(tmp_path), quiet) == fit(recipe, manifest, flags(tmp_path), quiet) == []
    parts = runs(tmp_path)
    assert sorted(parts) == [("raw-pixels", 0), ("raw-pixels", 1), ("tiny", 0), ("tiny", 1)]
    part = parts["tiny", 1]
    assert part.counts.group_by("split", "tile").len().height == 3
    per_tile = part.counts.group_by("tile").agg((pl.col("tp") + pl.col("fn")).sum().alias("px"))
    assert (per_tile["px"] == 64 * 64).all()
    assert part.record.encoder.random_weights
    assert part.record.encoder.display == "Tiny ViT (random weights)"
    assert (part.record.dataset_source, part.record.dataset_licence) == ("drawn", "MIT")
    assert part.curve["val_dice"].is_not_null().to_list() == [False, True, False, True]
    before = contents(tmp_path)
    lines = []
    assert extract(recipe, manifest, flags(tmp_path), lines.append) == []
    assert fit(recipe, manifest, flags(tmp_path), lines.append) == []
    assert sum("complete" in line for line in lines) == 3
    assert any("0 of 4 runs" in line for line in lines)
    assert contents(tmp_path) == before


def test_one_seed_alone_equals_the_same_seed_in_a_sweep_and_two_seeds_differ(tmp_path, manifest, recipe):
    extract(recipe, manifest, flags(tmp_path), quiet)
    fit(recipe, manifest, flags(tmp_path), quiet)
    sweep = runs(tmp_path)
    part = places.results(tmp_path) / "toy" / "toy" / "tiny" / "seed-001"
    weights = (part / "decoder.safetensors").read_bytes()
    shutil.rmtree(part)
    fit(recipe, manifest, flags(tmp_path), quiet)
    alone = runs(tmp_path)["tiny", 1]
    assert alone.counts.equals(sweep["tiny", 1].counts)
    assert alone.curve.equals(sweep["tiny", 1].curve)
    assert (part / "decoder.safetensors").read_bytes() == weights
    assert not alone.curve.equals(sweep["tiny", 0].curve)


def test_seeds_in_lanes_equal_the_same_seeds_on_one_thread_each_bit_for_bit(tmp_path, manifest, recipe):
    recipe = change(recipe, encoders=("raw-pixels",), fit=change(recipe.fit, seeds=3))
    lines = []
    for name, threads in (("alone", 1), ("lanes", 2)):
        own = flags(tmp_path / name)._replace(threads=threads)
        extract(recipe, manifest, own, quiet)
        assert fit(recipe, manifest, own, lines.append) == []
    alone, lanes = runs(tmp_path / "alone"), runs(tmp_path / "lanes")
    assert [part.record.together for part in alone.values()] == [1, 1, 1]
    assert [(part.record.together, part.record.threads) for part in lanes.values()] == [(2, 1), (2, 1), (1, 1)]
    assert any("up to 2 concurrently" in line for line in lines)
    for seed in (0, 1):
        assert lanes["raw-pixels", seed].counts.equals(alone["raw-pixels", seed].counts)
        assert lanes["raw-pixels", seed].curve.equals(alone["raw-pixels", seed].curve)


def test_no_more_than_one_encoder_and_one_set_of_grids_is_alive_at_a_time(tmp_path, manifest, recipe, monkeypatch):
    """Weak references to all that is loaded; when the next is asked for, the one before must be gone."""
    recipe = change(recipe, encoders=("raw-pixels", "random-vits16", "colour-texture"))
    loaded, alive = [], []
    load_module, load_tokens = shards.load_encoder, encoder_runs.load_token_grids

    def count():
        alive.append(sum(one() is not None for one in loaded))

    def load_encoder(*arguments, **options):
        count()
        encoder = load_module(*arguments, **options)
        loaded.append(weakref.ref(encoder.module))
        return encoder

    def load_grids(*arguments, **options):
        if arguments[3] != range(1):  # training grids come first, then those of validation and test
            count()
        grids = load_tokens(*arguments, **options)
        loaded.append(weakref.ref(grids.tokens))
        return grids

    monkeypatch.setattr(shards, "load_encoder", load_encoder)
    monkeypatch.setattr(encoder_runs, "load_token_grids", load_grids)
    assert extract(recipe, manifest, flags(tmp_path), quiet) == []
    assert alive == [0, 0, 0]
    count()
    assert fit(recipe, manifest, flags(tmp_path), quiet) == []
    count()
    assert alive[3:] == [0] * 5
    assert len(loaded) == 3 + 9


def test_an_extract_of_what_is_complete_loads_no_torch(tmp_path, folder, recipe, manifest):
    assert extract(recipe, manifest, flags(tmp_path), quiet) == []
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(recipe)))
    command = ["extract", "--recipe", str(tmp_path / "r.yaml"), "--work", str(tmp_path), "--device", "cpu"]
    command += ["--manifest", str(folder / "data_manifest.yaml")]
    script = "import sys\nfrom fmcache.cli import main\ntry:\n    main()\nfinally:\n    "
    script += "print('loaded:', *sorted({'torch', 'timm', 'zarr'} & set(sys.modules)))"
    for lost, loads in ((False, "loaded: zarr"), (True, "loaded: timm torch zarr")):
        if lost:
            cache = places.tokens_path(tmp_path, "toy", "raw-pixels", recipe, "last")
            next(file for file in (cache / "tokens" / "c").rglob("*") if file.is_file()).unlink()
        ended = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines()[-1] == loads
        assert ended.stdout.count("complete") == 3 - lost


@pytest.mark.slow
def test_dask_workers_give_the_same_caches_and_results_as_the_serial_runner(tmp_path, manifest, recipe, contents):
    for name, workers in (("serial", 0), ("dask", 2)):
        assert extract(recipe, manifest, flags(tmp_path / name, workers=workers), quiet) == []
        assert fit(recipe, manifest, flags(tmp_path / name, workers=workers), quiet) == []
    assert contents(tmp_path / "serial" / "cache") == contents(tmp_path / "dask" / "cache")
    serial, dask = runs(tmp_path / "serial"), runs(tmp_path / "dask")
    assert serial.keys() == dask.keys()
    for key, part in serial.items():
        assert part.counts.equals(dask[key].counts), key
        assert part.curve.equals(dask[key].curve), key


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_extraction_that_is_stopped_goes_on_and_ends_byte_for_byte_the_same(
    tmp_path, folder, recipe, manifest, how, contents
):
    many = change(recipe, views=ViewSpec(count=60), encoders=("random-vits16",))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(many)))
    command = [sys.executable, "-m", "fmcache", "extract", "--recipe", str(tmp_path / "r.yaml"), "--threads", "1"]
    command += [
        "--device",
        "cpu",
        "--manifest",
        str(folder / "data_manifest.yaml"),
        "--work",
        str(tmp_path / "stopped"),
    ]
    path = places.tokens_path(tmp_path / "stopped", "toy", "random-vits16", many, "last")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(path.glob("filling/*.*")):
            time.sleep(0.02)
        os.killpg(process.pid, how)
        errors = process.communicate()[1]
    assert process.returncode == (-how if how == signal.SIGKILL else 130), errors
    if how == signal.SIGINT:
        assert "the same command continues from there" in errors
    (demand,) = demands(many, manifest)
    unsealed, failures = fit_stage._runs_of_dataset(many, demand, AT, flags(tmp_path / "stopped"))
    assert unsealed == []
    assert isinstance(failures[0].error, CacheUnsealed)
    for name in ("stopped", "whole"):
        assert extract(many, manifest, flags(tmp_path / name), quiet) == []
    assert contents(tmp_path / "stopped" / "cache") == contents(tmp_path / "whole" / "cache")


def test_working_ahead_gives_the_tokens_of_one_tile_after_another(tmp_path, folder, manifest, recipe):
    extract(change(recipe, encoders=(str(folder / "tiny.yaml"),)), manifest, flags(tmp_path), quiet)
    path = places.tokens_path(tmp_path, "toy", "tiny", recipe, "last")
    cache = open_cache(path, "tokens", {})
    encoder = load_encoder(EncoderChoice(str(folder / "tiny.yaml")), torch.device("cpu"))
    dataset = manifest.dataset()
    for entry in dataset.tiles:
        image = resize_tile(read_tile(dataset, entry, manifest.folder), recipe.tile_px).image
        views = range(recipe.views.count + 1 if entry.id in dataset.splits.train else 1)
        rendered = [render_view(recipe.views, "toy", entry.id, view, image) for view in views]
        slow = [part for (part,) in grids_of_views(encoder, rendered, GridGeometry(64, 16), "float32", ("last",))]
        expected = torch.cat(slow).half().numpy()
        assert cache.read(entry.id, 0, len(views)).tobytes() == expected.tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_their_way_from_a_gpu_arrive_whole_and_in_order():
    batches = [torch.full((4, 8, 256, 256), i, device="cuda") * torch.ones((), device="cuda") for i in range(8)]
    under_way = [shards.HostCopy(batch.half()) for batch in batches]
    for i, one in enumerate(under_way):
        assert (one.arrived() == i).all()


def test_a_tile_that_fails_stops_the_work_and_what_was_encoded_before_is_kept(tmp_path, manifest, recipe, monkeypatch):
    recipe = change(recipe, encoders=("raw-pixels",))
    extract(change(recipe, encoders=("colour-texture",)), manifest, flags(tmp_path), quiet)  # makes the mask cache

    def failing(dataset, entry, folder):
        if entry.id == "t3":
            raise TileError("t3 is damaged")
        return read_tile(dataset, entry, folder)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "read_tile", failing)
        with pytest.raises(TileError, match="t3 is damaged"):
            extract(recipe, manifest, flags(tmp_path), quiet)
    path = places.tokens_path(tmp_path, "toy", "raw-pixels", recipe, "last")
    assert sorted(p.name for p in path.glob("filling/*")) == ["0.0", "1.0", "2.0"]
    lines = []
    extract(recipe, manifest, flags(tmp_path), lines.append)
    assert any("3 of 18 views" in line for line in lines)


def test_a_shard_that_cannot_be_written_stops_the_work(tmp_path, manifest, recipe, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    recipe = change(recipe, encoders=("raw-pixels",))
    extract(change(recipe, encoders=("colour-texture",)), manifest, flags(tmp_path), quiet)  # makes the mask cache
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", full)
        with pytest.raises(OSError, match="No space left"):
            extract(recipe, manifest, flags(tmp_path), quiet)
    assert extract(recipe, manifest, flags(tmp_path), quiet) == []


def test_an_extraction_stopped_between_its_last_shard_and_the_seal_is_sealed_by_the_next(
    tmp_path, manifest, recipe, monkeypatch
):
    recipe = change(recipe, encoders=("raw-pixels",))
    with monkeypatch.context() as patch:
        seal = Writer.seal
        patch.setattr(Writer, "seal", lambda self: 1 / 0 if self.header.kind == "tokens" else seal(self))
        with pytest.raises(ZeroDivisionError):
            extract(recipe, manifest, flags(tmp_path), quiet)
    assert extract(recipe, manifest, flags(tmp_path), quiet) == []
    assert fit(recipe, manifest, flags(tmp_path), quiet) == []


def test_more_views_and_another_split_extend_the_cache_and_never_recompute_it(tmp_path, folder, manifest, recipe):
    extract(recipe, manifest, flags(tmp_path), quiet)
    text = (folder / "data_manifest.yaml").read_text()
    (tmp_path / "data_manifest.yaml").write_text(
        text.replace("- t3\n", "- t0\n").replace("train:\n      - t0", "train:\n      - t3")
    )
    swapped = Manifest(tmp_path / "data_manifest.yaml")
    assert swapped.dataset().splits.train == ("t3", "t1", "t2")
    lines = []
    assert extract(recipe, swapped, flags(tmp_path), lines.append) == []
    assert [line.split(": ")[1].split(" of ")[0] for line in lines] == ["5", "5", "5"]  # t3 as a training tile; no more
    lines.clear()
    assert extract(change(recipe, views=ViewSpec(count=3)), swapped, flags(tmp_path), lines.append) == []
    assert all("complete" in line for line in lines)


def folded(folder, folds, subsets=""):
    path = folder / "data_manifest.yaml"
    path.write_text(yaml.safe_dump(MANIFEST))
    split(path, "toy", "", folds, subsets, 0)
    return Manifest(path)


def test_folds_use_the_cache_of_the_fixed_split_and_give_a_part_per_fold_and_seed(tmp_path, manifest, recipe, contents):
    recipe = change(recipe, encoders=("raw-pixels",))
    extract(recipe, manifest, flags(tmp_path), quiet)
    fit(recipe, manifest, flags(tmp_path), quiet)
    fixed = contents(places.results(tmp_path))
    listed = folded(tmp_path, 3, "1,2")
    lines = []
    assert fit(recipe, listed, flags(tmp_path), lines.append) == []
    assert any("0 of 2 runs" in line for line in lines)  # runs on the fixed split do not know of folds
    rotating = change(recipe, name="folds", folds=True)
    lines.clear()
    assert extract(rotating, listed, flags(tmp_path), lines.append) == []
    # t0, t1 and t2 train already; the others become training tiles of some fold and need all five views
    assert [line.split(": ")[1].split(" views")[0] for line in lines[:2]] == ["15 of 30", "15 of 30"]
    assert lines[2:] == ["toy · tile pictures: 4 written"]  # of the tiles that only folds test
    assert fit(rotating, listed, flags(tmp_path), quiet) == []
    parts = [read_run(path) for path in find_runs(places.results(tmp_path), "folds")]
    assert [(p.record.fold, p.record.seed) for p in parts] == [(f, s) for f in range(3) for s in range(2)]
    tested = [set(p.counts.filter(pl.col("split") == "test")["tile"]) for p in parts]
    assert tested == [set(listed.dataset().folds[p.record.fold].test) for p in parts]
    assert sorted(t for tiles in tested[::2] for t in tiles) == [f"t{i}" for i in range(6)]
    assert contents(places.results(tmp_path) / "toy") == {k[4:]: v for k, v in fixed.items() if k.startswith("toy/")}
    again, *_ = jobs(rotating, listed, tmp_path)
    shutil.rmtree(again.folder(1))
    fit(rotating, listed, flags(tmp_path), quiet)
    assert read_run(again.folder(1)).counts.equals(parts[1].counts)
    # a subset needs nothing from the encoder, and trains on its tiles alone
    lines.clear()
    small = change(rotating, name="small", subset=1)
    assert extract(small, listed, flags(tmp_path), lines.append) == []
    assert all("complete" in line for line in lines)
    assert fit(small, listed, flags(tmp_path), quiet) == []
    record = read_run(find_runs(places.results(tmp_path), "small")[0]).record
    assert (record.tiles["train"], record.identity["splits"]["train"]) == (
        1,
        list(listed.dataset().folds[0].subsets[0]),
    )
    assert record.identity["view_bank"]["tiles"].keys() == {
        t for ids in record.identity["splits"].values() for t in ids
    }


@pytest.mark.parametrize(("fields", "says"), [({"folds": True}, "lists none"), ({"subset": 2}, "subset of 2")])
def test_folds_and_subsets_that_are_not_listed_are_refused_with_the_command_that_makes_them(
    tmp_path, manifest, recipe, fields, says
):
    for stage in (extract, fit):
        with pytest.raises(SpecError, match=says) as error:
            stage(change(recipe, **fields), manifest, flags(tmp_path), quiet)
        assert "fmcache data split toy" in error.value.next_step


def test_another_recipe_under_the_same_name_is_refused_by_field_until_recomputed(tmp_path, manifest, recipe):
    extract(recipe, manifest, flags(tmp_path), quiet)
    fit(recipe, manifest, flags(tmp_path), quiet)
    other = change(recipe, fit=change(recipe.fit, epochs=3))
    with pytest.raises(ResultsMismatch, match=r"fit.epochs: expected 3, found 4"):
        fit(other, manifest, flags(tmp_path), quiet)
    fit(other, manifest, flags(tmp_path, recompute=True), quiet)
    assert {part.curve.height for part in runs(tmp_path).values()} == {3}


def test_a_failing_encoder_does_not_stop_the_others(tmp_path, manifest, recipe):
    mixed = change(recipe, encoders=(EncoderChoice("virchow2", weights=str(tmp_path / "absent")), "raw-pixels"))
    failures = extract(mixed, manifest, flags(tmp_path, offline=True), quiet)
    assert [(f.dataset, f.encoder) for f in failures] == [("toy", "virchow2")]
    failures = fit(mixed, manifest, flags(tmp_path), quiet)
    assert isinstance(failures[0].error, CacheNotFound)
    assert {encoder for encoder, _ in runs(tmp_path)} == {"raw-pixels"}


@pytest.mark.parametrize("said", [{}, {"encoder": 3}, {"encoder": {"name": "raw-pixels"}}])
def test_a_cache_that_does_not_say_its_encoder_is_named_and_the_others_are_fitted(tmp_path, manifest, recipe, said):
    extract(recipe, manifest, flags(tmp_path), quiet)
    (path,) = places.caches(tmp_path).glob("*/raw-pixels/*.zarr")
    text = json.loads((path / "zarr.json").read_text())
    header = text["attributes"]["fmcache"]
    for field in ("checksum", "array_sha256", "checksums_sha256"):  # as fmcache 0.1.0 wrote it
        del header[field]
    header["about"] = said
    (path / "zarr.json").write_text(json.dumps(text))
    (failure,) = fit(change(recipe, fit=change(recipe.fit, seeds=1)), manifest, flags(tmp_path), quiet)
    assert isinstance(failure.error, CacheCorrupt)
    assert str(path) in failure.error.problem
    assert {name for name, _ in runs(tmp_path)} == {"tiny"}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_encoder_with_a_damaged_shard_is_named_and_the_others_are_fitted(tmp_path, manifest, recipe, workers):
    """The damaged encoder comes first, with two tasks."""
    extract(recipe, manifest, flags(tmp_path), quiet)
    first = recipe.encoder_choices[0]
    (path,) = places.caches(tmp_path).glob(f"*/{places.encoder_key(first)}/*.zarr")
    shard = path / "tokens" / "c" / "0" / "0" / "0" / "0" / "0"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    (failure,) = fit(recipe, manifest, flags(tmp_path, workers=workers), quiet)
    assert isinstance(failure.error, CacheCorrupt)
    assert failure.error.problem == f"{path}: tile 't0' cannot be read"
    assert "fmcache cache verify" in failure.error.next_step
    assert failure[:2] == ("toy", places.encoder_key(first))
    others = {places.encoder_key(choice) for choice in recipe.encoder_choices[1:]}
    assert others
    assert {name for name, _ in runs(tmp_path)} == others


def test_changed_tiles_are_refused_by_name(tmp_path, folder, manifest, recipe):
    extract(recipe, manifest, flags(tmp_path), quiet)
    (tmp_path / "data_manifest.yaml").write_text(
        (folder / "data_manifest.yaml").read_text().replace("seed: 1", "seed: 2")
    )
    with pytest.raises(CacheMismatch, match=r"tiles\.t0"):
        extract(recipe, Manifest(tmp_path / "data_manifest.yaml"), flags(tmp_path), quiet)


def test_too_little_disk_stops_before_work_starts(tmp_path, manifest, recipe, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoRoom, match="does not fit"):
        extract(recipe, manifest, flags(tmp_path), quiet)
    assert not list(Path(tmp_path).rglob("zarr.json"))


def test_standardised_training_uses_the_statistics_of_the_training_grids(tmp_path, manifest, recipe):
    recipe = change(recipe, fit=change(recipe.fit, standardise="channel"), encoders=("raw-pixels",))
    extract(recipe, manifest, flags(tmp_path), quiet)
    (job,) = jobs(recipe, manifest, tmp_path)
    loaded = encoder_runs._load(job)
    tokens = loaded.train.tokens.float().movedim(2, 0).flatten(1)
    assert torch.allclose(loaded.scale.mean.flatten(), tokens.mean(1), atol=1e-5)
    assert torch.allclose(loaded.scale.std.flatten(), tokens.std(1, correction=0), atol=1e-5)
    assert loaded.train.tokens.shape == (3, 4, 768, 4, 4)


def test_several_taps_fill_a_cache_each_that_equals_the_one_filled_alone(tmp_path, folder, manifest, recipe, contents):
    tiny = change(recipe, encoders=(str(folder / "tiny.yaml"),))
    assert extract(change(tiny, taps=("1", "last")), manifest, flags(tmp_path / "both"), quiet) == []
    for tap in ("1", "last"):
        assert extract(change(tiny, taps=(tap,)), manifest, flags(tmp_path / tap), quiet) == []
        paths = [places.tokens_path(tmp_path / name, "toy", "tiny", tiny, tap) for name in ("both", tap)]
        assert contents(paths[0]) == contents(paths[1])
    before = contents(places.tokens_path(tmp_path / "both", "toy", "tiny", tiny, "last"))
    extract(change(tiny, taps=("1", "2+norm", "last")), manifest, flags(tmp_path / "both"), quiet)
    assert contents(places.tokens_path(tmp_path / "both", "toy", "tiny", tiny, "last")) == before
    assert fit(change(tiny, taps=("1", "last")), manifest, flags(tmp_path / "both"), quiet) == []
    parts = runs(tmp_path / "both")
    assert sorted(parts) == [("tiny", 0), ("tiny", 1), ("tiny@1", 0), ("tiny@1", 1)]
    assert parts["tiny@1", 0].record.encoder.display == "Tiny ViT, block 1 (random weights)"
    assert parts["tiny@1", 0].record.identity["tokens"]["tap"] == "1"


def test_all_asks_for_every_encoder_of_the_study_and_goes_on_past_those_that_cannot_be_had(tmp_path, folder):
    done = subprocess.run(
        [sys.executable, "-m", "fmcache", "extract", "--all", "--offline", "--device", "cpu", "--threads", "1",
         "--manifest", str(folder / "data_manifest.yaml"), "--work", str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"HF_HOME": str(tmp_path / "hub")},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("failed; continuing with the next encoder") == 14
    assert done.stderr.count("are not on this machine, and the hub must not be asked") == 15
    assert not list(tmp_path.glob("cache/**/*.zarr"))  # nobody waits for masks that nothing needs


def test_a_second_process_on_the_same_cache_is_told_that_another_one_writes(tmp_path, folder, manifest, recipe):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(change(recipe, encoders=("raw-pixels",)))))
    path = places.tokens_path(tmp_path, "toy", "raw-pixels", recipe, "last")
    command = [sys.executable, "-m", "fmcache", "extract", "--recipe", str(tmp_path / "r.yaml"), "--device", "cpu"]
    command += ["--manifest", str(folder / "data_manifest.yaml"), "--work", str(tmp_path)]
    with locked(path):
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"another process is writing {path}" in second.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_during_the_run_loses_nothing_that_was_finished(
    tmp_path, folder, manifest, recipe, contents
):
    """A limit on the size of files stands in for the full disk: the system refuses a write in the same way."""
    many = change(recipe, views=ViewSpec(count=12), encoders=("random-vits16",), tile_px=64)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(many)))
    arguments = ["extract", "--recipe", str(tmp_path / "r.yaml"), "--device", "cpu", "--threads", "1", "--manifest"]
    arguments += [str(folder / "data_manifest.yaml"), "--work", str(tmp_path / "w")]
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY)); "
        f"sys.argv = ['fmcache', *{arguments!r}]; from fmcache.cli import main; main()"
    )
    full = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert full.returncode == 1
    assert "error: the system refused" in full.stderr
    assert "Traceback" not in full.stderr
    path = places.tokens_path(tmp_path / "w", "toy", "random-vits16", many, "last")
    assert not list(path.rglob("*.partial"))
    assert extract(many, manifest, flags(tmp_path / "w"), quiet) == []
    assert extract(many, manifest, flags(tmp_path / "whole"), quiet) == []
    assert contents(tmp_path / "w" / "cache") == contents(tmp_path / "whole" / "cache")


def test_a_sweep_is_fitted_from_one_cache_and_compared_in_one_table(tmp_path, manifest, recipe):
    sweep = change(
        recipe, encoders=("raw-pixels", "colour-texture"), sweep={"views.count": (1, 4)}, views=ViewSpec(count=2)
    )
    lines = []
    assert extract(sweep, manifest, flags(tmp_path), lines.append) == []
    assert "18 of 18 views" in lines[1]  # 3 training tiles in 1 + 4 views, 3 other tiles in 1
    assert fit(sweep, manifest, flags(tmp_path), quiet) == []
    for value in (1, 4):
        alone = change(sweep, sweep={}, views=ViewSpec(count=value), name=f"alone-{value}")
        fit(alone, manifest, flags(tmp_path), quiet)
        swept, plain = runs(tmp_path, f"toy.count-{value}"), runs(tmp_path, f"alone-{value}")
        assert all(swept[key].counts.equals(plain[key].counts) for key in plain)
    written = report(places.results(tmp_path), places.reports(tmp_path), "toy")
    text = written[-1].path.read_text()
    assert "| encoder | 1 | 4 |" in text
    row = runs(tmp_path, "toy.count-4")["raw-pixels", 0].record
    assert row.recipe["views"]["count"] == 4
    folder = places.reports(tmp_path) / "toy"
    assert (folder / "toy" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert written[-1].page == folder / "report.html"
    found = pl.read_parquet(folder / "settings.parquet")
    assert found.select("dataset", "views.count").unique().sort("views.count").rows() == [("toy", 1), ("toy", 4)]
    summary = summarise([part for _, part in sorted(runs(tmp_path, "alone-4").items())])
    for row in summary.rows:
        (one,) = found.filter(pl.col("encoder") == row.encoder.name, pl.col("views.count") == 4).to_dicts()
        assert one["estimate"] == pytest.approx(row.mean[-1])


def test_every_value_of_a_sweep_is_trained_in_as_many_lanes_as_the_first(tmp_path, manifest, recipe):
    sweep = change(recipe, encoders=("raw-pixels",), sweep={"views.count": (1, 2)}, fit=change(recipe.fit, seeds=3))
    two = flags(tmp_path)._replace(threads=2)
    extract(sweep, manifest, two, quiet)
    fit(sweep, manifest, two, quiet)
    for value in (1, 2):
        records = [part.record for _, part in sorted(runs(tmp_path, f"toy.count-{value}").items())]
        # the third seed alone must not leave its one thread to what comes next
        assert [(record.together, record.threads) for record in records] == [(2, 1), (2, 1), (1, 1)]


def test_a_sweep_of_what_changes_caches_extracts_each_and_shares_those_that_are_the_same(tmp_path, manifest, recipe):
    sweep = change(
        recipe, encoders=("raw-pixels",), views=ViewSpec(count=1), fit=change(recipe.fit, seeds=1),
        sweep={"views.outside": ("ignore", "reflect"), "tile_px": (32, 48), "fit.passes_per_epoch": (1, 2)},
    )  # fmt: skip
    lines = []
    assert extract(sweep, manifest, flags(tmp_path), lines.append) == []
    assert "8 variants x 1 runs = 8 runs" in lines[0]
    assert lines[0].endswith("4 sets of caches")
    assert len(list((tmp_path / "cache").glob("*/view-bank/*.zarr"))) == 4
    assert len(list((tmp_path / "cache").glob("*/raw-pixels/*.zarr"))) == 2  # the label outside changes masks only
    assert sum("Raw pixels: complete" in line for line in lines) == 2
    assert fit(sweep, manifest, flags(tmp_path), quiet) == []
    found = [runs(tmp_path, study) for study in studies(places.results(tmp_path))]
    settings = {tuple(one["raw-pixels", 0].record.recipe["setting"][1]) for one in found}
    assert len(found) == 8
    assert settings == {("tile_px", 32), ("tile_px", 48)}
    sides = {one["raw-pixels", 0].record.recipe["tile_px"] for one in found}
    assert sides == {32, 48}


def test_the_variants_of_a_subset_sweep_train_on_their_tiles_from_one_cache(tmp_path, manifest, recipe):
    listed = manifest.dataset("toy")
    train = listed.splits.train
    nested = msgspec.structs.replace(listed.splits, subsets=(train[:1], train[:2]))
    manifest.dataset = lambda _: msgspec.structs.replace(listed, splits=nested)
    sweep = change(
        recipe, encoders=("raw-pixels",), fit=change(recipe.fit, seeds=1), sweep={"subset": (2, 1)}, datasets=("toy",)
    )
    lines = []
    extract(sweep, manifest, flags(tmp_path), lines.append)
    fit(sweep, manifest, flags(tmp_path), quiet)
    assert len(list((tmp_path / "cache").glob("*/raw-pixels/*.zarr"))) == 1
    for size in (1, 2):
        record = runs(tmp_path, f"toy.subset-{size}")["raw-pixels", 0].record
        assert record.identity["splits"]["train"] == list(train[:size])


def test_what_helps_against_a_collapse_is_said_once_after_the_runs_that_need_it(study):
    recipe = msgspec.structs.replace(study.recipe, fit=msgspec.structs.replace(study.recipe.fit, seeds=3))
    study.extract(recipe)
    lines = study.fit(recipe)  # one epoch: no loss is flat
    assert sum("loss still falling at the end" in line for line in lines[:-1]) == 3
    assert lines[-1].startswith("3 runs collapsed, or the loss was still falling at the end. What helped")
    assert not any("What helped" in line for line in [*lines[:-1], *study.fit(recipe)])
