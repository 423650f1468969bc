"""Running units of work, one after another or on a Dask cluster of processes, behind one interface.

A unit is a function and a task. Tasks do not share anything they write, so they may run in any order and place;
results come back as they end. The serial runner needs no Dask.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Tick = Callable[[int], None]
"""Tells how many more steps of work (views, epochs) are done."""
TOPIC = "fmcache-steps"
"""Where processes of the cluster tell of steps done."""


class Task(Protocol):
    """A unit's argument; picklable. `weight` is its number of steps of work."""

    @property
    def weight(self) -> int: ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")


def run(function: Callable[[T, Tick], R], tasks: Sequence[T], tick: Tick, workers: int = 0) -> Iterator[tuple[T, R]]:
    """Yield (task, result) of every task, in the order in which they end.

    Parameters
    ----------
    function
        A module-level function (or a partial of one) of a task and a `Tick`.
    workers
        0: in this process, in order. N > 0: on a `distributed.LocalCluster` of N processes. Both give equal results.
    """
    return _run_on_dask(function, tasks, tick, workers) if workers else _run_here(function, tasks, tick)


def _run_here(function: Callable[[T, Tick], R], tasks: Sequence[T], tick: Tick) -> Iterator[tuple[T, R]]:
    for task in tasks:
        yield task, function(task, tick)


def _run_on_dask(
    function: Callable[[T, Tick], R], tasks: Sequence[T], tick: Tick, workers: int
) -> Iterator[tuple[T, R]]:
    from distributed import Client, LocalCluster, as_completed

    with (
        LocalCluster(
            n_workers=min(workers, max(len(tasks), 1)),
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # any free port of this machine: 8787 is that of whoever came first
        ) as cluster,
        Client(cluster) as client,
    ):
        counted = _Counted(tick)
        client.subscribe_topic(TOPIC, lambda event: counted.add(*event[1]))
        numbers = range(len(tasks))
        futures = client.map(functools.partial(_in_worker, function), tasks, numbers, pure=False)
        number_of = dict(zip((future.key for future in futures), numbers, strict=True))
        for future in as_completed(futures):
            number = number_of[future.key]
            result = future.result()
            counted.end(number, tasks[number].weight)
            yield tasks[number], result
            future.release()


def _in_worker(function: Callable[[T, Tick], R], task: T, number: int) -> R:
    from distributed import get_worker

    worker = get_worker()
    return function(task, lambda steps: worker.log_event(TOPIC, (number, steps)))


class _Counted:
    """Ticks from other processes, which may come late: a unit that has ended counts in full, and no more."""

    def __init__(self, tick: Tick) -> None:
        self._tick, self._turn = tick, threading.Lock()
        self._done: dict[int, int] = {}
        self._ended: set[int] = set()

    def add(self, number: int, steps: int) -> None:
        """Count steps of a unit under way."""
        with self._turn:
            if number not in self._ended:
                self._done[number] = self._done.get(number, 0) + steps
                self._tick(steps)

    def end(self, number: int, weight: int) -> None:
        """Count what is left of a unit's steps."""
        with self._turn:
            self._ended.add(number)
            self._tick(weight - self._done.get(number, 0))
