"""Tasks on the workers of a Dask cluster: one task at a time per worker, lost tasks again on other workers.

Dask moves functions, errors and events. This module decides which worker gets which task, because it must know what
each worker has loaded, and how often a task was lost:

- A worker gets tasks of the setup that it has open, as long as there are any. So it loads an encoder once.
- A worker has one task at a time, whatever its number of threads. So a worker that dies loses one task.
- A task whose worker is lost is tried again, on another machine if there is one. It is tried a limited number of times
  (`Crew.tries`), because a task may itself be what ends workers.
- Workers may come later, and may leave.

A task has ended when its worker says so in an event. Its results travel in events too: they are not lost with the
worker. Steps and results that a lost worker has already reported are not reported again.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple

from fmcache.errors import ClusterUnfit, WorkerDied
from fmcache.runtime.admission import NOTHING, Expected, Facts, Sees, check, expected, look
from fmcache.runtime.cluster import Crew, using
from fmcache.runtime.runners import Function, H, Order, R, Setup, T, Tick, in_worker
from fmcache.shortage import KEPT

LOOK_S = 0.2
POLL_S = 1.0
"""How often the list of workers is read."""
PATIENCE_S = 120.0
"""How long to wait for a worker when there is none."""


class _Unit(Generic[T]):
    """A task, the number of its setup's group, and what was reported about it by all workers that tried it."""

    def __init__(self, number: int, group: int, task: T) -> None:
        self.number, self.group, self.task = number, group, task
        self.steps = 0
        self.results: list[Any] = []
        self.of_attempts: dict[str, int] = {}
        self.lost: list[str] = []
        self.future: Any = None


class _Event(NamedTuple):
    """What a worker reports: steps and results of an attempt to do a task; see `runners.in_worker`."""

    number: int
    attempt: str
    steps: int
    results: Sequence[Any]
    ended: bool


class _Lane:
    """A worker: the group whose setup it has open, and its task."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.group: int | None = None
        self.unit: _Unit[Any] | None = None


def run_on_dask(
    function: Function[H, T, R],
    groups: Iterable[tuple[Setup[H], Sequence[T]]],
    tick: Tick,
    workers: int | str,
    sees: Sees = NOTHING,
) -> Generator[tuple[T, R], None, None]:
    """Yield (task, result) as `fmcache.runtime.runners.run` does, from the workers of a cluster."""
    known = [(setup, tuple(tasks)) for setup, tasks in groups]
    if any(tasks for _, tasks in known):
        checked = sees if isinstance(workers, str) else NOTHING
        with using(workers) as crew, expected(checked) as wanted, contextlib.closing(_Board(crew, wanted)) as board:
            yield from board.run(function, known, tick)


def facts_of(workers: int | str) -> Mapping[str, Facts]:
    """Return the facts of the workers of a scheduler that runs elsewhere, by address.

    Raises
    ------
    ClusterUnfit
        When no scheduler answers, it has no workers, or they do not fit this command (`admission.check`).
    """
    with using(workers) as crew, expected(NOTHING) as wanted, contextlib.closing(_Board(crew, wanted)) as board:
        return board.first_workers()


class _Board:
    """Which worker has which task."""

    def __init__(self, crew: Crew, wanted: Expected) -> None:
        self._crew, self._client, self._wanted = crew, crew.client, wanted
        self._topic = f"fmcache-{uuid.uuid4().hex}"
        self._lanes: dict[str, _Lane] = {}
        self._asked: dict[str, Any] = {}
        self._refused: set[str] = set()
        self._units: dict[int, _Unit[Any]] = {}
        self._waiting: list[deque[_Unit[Any]]] = []
        self._polled, self._alone_since = 0.0, time.monotonic()
        # events of workers, and numbers with the future of a task that has ended
        self._arrived: SimpleQueue[_Event | tuple[int, Any]] = SimpleQueue()
        self._client.subscribe_topic(self._topic, lambda event: self._arrived.put(_Event(*event[1])))

    def close(self) -> None:
        """Cancel what is still running: workers that run elsewhere stop at their next step."""
        with contextlib.suppress(Exception):
            self._client.unsubscribe_topic(self._topic)
        for unit in self._units.values():
            unit.future = None  # Dask cancels a task that nobody waits for

    def first_workers(self) -> Mapping[str, Facts]:
        """Wait for workers; check those that are there, and return their facts."""
        while not (addresses := self._addresses()):
            self._still_waiting()
            time.sleep(LOOK_S)
        probes = {address: self._probe(address) for address in addresses}
        facts = {address: found for address, probe in probes.items() if (found := self._answer(address, probe))}
        check(facts)
        return facts

    def run(
        self, function: Function[H, T, R], groups: Sequence[tuple[Setup[H], Sequence[T]]], tick: Tick
    ) -> Generator[tuple[T, R], None, None]:
        """Yield (task, result) of all tasks."""
        numbered = enumerate((group, task) for group, (_, tasks) in enumerate(groups) for task in tasks)
        self._units = {number: _Unit(number, group, task) for number, (group, task) in numbered}
        self._waiting = [deque() for _ in groups]
        for each in self._units.values():
            self._waiting[each.group].append(each)
        if self._crew.address:
            self._lanes = {address: _Lane(address) for address in self.first_workers()}
        while self._units:
            self._poll()
            for lane in self._lanes.values():
                if not lane.unit and (unit := self._next_for(lane)):
                    self._submit(function, groups[unit.group][0], unit, lane)
            with contextlib.suppress(Empty):
                # each wait is short: with Polars loaded, the system resumes a wait after Ctrl-C
                arrived = self._arrived.get(timeout=LOOK_S)
                if isinstance(arrived, _Event):
                    yield from self._take(arrived, tick)
                else:
                    self._ended(*arrived)

    def _submit(self, function: Function[H, T, R], setup: Setup[H], unit: _Unit[T], lane: _Lane) -> None:
        lane.unit, lane.group = unit, unit.group
        order = Order(self._topic, unit.number, self._wanted.folder, local=not self._crew.address)
        unit.future = self._client.submit(
            in_worker, function, setup, unit.task, order,
            pure=False, workers=[lane.address], allow_other_workers=False,
        )  # fmt: skip
        unit.future.add_done_callback(functools.partial(self._hand_over, unit.number))

    def _hand_over(self, number: int, future: Any) -> None:
        self._arrived.put((number, future))

    def _next_for(self, lane: _Lane) -> _Unit[Any] | None:
        """Return a task for a worker: of its open setup, else of one that no worker has open, else of the longest."""
        if lane.group is not None and (unit := self._first_of(lane.group, lane)):
            return unit
        opened = {other.group for other in self._lanes.values()}
        left = [group for group, waiting in enumerate(self._waiting) if waiting]
        left.sort(key=lambda group: (group in opened, group if group not in opened else -len(self._waiting[group])))
        return next((unit for group in left if (unit := self._first_of(group, lane))), None)

    def _first_of(self, group: int, lane: _Lane) -> _Unit[Any] | None:
        """Take the first task of a group that was not lost on this worker's machine, if there are other machines."""
        waiting, hosts = self._waiting[group], {_host(address) for address in self._lanes}
        for i, unit in enumerate(waiting):
            lost_on = {_host(address) for address in unit.lost}
            if _host(lane.address) not in lost_on or hosts <= lost_on:
                del waiting[i]
                return unit
        return None

    def _take(self, event: _Event, tick: Tick) -> Iterator[tuple[Any, Any]]:
        if not (unit := self._units.get(event.number)):
            return  # of an attempt that was taken for lost
        unit.of_attempts[event.attempt] = unit.of_attempts.get(event.attempt, 0) + event.steps
        steps = unit.task.weight if event.ended else unit.of_attempts[event.attempt]
        if steps > unit.steps:
            tick(steps - unit.steps)
            unit.steps = steps
        new = [result for result in event.results if result not in unit.results]
        unit.results += new
        if event.ended:
            self._free(unit)
            del self._units[event.number]
            unit.future = None
        yield from ((unit.task, result) for result in new)

    def _ended(self, number: int, future: Any) -> None:
        """Handle a task that failed. What succeeded was reported by an event; a future that was given up is ignored."""
        from distributed import KilledWorker

        unit = self._units.get(number)
        if not unit or unit.future is not future or future.status == "finished":
            return
        if future.status != "error":
            raise self._gone()
        if isinstance(future.exception(), KilledWorker):
            self._lose(unit)
        else:
            future.result()  # raises the worker's error, with its traceback

    def _poll(self) -> None:
        """Read the list of workers: give the tasks of lost workers to others, and check new workers."""
        if time.monotonic() - self._polled < POLL_S:
            return
        self._polled, addresses = time.monotonic(), self._addresses()
        for lane in [lane for address, lane in self._lanes.items() if address not in addresses]:
            if lane.unit:
                self._lose(lane.unit)
            else:
                del self._lanes[lane.address]
        for address in addresses - self._lanes.keys() - self._asked.keys() - self._refused:
            if self._crew.address:
                self._asked[address] = self._probe(address)
            else:
                self._lanes[address] = _Lane(address)
        for address, probe in list(self._asked.items()):
            if probe.done() or address not in addresses:
                del self._asked[address]
                self._admit_later(address, probe)
        if self._lanes:
            self._alone_since = time.monotonic()
        self._still_waiting()

    def _admit_later(self, address: str, probe: Any) -> None:
        """Use a worker that came after the start, if it fits; otherwise name it and do not use it."""
        if probe.status == "cancelled" or not probe.done():
            return
        try:
            if facts := self._answer(address, probe):
                check({address: facts})
                self._lanes[address] = _Lane(address)
        except ClusterUnfit as error:
            self._refused.add(address)
            print(f"a new worker is not used: {error}", file=sys.stderr)

    def _lose(self, unit: _Unit[Any]) -> None:
        """Put a task whose worker is lost back into its queue.

        Raises
        ------
        WorkerDied
            When it was lost too often.
        """
        lane = self._free(unit)
        if lane:
            del self._lanes[lane.address]
            unit.lost.append(lane.address)
        unit.future = None
        if len(unit.lost) >= self._crew.tries:
            raise WorkerDied(
                f"a worker process ended before its work was done: {unit.task.title}",
                found=f"{len(unit.lost)} workers ended while they did it ({', '.join(unit.lost)}); in most cases the "
                "system ends a process because memory ran out",
                next_step=f"{unit.task.relief}; {KEPT}",
            )
        self._waiting[unit.group].appendleft(unit)

    def _free(self, unit: _Unit[Any]) -> _Lane | None:
        lane = next((lane for lane in self._lanes.values() if lane.unit is unit), None)
        if lane:
            lane.unit = None
        return lane

    def _probe(self, address: str) -> Any:
        return self._client.submit(look, self._wanted, pure=False, workers=[address], allow_other_workers=False)

    def _answer(self, address: str, probe: Any) -> Facts | None:
        """Return the facts of a worker; None when it left before it answered.

        Raises
        ------
        ClusterUnfit
            When it cannot even import this package.
        """
        while not probe.done():
            if address not in self._addresses():
                return None
            with contextlib.suppress(TimeoutError):
                probe.result(timeout=POLL_S)
        if probe.status == "error":
            reason = probe.exception()
            raise ClusterUnfit(
                f"the worker {address} cannot run tasks of fmcache",
                expected="the same Python environment as here",
                found=f"{type(reason).__name__}: {reason}",
                next_step="install fmcache for the workers: the same environment, or the same container",
            ) from reason
        facts: Facts = probe.result()
        return facts

    def _addresses(self) -> set[str]:
        try:
            return set(self._client.nthreads())
        except (OSError, TimeoutError, RuntimeError) as reason:
            raise self._gone() from reason

    def _gone(self) -> WorkerDied:
        return WorkerDied(
            f"the Dask scheduler{f' at {self._crew.address}' if self._crew.address else ''} ended, or dropped this "
            "command's tasks",
            next_step=f"start it again, with its workers; {KEPT}",
        )

    def _still_waiting(self) -> None:
        if time.monotonic() - self._alone_since > PATIENCE_S:
            where = f" at {self._crew.address}" if self._crew.address else ""
            raise ClusterUnfit(
                f"the Dask scheduler{where} has no workers that can be used",
                found=f"none for {PATIENCE_S:g} s",
                next_step=f"start workers (dask worker ADDRESS), then run the same command; {KEPT}",
            )


def _host(address: str) -> str:
    return address.rpartition(":")[0]
