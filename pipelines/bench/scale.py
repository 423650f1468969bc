"""What limits a study of a million tiles: tasks a second of the scheduler, cost of listing a cache, bytes and files.

    python pipelines/bench/scale.py               2000 tasks on two processes, 3000 shards, and the arithmetic
    python pipelines/bench/scale.py --quick       300 tasks, 500 shards

`tasks`: empty tasks completed in a second on two processes of this machine, by Dask alone (all submitted at once) and
by `fmcache.runtime.runners` (each is submitted when the one before has ended, as in extract). `listing`: time a shard
to find out what is missing in a complete cache. `manifest`: time and memory a tile to read a manifest. The arithmetic
is that of `fmcache plan --gpus`, for 15 encoders and 8 views.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from fmcache.cache.writer import is_complete, open_writer, write_shard
from fmcache.demand import demand_of
from fmcache.encoders.cards import precision_of, read_card, study_encoders
from fmcache.manifest import Manifest
from fmcache.planning.costs import Cost, cost_of, total_of
from fmcache.planning.gpus import fleet_of
from fmcache.runtime import runners
from fmcache.runtime.cluster import keeping_workers, using
from fmcache.specs import Recipe, ViewSpec

TILES = 1000
"""Tiles of the dataset for the arithmetic, all for training; its costs are multiplied to a million."""
FACTOR = 1000


class Empty(NamedTuple):
    """A task that does nothing."""

    number: int
    weight: int = 1
    relief: str = ""

    @property
    def title(self) -> str:
        return str(self.number)


class Nothing(NamedTuple):
    """A setup that gives nothing."""

    name: str = "nothing"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        yield None


def do_nothing(_shared: None, _task: Empty, _tick: runners.Tick) -> tuple[()]:
    """Return no results."""
    return ()


def tasks_a_second(count: int) -> tuple[float, float]:
    """Return how many empty tasks two processes complete in a second, by Dask alone and by the runners."""
    with keeping_workers():
        with using(2) as crew:
            for number in (20, count):  # the first ones start the processes
                start = time.monotonic()
                crew.client.gather(crew.client.map(abs, range(number), pure=False))
                alone = time.monotonic() - start
        seconds = 0.0
        for number in (20, count):
            seen, start = [], time.monotonic()
            groups = [(Nothing(), [Empty(i) for i in range(number)])]
            with contextlib.closing(runners.run(do_nothing, groups, seen.append, 2)) as ended:
                for _ in ended:
                    pass
            seconds = time.monotonic() - start
            if sum(seen) != number:
                raise RuntimeError(f"{sum(seen)} of {number} tasks were reported")
        return count / alone, count / seconds


def listing_s(folder: Path, shards: int) -> tuple[float, float]:
    """Return the seconds a shard that a complete cache needs to be recognised, in this process first and again."""
    demand = {f"t{i}": 1 for i in range(shards)}
    identity = {"kind": "tokens", "tiles": dict.fromkeys(demand, "hash")}
    path = folder / "x.zarr"
    with open_writer(path, "tokens", identity, (8, 2, 2), "float16", demand, {}) as writer:
        missing = writer.missing()
        writer.begin()
        for shard in missing:
            write_shard(path, "tokens", shard, np.full((1, 8, 2, 2), shard.tile % 100, "float16"))
        writer.seal()
    times = []
    for _ in range(2):
        start = time.monotonic()
        if not is_complete(path, "tokens", identity, demand):
            raise RuntimeError("the cache is not complete")
        times.append((time.monotonic() - start) / shards)
    return times[0], times[1]


def manifest_cost(folder: Path, tiles: int) -> tuple[float, float]:
    """Return the seconds and the bytes of memory that a tile of a manifest takes when it is read."""
    rows = [
        f"      - {{id: tile-{i:07}, group: patient-{i}, image: images/tile-{i:07}.png, image_sha256: '{i:064x}', "
        f"mask: masks/tile-{i:07}.png, mask_sha256: '{i:064x}'}}"
        for i in range(tiles)
    ]
    ids = [f"tile-{i:07}" for i in range(tiles)]
    text = "format: 1\ndefault: many\ndatasets:\n  many:\n    format: folder\n    root: .\n    mpp: 0.5\n"
    text += "    labels: [{name: a, values: [0], colour: '#ff0000'}, {name: b, values: [1], colour: '#00ff00'}]\n"
    text += f"    splits: {{train: [{', '.join(ids[:-200])}], val: [{', '.join(ids[-200:-100])}], "
    text += f"test: [{', '.join(ids[-100:])}]}}\n    tiles:\n" + "\n".join(rows) + "\n"
    (folder / "files.yaml").write_text(text)
    process = psutil.Process()
    before, start = process.memory_info().rss, time.monotonic()
    manifest = Manifest(folder / "files.yaml")
    seconds = time.monotonic() - start
    if len(manifest.dataset("many").tiles) != tiles:
        raise RuntimeError("tiles are missing")
    return seconds / tiles, (process.memory_info().rss - before) / tiles


def arithmetic(folder: Path) -> None:
    """Print bytes, files and times of a million tiles, 15 encoders and 8 views."""
    ids = [f"t{i}" for i in range(TILES)]
    splits = f"{{train: [{', '.join(ids[:-2])}], val: [{ids[-2]}], test: [{ids[-1]}]}}"
    tiles = ", ".join(f"{{id: {id_}}}" for id_ in ids)
    labels = "[{name: a, colour: '#ff0000'}, {name: b, colour: '#00ff00'}, {name: c, colour: '#0000ff'}]"
    dataset = f"{{format: demo, seed: 1, size_px: 512, labels: {labels}, tiles: [{tiles}], splits: {splits}}}"
    (folder / "m.yaml").write_text(f"format: 1\ndefault: many\ndatasets: {{many: {dataset}}}\n")
    listed = Manifest(folder / "m.yaml").dataset("many")
    recipe = Recipe(encoders=tuple(study_encoders()), views=ViewSpec(count=8))
    demand = demand_of(recipe, "many", listed)
    costs = []
    for name in study_encoders():
        card = read_card(name)
        cost = cost_of(recipe, demand, card)
        costs.append((precision_of(recipe.precision, card, True), Cost(*(FACTOR * value for value in cost))))
    total = total_of([cost for _, cost in costs])
    shard = total.disk_bytes / total.objects / 1e6
    print(f"{total.forward_passes:,} forward passes, {total.disk_bytes / 1e12:,.0f} TB on disk")
    print(f"{total.objects:,} shard files of {shard:.0f} MB")
    print(f"grids of one encoder in fit: {total.fit_bytes / 1e12:,.1f} TB")
    for number in (8, 64):
        fleet = fleet_of("h100", number)
        seconds = sum(fleet.encoder_s(cost, precision) for precision, cost in costs)
        tasks = sum(fleet.tasks(cost) for _, cost in costs)
        rate = total.disk_bytes / seconds / 1e9
        print(f"{number} H100 (assumed): extract {seconds / 86400:,.1f} days, {rate:,.1f} GB/s written")
        one = total.objects / seconds
        print(f"  {tasks:,} tasks, {tasks / seconds:.1f} a second; with one shard each: {one:,.0f} a second")
        # runs do not become more with more tiles
        fit = fleet.fit_s([cost._replace(runs=cost.runs // FACTOR) for _, cost in costs])
        print(f"  fit of {total.runs // FACTOR} runs: {fit / 86400:,.0f} days")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    alone, ours = tasks_a_second(300 if quick else 2000)
    print(f"tasks: {alone:,.0f} a second by Dask alone, {ours:,.0f} one after another on two processes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        first, again = listing_s(Path(folder), 500 if quick else 3000)
        print(f"listing: {first * 1e6:.0f} microseconds a shard, {again * 1e6:.0f} again", flush=True)
        seconds, size = manifest_cost(Path(folder), 1000 if quick else 10000)
        print(f"manifest: {seconds * 1e6:.0f} microseconds and {size:,.0f} bytes a tile", flush=True)
        arithmetic(Path(folder))


if __name__ == "__main__":
    main()
