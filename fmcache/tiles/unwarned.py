"""Read pictures without irrelevant warnings of libraries, such as missing geographic coordinates."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_TURN = threading.RLock()


@contextmanager
def unwarned(category: type[Warning]) -> Iterator[None]:
    """Ignore warnings in the body, then restore the filters. One thread at a time, because filters are global."""
    with _TURN, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
