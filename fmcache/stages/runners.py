"""Running units of work, one after another or on a Dask cluster of processes, behind one interface.

A unit is a function and a task. Tasks do not share anything they write, so they may run in any order and place;
results come back as they end. The serial runner needs no Dask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Tick = Callable[[int], None]
"""Tells how many more steps of work (views, epochs) are done."""


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
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(function, tasks, [_silent] * len(tasks), pure=False)
        task_of = dict(zip((future.key for future in futures), tasks, strict=True))
        for future in as_completed(futures):
            task = task_of[future.key]
            result = future.result()
            tick(task.weight)
            yield task, result
            future.release()


def _silent(_: int) -> None:
    """Progress inside a unit is not sent across processes; it is counted when the unit ends."""
