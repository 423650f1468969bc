"""How many seeds are trained at once: small ones in lanes on a CPU, others one after another."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import torch

from fmcache.decoders.batches import Step
from fmcache.decoders.train import BatchSource, TrainedRun, Training, train

LANE_MULTIPLY_ADDS = 4e9
"""Seeds run in lanes on a CPU while the forward pass of one takes no more than this.

A lane is a thread with a seed of its own. Below this size threads that share one step wait for each other at each small
operation; beyond it they share well, and several seeds at once would only need several times the memory.
"""
LOOK_S = 0.2
"""No wait is longer: Polars lets the system resume a wait that Ctrl-C interrupts, before Python hears of it."""


def concurrent_seed_count(multiply_adds: int, seeds: int, device: torch.device, threads: int) -> int:
    """Return how many of `seeds` are trained at once, by the multiply-adds of one seed's forward pass over a batch.

    CPU: one per thread when one seed stays below `LANE_MULTIPLY_ADDS`, else one after another, each on all threads.
    GPU: one after another. Stacking the parameters of seeds was tried and took longer on a CPU
    (pipelines/bench/LOG.md).
    """
    return min(seeds, threads) if threads_of_a_seed(multiply_adds, device, threads) < threads else 1


def threads_of_a_seed(multiply_adds: int, device: torch.device, threads: int) -> int:
    """Return how many of the CPU's `threads` one seed's step runs on: one where seeds go in lanes, else all.

    It depends on the arithmetic alone, never on how many seeds there are or are still to do: threads decide in which
    order sums are rounded, and a seed alone is to give the numbers it gives in a sweep.
    """
    small = device.type == "cpu" and multiply_adds <= LANE_MULTIPLY_ADDS
    return 1 if small else threads


def train_concurrently(
    training: Training, seeds: Sequence[int], tick: Callable[[int], None] = lambda _: None, threads: int = 1
) -> Iterator[tuple[int, TrainedRun]]:
    """Train `seeds` at once, each in a lane of its own; yield (seed, outcome) as each ends.

    Every seed runs on `threads` threads of the CPU (`threads_of_a_seed`), alone or in a lane: its numbers are the same,
    bit for bit. The training source and `tick` are called from several threads, `tick` by one at a time. An error in
    one lane ends the others at their next step; what had ended before was yielded.
    """
    if len(seeds) == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            fitted = train(training, seeds[0], tick)
        finally:
            torch.set_num_threads(before)
        yield seeds[0], fitted
        return
    stop, turn = threading.Event(), threading.Lock()

    def counted(n: int) -> None:
        if stop.is_set():
            raise _Stopped
        with turn:
            tick(n)

    def lane(seed: int) -> TrainedRun:
        torch.set_num_threads(threads)  # that of this thread alone
        own = replace(
            training,
            decoder=copy.deepcopy(training.decoder),
            train=_Until(stop, training.train),
            val=_Until(stop, training.val),
            test=_Until(stop, training.test),
        )
        return train(own, seed, counted)

    with ThreadPoolExecutor(len(seeds), thread_name_prefix="seed") as pool:
        lanes = {pool.submit(lane, seed): seed for seed in seeds}
        try:
            while lanes:
                ended, _ = wait(lanes, LOOK_S, FIRST_COMPLETED)
                for one in ended:
                    yield lanes.pop(one), one.result()
        finally:
            # after Ctrl-C or an error in one lane the others end with their step
            stop.set()


class _Until(NamedTuple):
    """A source that ends the lane which asks it for a batch once `stop` is set."""

    stop: threading.Event
    source: BatchSource

    @property
    def tiles(self) -> tuple[str, ...]:
        return self.source.tiles

    @property
    def views(self) -> range:
        return self.source.views

    def fetch(self, step: Step, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self.stop.is_set():
            raise _Stopped
        return self.source.fetch(step, device)


class _Stopped(Exception):
    """Ends a lane whose result nobody waits for any more."""
