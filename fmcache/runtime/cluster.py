"""The workers of a Dask cluster: processes started on this machine, or those of a scheduler that runs elsewhere.

A cluster on this machine starts without output and ends immediately, even when processes work. Stopping does not wait
for the processes. This is safe, because the files they write appear complete or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import Any, NamedTuple

import psutil

from fmcache.errors import ClusterUnfit, WorkerDied
from fmcache.runtime.admission import VISIBLE

SETTINGS = {
    # the lost task is reported at once; lanes.py decides whether it is tried again
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.multiprocessing-method": "spawn",
}
IDLE_S = 2.0
"""Workers that have finished may take this long to end by themselves."""
CLOSE_S = 2.0
LOOK_S = 0.02
CONNECT_S = 30.0


class Crew(NamedTuple):
    """The workers of a cluster.

    `address` is the scheduler's, or '' for processes of this machine. A task is tried on at most `tries` workers. On
    this machine these are only 2: what ended a worker is mostly lack of memory, which a third one would lack too.
    """

    client: Any
    address: str = ""
    tries: int = 2


class _Kept:
    """The crew that all runs in the body of `keeping_workers` use."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._crew: Crew | None = None

    def crew(self, workers: int | str) -> Crew:
        if self._crew is None:
            self._crew = self._stack.enter_context(crew_of(workers))
        return self._crew

    def close(self) -> None:
        """End the workers; at once when this is called while an error is handled."""
        self._crew = None
        self._stack.__exit__(*sys.exc_info())


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def keeping_workers() -> Iterator[None]:
    """Keep the workers that the first run in the body starts, for all later runs in the body."""
    if _KEPT.get():
        yield
        return
    kept = _Kept()
    before = _KEPT.set(kept)
    try:
        yield
    except BaseException:
        kept.close()
        raise
    else:
        kept.close()
    finally:
        _KEPT.reset(before)


@contextlib.contextmanager
def using(workers: int | str) -> Iterator[Crew]:
    """Yield the kept crew, or a crew of its own for the body. After an error in the body, no crew is kept."""
    kept = _KEPT.get()
    if not kept:
        with crew_of(workers) as crew:
            yield crew
        return
    crew = kept.crew(workers)
    try:
        yield crew
    except BaseException:
        kept.close()  # its tasks may still be running
        raise


@contextlib.contextmanager
def crew_of(workers: int | str) -> Iterator[Crew]:
    """Yield a crew: `workers` processes of this machine, or the workers of the scheduler at this address.

    Raises
    ------
    ClusterUnfit
        When no scheduler answers at the address.
    WorkerDied
        When the processes do not start.
    """
    if isinstance(workers, str):
        with _quiet(), contextlib.closing(_client_at(workers)) as client:
            yield Crew(client, workers, tries=3)
    else:
        with cluster_of(workers) as client:
            yield Crew(client)


def _client_at(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, RuntimeError) as reason:
        raise ClusterUnfit(
            f"no Dask scheduler answers at {address!r}",
            expected="the address that `dask scheduler` prints, such as tcp://HOST:8786",
            found=_first_line(reason),
            next_step="start dask scheduler and dask worker ADDRESS, or use --workers N on this machine",
        ) from reason


@contextlib.contextmanager
def cluster_of(n: int) -> Iterator[Any]:
    """Yield a client of `n` worker processes with one thread each. They end when the body is left, also by an error.

    Each process gets a GPU of its own, as far as there are enough (`CUDA_VISIBLE_DEVICES`). Dask prints nothing in the
    body (with FMCACHE_DEBUG=1, it prints everything). Workers do not receive Ctrl-C: this process decides when they
    stop.

    Raises
    ------
    WorkerDied
        When the processes do not start.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    local = {"host": "127.0.0.1", "protocol": "tcp://"}
    of_workers = local | {
        "nthreads": 1,
        # with a limit Dask would pause or kill workers at their share of the memory, even if there is enough
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }
    workers = {
        i: {"cls": Nanny, "options": of_workers | {"env": environment}} for i, environment in enumerate(environments(n))
    }
    # any free port: another cluster may already use 8787
    scheduler = {"cls": Scheduler, "options": local | {"port": 0, "dashboard_address": "127.0.0.1:0"}}
    before = {child.pid for child in psutil.Process().children()}
    with dask.config.set(SETTINGS), _quiet(), ThreadPoolExecutor(1, "cluster") as pool:
        starting = _unseen_by(
            pool, lambda: SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
        )
        patience = 0.0
        try:
            with Client(_started(starting)) as client:
                yield client
            patience = IDLE_S
        finally:
            _end(starting, before, patience)


def environments(n: int) -> list[dict[str, str]]:
    """Return the environment variables of each of `n` processes: one GPU each, in turn when there are fewer.

    `CUDA_VISIBLE_DEVICES` of this process says which GPUs there are; without it, torch does. Without GPUs the processes
    get no variables.
    """
    if VISIBLE in os.environ:
        gpus = [name.strip() for name in os.environ[VISIBLE].split(",")]
        gpus = gpus[: next((i for i, name in enumerate(gpus) if name in ("", "-1")), len(gpus))]  # as CUDA reads it
    else:
        import torch

        gpus = [str(i) for i in range(torch.cuda.device_count())]
    return [{VISIBLE: gpus[i % len(gpus)]} if gpus else {} for i in range(n)]


def _started(starting: Future[Any]) -> Any:
    try:
        while not wait([starting], LOOK_S).done:  # Ctrl-C might not interrupt one long wait: see runners
            pass
        return starting.result()
    except (RuntimeError, OSError, TimeoutError) as reason:
        raise WorkerDied(
            "the processes of --workers do not start",
            found=_first_line(reason),
            next_step="use fewer --workers, or none",
        ) from reason


def _first_line(reason: BaseException) -> str:
    return str(reason).partition("\n")[0][:200] or type(reason).__name__


def _unseen_by(pool: ThreadPoolExecutor, start: Callable[[], Any]) -> Future[Any]:
    """Call `start` in a thread with Ctrl-C blocked; it is also blocked in all threads and processes started there."""
    if not hasattr(signal, "pthread_sigmask"):
        return pool.submit(start)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(start)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(starting: Future[Any], before: set[int], patience_s: float) -> None:
    """Close a cluster, started or still starting; kill its processes if closing takes longer than `patience_s`."""

    def close() -> None:
        with contextlib.suppress(Exception):
            starting.result().close(patience_s + CLOSE_S)

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(patience_s)
    while closing.is_alive():
        _kill(before)
        closing.join(LOOK_S)
    _kill(before)


def _kill(before: set[int]) -> None:
    """Kill the processes of the cluster: those not in `before`, except Python's own resource tracker."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.pid not in before and any("spawn_main" in part for part in child.cmdline()):
                child.kill()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask in the body; restore the levels of its loggers afterwards."""
    levels = silence()
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def silence() -> dict[logging.Logger, int]:
    """Silence Dask's loggers, unless FMCACHE_DEBUG is set; return their previous levels."""
    if os.environ.get("FMCACHE_DEBUG"):
        return {}
    levels = {
        logger: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in ("distributed", "tornado", "asyncio")
    }
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    return levels
