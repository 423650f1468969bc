"""Reading pictures without the warnings of libraries that expect other ones: with a place on earth, say."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_TURN = threading.RLock()


@contextmanager
def unwarned(category: type[Warning]) -> Iterator[None]:
    """Ignore warnings in the body; one thread at a time, since filters are everybody's, and all are given back."""
    with _TURN, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
