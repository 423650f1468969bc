"""A study on the workers of a Dask scheduler: the same bytes as in one process, also when a worker is killed."""

import contextlib
import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import yaml
import zarr
from PIL import Image

from fmcache.errors import ClusterUnfit
from fmcache.manifest import TileEntry
from fmcache.scores.run_files import WEIGHTS, find_runs, read_run
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.stages.shards import MOST_SHARDS, ShardTask, bundles
from fmcache.tiles.demo import draw_tile

pytestmark = pytest.mark.slow

FIRST_EPOCH_STOPS = """
import os, sys, time
from pathlib import Path
if "worker" in sys.orig_argv:
    from fmcache.decoders import concurrent_seeds

    def train(training, seed, tick, train=concurrent_seeds.train):
        if seed == 1 and not Path("pid").exists():
            Path("pid.partial").write_text(str(os.getpid()))
            Path("pid.partial").rename("pid")
            time.sleep(600)
        return train(training, seed, tick)

    concurrent_seeds.train = train
"""


@pytest.fixture
def recipe(tmp_path):
    recipe = Recipe(
        name="toy", encoders=("raw-pixels", "colour-texture"), tile_px=64, views=ViewSpec(count=3),
        decoder=DecoderSpec(width=6), fit=FitSpec(seeds=2, epochs=2, batch=2, validate_epochs=2),
    )  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(recipe)))
    return recipe


def predicted(folder, flags):
    """Run `fmcache predict` on a drawn slide; return the label map and the regions."""
    slide, _ = draw_tile(3, TileEntry("slide"), 160)
    Image.fromarray(slide).save(folder / "slide.png")
    command = ["predict", "slide.png", "--study", "toy", "--encoder", "raw-pixels", "--seed", "1", "--tissue", "off"]
    command += ["--mpp", "1", "--mpp-of-slide", "1", "--device", "cpu", "--threads", "1", *flags]
    subprocess.run([sys.executable, "-m", "fmcache", *command], cwd=folder, check=True, timeout=300)
    made = folder / flags[flags.index("--into") + 1]
    labels = zarr.open_group(made / "slide.ome.zarr", mode="r")["labels/map/0"]
    return np.asarray(labels).tolist(), (made / "slide.geojson").read_bytes()


def runs(work):
    return {path.relative_to(work): read_run(path) for path in find_runs(places.results(work), "toy")}


def test_a_study_on_two_workers_of_which_one_is_killed_equals_that_of_one_process(
    tmp_path, drawn, recipe, new_scheduler, contents
):
    manifest = drawn(tmp_path, 3, 1, 1)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FIRST_EPOCH_STOPS)
    command = [sys.executable, "-m", "fmcache", "run", "r.yaml", "--work", "dask", "--device", "cpu", "--threads", "1"]
    with new_scheduler(tmp_path / "site") as scheduler:
        for _ in range(2):
            scheduler.worker()
        pids = scheduler.workers_are(2)
        # relative paths mean those of the folder where the command runs; workers were started in another one
        with subprocess.Popen(
            [*command, "--dask", scheduler.address], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": scheduler.environment["PYTHONPATH"]},
        ) as process:  # fmt: skip
            scheduler.until(lambda: (tmp_path / "pid").exists() or process.poll() is not None, 480)
            with contextlib.suppress(FileNotFoundError):
                assert int((tmp_path / "pid").read_text()) in pids.values()
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            said, errors = process.communicate(timeout=480)
        assert process.returncode == 0, errors
        assert len(scheduler.workers_are(1)) == 1
        mapped = predicted(tmp_path, ["--work", "dask", "--into", "by-a-worker", "--dask", scheduler.address])
    assert said.count("seed 1: test Dice") == 2
    assert predicted(tmp_path, ["--work", "dask", "--into", "by-itself"]) == mapped
    alone = Flags(tmp_path / "serial", device="cpu", threads=1)
    assert extract(recipe, manifest, alone, lambda _: None) == []
    assert fit(recipe, manifest, alone, lambda _: None) == []
    assert contents(tmp_path / "serial" / "cache") == contents(tmp_path / "dask" / "cache")
    serial, dask = runs(tmp_path / "serial"), runs(tmp_path / "dask")
    assert serial.keys() == dask.keys()
    for key, part in serial.items():
        assert part.counts.equals(dask[key].counts), key
        assert part.curve.equals(dask[key].curve), key
        assert part.record.identity == dask[key].record.identity
        weights = [(tmp_path / work / key / WEIGHTS).read_bytes() for work in ("serial", "dask")]
        assert weights[0] == weights[1], key


def test_a_cluster_that_does_not_answer_is_one_error_not_one_per_encoder(tmp_path, drawn, recipe, monkeypatch):
    monkeypatch.setattr("fmcache.runtime.cluster.CONNECT_S", 0.3)
    manifest, flags = drawn(tmp_path, 3, 1, 1), Flags(tmp_path, workers="tcp://127.0.0.1:1")
    with pytest.raises(ClusterUnfit, match="no Dask scheduler answers"):
        extract(recipe, manifest, flags, lambda _: None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("tasks", "processes", "size"), [(0, 2, 1), (7, 2, 1), (64, 4, 2), (10**5, 8, MOST_SHARDS), (100, 1, 12)]
)
def test_shards_are_bundled_so_that_each_process_gets_several_bundles(tasks, processes, size):
    many = [ShardTask(f"task {i}", (), None) for i in range(tasks)]
    made = bundles(many, processes)
    assert [task for bundle in made for task in bundle.tasks] == many
    assert {len(bundle.tasks) for bundle in made[:-1]} <= {size}
    assert all(len(bundle.tasks) <= size for bundle in made)
