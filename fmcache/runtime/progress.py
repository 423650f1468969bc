"""Progress of a stage: a bar with rate and remaining time on a terminal, a line from time to time in a log."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_EVERY_S = 15.0


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else f"? {self.unit}/s")


SILENT = io.StringIO()
"""With this stream no progress is written."""
_STREAM: ContextVar[TextIO | None] = ContextVar("stream", default=None)


@contextmanager
def progress_to(stream: TextIO | None) -> Iterator[None]:
    """Write progress in the body to `stream` (`SILENT`: nowhere; None: standard error)."""
    before = _STREAM.set(stream)
    try:
        yield
    finally:
        _STREAM.reset(before)


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show the progress of `total` units of work, of which `done` were finished before; yield a function to add units.

    On a terminal this is a bar on standard error. Otherwise it is a line at most every 15 s, and one at the end.
    `progress_to` selects another stream.
    """
    stream = _STREAM.get() or sys.stderr
    if stream is SILENT:
        yield lambda _: None
    elif stream.isatty():
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(unit),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(file=stream)) as bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda n: bar.advance(task, n)
    else:
        yield from _lines(stream, title, total, unit, done)


def _lines(stream: TextIO, title: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    count = done

    def advance(n: int) -> None:
        nonlocal count, last
        count += n
        now = time.monotonic()
        if now - last >= LOG_EVERY_S or count >= total:
            last = now
            rate = (count - done) / max(now - start, 1e-9)
            left = (total - count) / rate if rate else float("inf")
            print(
                f"{title}: {count}/{total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left",
                file=stream,
                flush=True,
            )

    yield advance
