"""Running units of work, one after another or on a Dask cluster of processes, with one interface.

A unit is a function and a task. No two tasks write the same files, so they may run in any order and in any process.
Results are yielded when they are ready. What many tasks need (an encoder, grids in memory) is their setup. A process
opens a setup for its first task, uses it for all tasks of this setup, and frees it before it opens another. The serial
runner does not need Dask.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from fmcache.errors import WorkerDied
from fmcache.shortage import KEPT, naming_shortage

Tick = Callable[[int], None]
"""Called with the number of further steps of work (views, epochs) that are done."""
LOOK_S = 0.2
OPENED = "fmcache_opened"
"""The attribute in which a worker of the cluster keeps its open setup."""
TOPIC = "fmcache-steps"
"""The Dask topic on which processes of the cluster report finished steps and results."""


class Task(Protocol):
    """A unit's argument; picklable."""

    @property
    def weight(self) -> int:
        """Its number of steps of work."""
        ...

    @property
    def title(self) -> str:
        """Its description in messages."""
        ...

    @property
    def relief(self) -> str:
        """A change that makes it need less memory."""
        ...


H = TypeVar("H", covariant=True)
T = TypeVar("T", bound=Task)
R = TypeVar("R")
V = TypeVar("V")


class Setup(Protocol[H]):
    """What tasks share. Picklable; two setups that give the same are equal."""

    def open(self) -> AbstractContextManager[H]:
        """Load what is shared; it is freed when the context is left."""
        ...


Function = Callable[[H, T, Tick], Iterable[R]]


class OpenSetup(Generic[H]):
    """The setup that is open in a process: never more than one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._setup: Setup[H] | None = None
        self._shared: Any = None

    def of(self, setup: Setup[H]) -> H:
        """Return what a setup gives; if another setup is open, it is freed first."""
        if self._setup is None or self._setup != setup:
            self.close()
            self._shared = self._stack.enter_context(setup.open())
            self._setup = setup
        shared: H = self._shared
        return shared

    def close(self) -> None:
        """Free the open setup."""
        self._setup = self._shared = None
        self._stack.close()


def run(
    function: Function[H, T, R], groups: Iterable[tuple[Setup[H], Sequence[T]]], tick: Tick, workers: int = 0
) -> Generator[tuple[T, R], None, None]:
    """Yield (task, result) for all results of all tasks, when they are ready.

    A caller that may stop early must close the iterator (`contextlib.closing`): this ends the processes.

    Parameters
    ----------
    function
        A module-level function (or a partial of one). Its arguments are what the setup gives, a task and a `Tick`. It
        is a generator of results, which are plain values: numbers, text, tuples of them.
    groups
        Tasks by their setup.
    workers
        0: in this process, in order. N > 0: on a cluster of N processes. Both give equal results.

    Raises
    ------
    NoMemory, NoRoom
        When memory or disk space ran out; the message names the task.
    WorkerDied
        When a process of the cluster ended in the middle of a task.
    """
    units = [(setup, task) for setup, tasks in groups for task in tasks]
    return _run_on_dask(function, units, tick, workers) if workers else _run_here(function, units, tick)


def _run_here(
    function: Function[H, T, R], units: Sequence[tuple[Setup[H], T]], tick: Tick
) -> Generator[tuple[T, R], None, None]:
    opened: OpenSetup[H] = OpenSetup()
    with closing(opened):
        for setup, task in units:
            with naming_shortage(task.title, task.relief):
                for result in function(opened.of(setup), task, tick):
                    yield task, result


def _run_on_dask(
    function: Function[H, T, R], units: Sequence[tuple[Setup[H], T]], tick: Tick, workers: int
) -> Generator[tuple[T, R], None, None]:
    from fmcache.runtime.cluster import cluster_of

    if not units:
        return
    with cluster_of(min(workers, len(units))) as client:
        # (number of the task, steps, results, or the future of one that has ended)
        arrived: SimpleQueue[tuple[int, int, Sequence[R], Any]] = SimpleQueue()
        client.subscribe_topic(TOPIC, lambda event: arrived.put((*event[1], None)))
        under_way: dict[int, _Unit[T]] = {}
        waiting = enumerate(units)

        def begin_next() -> None:
            for number, (setup, task) in itertools.islice(waiting, 1):
                under_way[number] = _Unit(task)
                future = client.submit(_in_worker, function, setup, task, number, pure=False)
                future.add_done_callback(functools.partial(_hand_over, arrived, number))

        # one task per worker: if a worker dies, a task that only waited in it would be blamed too
        for _ in range(workers):
            begin_next()
        while under_way:
            number, steps, results, ended = _next(arrived)
            if not (unit := under_way.get(number)):
                continue  # events of a task may arrive after its end, which already reported everything
            if ended:
                results = _outcome(ended, unit.task)[unit.results :]
                steps = unit.task.weight - unit.steps
                del under_way[number]
                ended.release()
                begin_next()
            unit.steps += steps
            unit.results += len(results)
            if steps:
                tick(steps)
            yield from ((unit.task, result) for result in results)


def _next(arrived: SimpleQueue[V]) -> V:
    """Return what arrives next. Each wait is short: with Polars loaded, the system resumes a wait after Ctrl-C."""
    while True:
        with contextlib.suppress(Empty):
            return arrived.get(timeout=LOOK_S)


class _Unit(Generic[T]):
    """A task that runs on the cluster, with the number of its reported steps and results."""

    def __init__(self, task: T) -> None:
        self.task, self.steps, self.results = task, 0, 0


def _hand_over(arrived: SimpleQueue[tuple[int, int, Sequence[Any], Any]], number: int, future: Any) -> None:
    arrived.put((number, 0, (), future))


def _outcome(future: Any, task: Task) -> list[Any]:
    from distributed import KilledWorker

    try:
        results: list[Any] = future.result()
    except KilledWorker as reason:
        raise WorkerDied(
            f"a worker process ended before its work was done: {task.title}",
            found="in most cases the system ended it because memory ran out",
            next_step=f"{task.relief}; {KEPT}",
        ) from reason
    return results


def _in_worker(function: Function[H, T, R], setup: Setup[H], task: T, number: int) -> list[R]:
    from distributed import get_worker

    from fmcache.runtime.cluster import silence

    silence()
    worker, results = get_worker(), []
    # a worker runs one task at a time, and its open setup ends with the worker
    opened: OpenSetup[H] = vars(worker).setdefault(OPENED, OpenSetup())
    with naming_shortage(task.title, task.relief):
        for result in function(opened.of(setup), task, lambda steps: worker.log_event(TOPIC, (number, steps, ()))):
            worker.log_event(TOPIC, (number, 0, (result,)))
            results.append(result)
    return results
