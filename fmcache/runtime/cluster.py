"""A Dask cluster of processes on this machine. It starts without output and ends immediately, even when processes work.

Stopping does not wait for the processes. This is safe, because the files they write appear complete or not at all.
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
    # a task that killed one worker would also kill a second one
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.multiprocessing-method": "spawn",
}
IDLE_S = 2.0
"""Workers that have finished may take this long to end by themselves."""
CLOSE_S = 2.0
LOOK_S = 0.02


@contextlib.contextmanager
def cluster_of(n: int) -> Iterator[Any]:
    """Yield a client of `n` worker processes with one thread each. They end when the body is left, also by an error.

    Dask prints nothing in the body (with FMCACHE_DEBUG=1, it prints everything). Workers do not receive Ctrl-C: this
    process decides when they stop.

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
                # with a limit Dask would pause or kill workers at their share of the memory, even if there is enough
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # any free port: another cluster may already use 8787
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
        while not wait([starting], LOOK_S).done:  # Ctrl-C might not interrupt one long wait: see runners
            pass
        return starting.result()
    except (RuntimeError, OSError, TimeoutError) as reason:
        raise WorkerDied(
            "the processes of --workers do not start",
            found=str(reason).partition("\n")[0][:200] or type(reason).__name__,
            next_step="use fewer --workers, or none",
        ) from reason


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
