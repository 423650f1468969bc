"""A Dask cluster of processes on this machine: it starts quietly, and ends at once, whatever its processes are doing.

Nothing waits for a process that is stopped: what it writes appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import psutil

from fmcache.errors import WorkerDied

SETTINGS = {
    # a second worker would die of what killed the first
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.multiprocessing-method": "spawn",
}
IDLE_S = 2.0
"""Workers that are done may take this long to end by themselves."""
CLOSE_S = 2.0
LOOK_S = 0.02


@contextlib.contextmanager
def cluster_of(n: int) -> Iterator[Any]:
    """Yield a client of `n` worker processes of one thread each; when it is left, however it is, they are gone.

    Dask tells nothing by itself in the meantime (FMCACHE_DEBUG=1: all that it says). Workers do not see Ctrl-C: what
    they do then is for this process to say.

    Raises
    ------
    WorkerDied
        When the processes do not start.
    """
    import dask
    from distributed import Client, LocalCluster

    before = {child.pid for child in psutil.Process().children()}
    with dask.config.set(SETTINGS), _quiet(), ThreadPoolExecutor(1, "cluster") as pool:
        starting = _unseen_by(
            pool,
            lambda: LocalCluster(
                n_workers=n,
                threads_per_worker=1,
                processes=True,
                # Dask would pause workers, or kill them, at their share of the memory, though there may be enough
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # any free port: 8787 is that of whoever came first
                silence_logs=logging.CRITICAL,
            ),
        )
        patience = 0.0
        try:
            with Client(_started(starting)) as client:
                yield client
            patience = IDLE_S
        finally:
            _end(starting, before, patience)


def _started(starting: Future[Any]) -> Any:
    try:
        while not wait([starting], LOOK_S).done:  # one long wait might not be interrupted: see runners
            pass
        return starting.result()
    except (RuntimeError, OSError, TimeoutError) as reason:
        raise WorkerDied(
            "the processes of --workers do not start",
            found=str(reason).partition("\n")[0][:200] or type(reason).__name__,
            next_step="use fewer --workers, or none",
        ) from reason


def _unseen_by(pool: ThreadPoolExecutor, start: Callable[[], Any]) -> Future[Any]:
    """Call `start` in a thread in which Ctrl-C is blocked, as it is in all threads and processes begun from there."""
    if not hasattr(signal, "pthread_sigmask"):
        return pool.submit(start)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(start)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(starting: Future[Any], before: set[int], patience_s: float) -> None:
    """Close a cluster, started or starting; kill its processes if it takes longer than `patience_s`."""

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
    """Kill the processes that were begun since: those of the cluster, not the one that keeps Python's own account."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.pid not in before and any("spawn_main" in part for part in child.cmdline()):
                child.kill()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask in the body; its loggers say afterwards what they said before."""
    levels = silence()
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def silence() -> dict[logging.Logger, int]:
    """Let Dask's loggers say nothing, unless FMCACHE_DEBUG is set; return the levels that they had."""
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
