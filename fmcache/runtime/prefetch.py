"""Doing work ahead of, or behind, the thread that needs it: in order, bounded, errors where the results are taken."""

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
    """Yield a pool of threads; when it is left early, work that was not begun is dropped."""
    pool = ThreadPoolExecutor(threads, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(pool: Executor, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Yield ``function(item)`` of every item in order; at most `window` of them are begun and not yet taken.

    An error is raised when its result would have been yielded.
    """
    begun: deque[Future[R]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) >= window:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class WriteBehind:
    """Calls handed over to a pool; at most `window` of them are pending, or handing over waits."""

    def __init__(self, pool: Executor, window: int) -> None:
        self._pool, self._window = pool, window
        self._pending: deque[Future[Any]] = deque()

    def hand_over(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the pool call a function; raise what an earlier call raised, once it is known."""
        while self._pending and (len(self._pending) >= self._window or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))

    def finish(self) -> None:
        """Wait for all calls; raise what the first that failed raised."""
        while self._pending:
            self._pending.popleft().result()
