"""Work that is repeated in a thread while a body runs: finished files are uploaded while the next ones are made."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

STOP_S = 5.0
"""Seconds to wait for uploads under way when the body failed or was interrupted."""


@contextlib.contextmanager
def repeated(act: Callable[[], None], every_s: float, stopped: threading.Event) -> Iterator[None]:
    """Call `act` in a thread again and again, `every_s` after its last end, while the body runs.

    If the body fails, `stopped` is set, so that `act` can end early. If the body succeeds, an error of `act` is raised
    after it; `act` is not called again after its first error.
    """
    ended, failed = threading.Event(), list[Exception]()

    def repeat() -> None:
        while not ended.wait(every_s):
            try:
                act()
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits for it
                failed.append(error)
                return

    thread = threading.Thread(target=repeat, name="upload", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        stopped.set()
        ended.set()
        thread.join(STOP_S)
        raise
    ended.set()
    thread.join()
    for error in failed:
        raise error
