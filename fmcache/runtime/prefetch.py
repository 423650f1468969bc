"""Background work before or after the thread that needs it: in order, bounded; errors are raised in that thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def pool_of(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; when the body is left early, work that was not started is cancelled."""
    pool = ThreadPoolExecutor(threads, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(pool: Executor, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Yield ``function(item)`` of every item in order; at most `window` of them are started and not yet yielded.

    An error is raised when its result would have been yielded.
    """
    started: deque[Future[R]] = deque()
    for item in items:
        started.append(pool.submit(function, item))
        if len(started) >= window:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()


class WriteBehind:
    """Calls that run in a pool; at most `window` of them are pending, then `hand_over` waits."""

    def __init__(self, pool: Executor, window: int) -> None:
        self._pool, self._window = pool, window
        self._pending: deque[Future[Any]] = deque()

    def hand_over(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the pool call a function. If an earlier call failed, its error is raised here."""
        while self._pending and (len(self._pending) >= self._window or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))

    def finish(self) -> None:
        """Wait for all calls; raise the error of the first call that failed."""
        while self._pending:
            self._pending.popleft().result()
