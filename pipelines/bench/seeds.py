"""Do concurrent seeds save time, and how fast are grids read? Ratios within one run, after a check for correct results.

    python pipelines/bench/seeds.py --quick

`seeds-demo`: time of 10 seeds one after another, divided by their time when they are trained concurrently, as fmcache
would do here. `seeds-large`: time of the same seeds as fmcache trains them, divided by the number of seeds times the
time of a single one; this case is so large that seeds are trained one after another. `read-decode`: bytes per second of
`load_token_grids`, divided by those of the codec alone on all cores, writing to memory that is already in use.
`read-copy`: the same, divided by the speed of a memory copy. `read-decode-fresh`: like `read-decode`, but the codec too
gets new memory from the system, as it must when grids are loaded only once. All times are wall times, interleaved;
medians of the repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numcodecs import Blosc

from fmcache.cache.reader import open_cache
from fmcache.cache.writer import open_writer, write_shard
from fmcache.decoders.arithmetic import multiply_adds
from fmcache.decoders.batches import TokenGrids, load_token_grids
from fmcache.decoders.concurrent_seeds import concurrent_seed_count, threads_of_a_seed, train_concurrently
from fmcache.decoders.decoder import Decoder
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import TrainedRun, Training, train
from fmcache.grid import GridGeometry
from fmcache.runtime.devices import device_name, pick_device, thread_count, versions
from fmcache.specs import FitSpec


class Case:
    """Random grids of one size in memory, and methods that train seeds on them."""

    def __init__(
        self, tile_px: int, width: int, channels: int, device: torch.device, threads: int, epochs: int
    ) -> None:
        self.grid, self.width, self.channels = GridGeometry(tile_px, 16), width, channels
        self.device, self.threads = device, threads
        self.spec = FitSpec(epochs=epochs, validate_epochs=epochs, learning_rate=1e-3)
        self.size = self.spec.batch * multiply_adds(Shape((channels,), width, 3, self.grid))
        rng = np.random.default_rng(0)
        shape = (8, 2, channels, self.grid.side, self.grid.side)
        tokens = torch.from_numpy(rng.normal(size=shape).astype(np.float16)).to(device)
        masks = torch.from_numpy(rng.integers(0, 3, (8, 2, tile_px, tile_px), np.uint8)).to(device)
        self.train = TokenGrids(tuple(f"t{i}" for i in range(8)), range(2), tokens, masks)
        self.rest = TokenGrids(("v",), range(1), tokens[:1, :1], masks[:1, :1])

    def training(self) -> Training:
        decoder = Decoder(Shape((self.channels,), self.width, 3, self.grid))
        return Training(decoder, self.train, self.rest, self.rest, self.spec, "pooled", self.device)

    def alone(self, seed: int) -> TrainedRun:
        torch.set_num_threads(self.threads)
        return train(self.training(), seed)

    def sweep(self, seeds: range) -> list[TrainedRun]:
        """Train all seeds as the fit stage does: in groups of concurrent seeds."""
        group_size = concurrent_seed_count(self.size, len(seeds), self.device, self.threads)
        fitted = []
        for first in range(0, len(seeds), group_size):
            group = seeds[first : first + group_size]
            threads = threads_of_a_seed(self.size, self.device, self.threads)
            ended = dict(train_concurrently(self.training(), group, threads=threads))
            fitted += [ended[seed] for seed in group]
        return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="within 50 s on two cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    flags = parser.parse_args()
    device, threads = pick_device(flags.device), thread_count(flags.threads)
    torch.set_num_threads(threads)
    where = f"{device_name(device)}, {threads} threads"
    found = " ".join(f"{name} {version}" for name, version in versions("fmcache", "torch", "zarr", "numcodecs").items())
    print(f"{found}; load {os.getloadavg()[0]:.1f}")
    check(device, threads)

    repeats = 3 if flags.quick else 7
    demo = Case(128, 32, 384, device, threads, epochs=1 if flags.quick else 10)
    seeds = range(10)
    times = interleaved(
        repeats,
        one_by_one=lambda: [demo.alone(seed) for seed in seeds],
        sweep=lambda: demo.sweep(seeds),
    )
    print_ratio("seeds-demo", times["one_by_one"] / times["sweep"], ">=2", where)

    large = Case(256, 32 if flags.quick else 128, 384, device, threads, epochs=1)
    few = range(2 if flags.quick else 10)
    times = interleaved(repeats, sweep=lambda: large.sweep(few), one=lambda: large.alone(0))
    print_ratio("seeds-large", times["sweep"] / (len(few) * times["one"]), "<=1.03", where)

    times = read_times(4 if flags.quick else 15, repeats, threads)
    print_ratio("read-decode", times["decode"] / times["read"], ">=0.5", f"{threads} cores")
    print_ratio("read-decode-fresh", times["decode_fresh"] / times["read"], "(fresh)", f"{threads} cores")
    print_ratio("read-copy", times["copy"] / times["read"], "(floor)", f"{threads} cores")


def check(device: torch.device, threads: int) -> None:
    """Stop unless concurrent seeds give the same results as single runs, up to rounding."""
    case = Case(32, 8, 16, device, threads, epochs=4)
    alone = [case.alone(seed) for seed in range(3)]
    for one, other in zip(case.sweep(range(3)), alone, strict=True):
        for ours, theirs in zip(one.curve, other.curve, strict=True):
            if not np.isclose(ours.loss, theirs.loss, rtol=1e-4):
                sys.exit(f"loss {ours.loss} of a concurrent seed differs from {theirs.loss} of its single run")
        for name, value in one.weights.items():
            if not torch.allclose(value, other.weights[name], rtol=1e-2, atol=1e-3):
                sys.exit(f"{name} of a concurrent seed differs from that of its single run")
    print("concurrent seeds equal single runs: ok")


def interleaved(repeats: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds of each way; the ways take turns, and the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - start)
    for name, taken in times.items():
        print(f"  {name}: {statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})")
    return {name: statistics.median(taken) for name, taken in times.items()}


def read_times(tiles: int, repeats: int, threads: int) -> dict[str, float]:
    """Return the seconds to load, to decode and to copy the grids (1024, 32, 32) of 25 views of each tile."""
    item, views = (1024, 32, 32), 25
    rng = np.random.default_rng(0)
    one = (rng.normal(size=(views, *item)) + 3 * rng.normal(size=(item[0], 1, 1))).astype(np.float16)
    codec = Blosc("lz4", 5, Blosc.BITSHUFFLE)
    with tempfile.TemporaryDirectory() as folder:
        caches = []
        for kind, shape, values in (("tokens", item, one), ("view_bank", (8, 8), np.zeros((views, 8, 8), np.uint8))):
            path, demand = Path(folder) / "x" / f"{kind}.zarr", {f"t{i}": views for i in range(tiles)}
            identity = {"tiles": dict.fromkeys(demand, "")}
            with open_writer(path, kind, identity, shape, str(values.dtype), demand, {}) as writer:
                writer.begin()
                for shard in writer.missing():
                    write_shard(path, kind, shard, values[shard.first : shard.stop])
                writer.seal()
            caches.append(open_cache(path, kind, identity))
        encoded = [codec.encode(view) for view in one] * tiles
        out = np.empty((tiles * views, one[0].size), np.float16)
        source = np.ones_like(out)

        def decode(out: np.ndarray) -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda i: codec.decode(encoded[i], out=out[i]), range(len(encoded))))

        cpu = torch.device("cpu")
        return interleaved(
            repeats,
            read=lambda: load_token_grids(*caches, [f"t{i}" for i in range(tiles)], range(views), cpu, Path(folder)),
            decode=lambda: decode(out),
            decode_fresh=lambda: decode(np.empty_like(out)),
            copy=lambda: np.copyto(out, source),
        )


def print_ratio(name: str, ratio: float, target: str, where: str) -> None:
    """Print one measurement."""
    print(f"{name} ratio={ratio:.3g} target={target} device={where}")


if __name__ == "__main__":
    main()
