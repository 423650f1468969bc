"""Running units of work, one after another or on the workers of a Dask cluster, with one interface.

A unit is a function and a task. No two tasks write the same files, so they may run in any order and in any process.
Results are yielded when they are ready. What many tasks need (an encoder, grids in memory) is their setup. A process
opens a setup for its first task, uses it for all tasks of this setup, and frees it before it opens another. The serial
runner does not need Dask. `lanes.py` distributes tasks to workers; `in_worker` is what a worker calls.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fmcache.runtime.admission import NOTHING, Sees
from fmcache.shortage import naming_shortage

Tick = Callable[[int], None]
"""Called with the number of further steps of work (views, epochs) that are done."""
OPENED = "fmcache_opened"
"""The attribute in which a worker of the cluster keeps its open setup."""
REPORT_S = 0.2
"""A worker reports finished steps at most this often, so that many workers do not keep the scheduler busy."""


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
    function: Function[H, T, R],
    groups: Iterable[tuple[Setup[H], Sequence[T]]],
    tick: Tick,
    workers: int | str = 0,
    sees: Sees = NOTHING,
) -> Generator[tuple[T, R], None, None]:
    """Yield (task, result) for all results of all tasks, when they are ready.

    A caller that may stop early must close the iterator (`contextlib.closing`): this ends the processes.

    Parameters
    ----------
    function
        A module-level function (or a partial of one). Its arguments are what the setup gives, a task and a `Tick`. It
        is a generator of results, which are plain values: numbers, text, tuples of them. Results of a task differ from
        each other.
    groups
        Tasks by their setup.
    workers
        0: in this process, in order. N > 0: on N processes of this machine. Text: on the workers of the Dask scheduler
        at this address. All give equal results.
    sees
        What workers of a scheduler must see; not checked for processes of this machine.

    Raises
    ------
    NoMemory, NoRoom
        When memory or disk space ran out; the message names the task.
    ClusterUnfit
        When no scheduler answers, or its workers do not fit (`fmcache.runtime.admission.check`).
    WorkerDied
        When workers ended in the middle of a task, on each of the workers that tried it.
    """
    if not workers:
        return _run_here(function, groups, tick)
    from fmcache.runtime.lanes import run_on_dask

    return run_on_dask(function, groups, tick, workers, sees)


def _run_here(
    function: Function[H, T, R], groups: Iterable[tuple[Setup[H], Sequence[T]]], tick: Tick
) -> Generator[tuple[T, R], None, None]:
    opened: OpenSetup[H] = OpenSetup()
    with closing(opened):
        for setup, tasks in groups:
            for task in tasks:
                with naming_shortage(task.title, task.relief):
                    for result in function(opened.of(setup), task, tick):
                        yield task, result


class Order(NamedTuple):
    """Which task a worker does: the Dask topic of its reports, its number, and the folder where paths start.

    `local` workers belong to this command alone: Dask prints nothing in them.
    """

    topic: str
    number: int
    folder: str
    local: bool


class Abandoned(Exception):
    """Ends a task in a worker that nobody waits for any more."""


def in_worker(function: Function[H, T, R], setup: Setup[H], task: T, order: Order) -> None:
    """Do a task in a worker of a cluster; report its steps, results and end as events of the order's topic."""
    from distributed import get_worker

    from fmcache.runtime.cluster import silence

    if order.local:
        silence()
    worker = get_worker()
    process: _Process = vars(worker).setdefault(OPENED, _Process())
    report = _Reporter(worker, order)
    with process.lock:  # a worker with several threads does one task at a time too
        report.stop_if_abandoned()
        if str(Path.cwd()) != order.folder:
            os.chdir(order.folder)  # relative paths of a recipe mean the same files as where the command runs
        with naming_shortage(task.title, task.relief):
            for result in function(process.opened.of(setup), task, report.steps):
                report.send((result,))
    report.send(ended=True)


class _Process:
    """What a worker process keeps between tasks: the open setup, which ends with the process, and its lock."""

    def __init__(self) -> None:
        self.opened: OpenSetup[Any] = OpenSetup()
        self.lock = threading.Lock()


class _Reporter:
    """Reports an attempt to do a task; called by one thread at a time."""

    def __init__(self, worker: Any, order: Order) -> None:
        self._worker, self._order, self._attempt = worker, order, uuid.uuid4().hex
        self._key = worker.get_current_task()
        self._steps, self._sent = 0, 0.0

    def stop_if_abandoned(self) -> None:
        """Raise `Abandoned` if the scheduler no longer wants this task: the command was stopped, or has ended."""
        state = self._worker.state.tasks.get(self._key)
        if state is None or state.state == "cancelled":
            raise Abandoned

    def steps(self, steps: int) -> None:
        """Count finished steps; they are reported from time to time."""
        self.stop_if_abandoned()
        self._steps += steps
        if time.monotonic() - self._sent >= REPORT_S:
            self.send()

    def send(self, results: tuple[Any, ...] = (), ended: bool = False) -> None:
        """Report steps that were not reported before, results, and whether the task has ended."""
        event = (self._order.number, self._attempt, self._steps, results, ended)
        self._worker.log_event(self._order.topic, event)
        self._steps, self._sent = 0, time.monotonic()
