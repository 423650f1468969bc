"""How many seeds are trained concurrently: on a CPU, small decoders one per thread; all others one after another."""

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

SMALL_STEP_MULTIPLY_ADDS = 4e9
"""On a CPU, seeds are trained concurrently when the forward pass of one seed needs at most this many multiply-adds.

Concurrent seeds run one per thread. Below this size, threads that share one training step wait for each other at each
small operation. Above it they share the step well, and concurrent seeds would only need several times the memory.
"""
LOOK_S = 0.2
"""No wait is longer than this, so that Ctrl-C works: with Polars loaded, the system resumes an interrupted wait before
Python sees the signal."""


def concurrent_seed_count(multiply_adds: int, seeds: int, device: torch.device, threads: int) -> int:
    """Return how many of `seeds` are trained concurrently, by the multiply-adds of one seed's forward pass of a batch.

    CPU: one per thread when one seed needs at most `SMALL_STEP_MULTIPLY_ADDS`; otherwise one after another, each on all
    threads. GPU: one after another. Stacking the parameters of seeds was tried and was slower on a CPU
    (pipelines/bench/LOG.md).
    """
    return min(seeds, threads) if threads_of_a_seed(multiply_adds, device, threads) < threads else 1


def threads_of_a_seed(multiply_adds: int, device: torch.device, threads: int) -> int:
    """Return how many of the CPU's `threads` one seed's step uses: one for concurrent seeds, otherwise all.

    This depends only on the multiply-adds, never on the number of seeds. The number of threads decides in which order
    sums are rounded, and a seed that is trained alone must give the same numbers as in a sweep.
    """
    small = device.type == "cpu" and multiply_adds <= SMALL_STEP_MULTIPLY_ADDS
    return 1 if small else threads


def train_concurrently(
    training: Training, seeds: Sequence[int], tick: Callable[[int], None] = lambda _: None, threads: int = 1
) -> Iterator[tuple[int, TrainedRun]]:
    """Train `seeds` concurrently, each in its own Python thread; yield (seed, result) when a seed ends.

    Every seed uses `threads` threads of the CPU (`threads_of_a_seed`), alone or concurrently: its numbers are the same,
    bit for bit. The training source and `tick` are called from several threads, `tick` by only one thread at a time. An
    error of one seed stops the others at their next step; seeds that ended before were already yielded.
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
    stop, tick_lock = threading.Event(), threading.Lock()

    def counted(n: int) -> None:
        if stop.is_set():
            raise _Stopped
        with tick_lock:
            tick(n)

    def train_seed(seed: int) -> TrainedRun:
        torch.set_num_threads(threads)  # the setting of this thread only
        own = replace(
            training,
            decoder=copy.deepcopy(training.decoder),
            train=_Until(stop, training.train),
            val=_Until(stop, training.val),
            test=_Until(stop, training.test),
        )
        return train(own, seed, counted)

    with ThreadPoolExecutor(len(seeds), thread_name_prefix="seed") as pool:
        running = {pool.submit(train_seed, seed): seed for seed in seeds}
        try:
            while running:
                ended, _ = wait(running, LOOK_S, FIRST_COMPLETED)
                for future in ended:
                    yield running.pop(future), future.result()
        finally:
            # after Ctrl-C or an error of one seed the others stop after their current step
            stop.set()


class _Until(NamedTuple):
    """A batch source that stops its seed: after `stop` is set, asking it for a batch raises `_Stopped`."""

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
    """Stops a seed whose result is no longer needed."""
