"""Memory or disk space ran out: recognises such errors from any library, and raises them with a clear message."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fmcache.errors import FmcacheError, NoMemory, NoRoom

KEPT = "finished work is kept, and the same command continues from there"
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "insufficient memory", "alloc_failed")
"""Texts in the errors of torch (GPU memory; main memory on Linux and Windows), OpenCV and CUDA's libraries."""
_DISK = ("no space left on device", "disk quota exceeded", "(os error 28)", "(os error 122)")
"""Texts in the errors of libraries written in other languages, which report the system's error as text."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that main memory or GPU memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, Exception) and any(sign in str(error).lower() for sign in _MEMORY)


def lacks_disk(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or the user's quota on it is used up."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and any(sign in str(error).lower() for sign in _DISK)


@contextmanager
def naming_shortage(what: str, relief: str) -> Iterator[None]:
    """Name the current work in the error if memory or disk space runs out in the body.

    Parameters
    ----------
    what
        The work: dataset, encoder, seed.
    relief
        What the user can do so that it needs less memory.

    Raises
    ------
    NoMemory, NoRoom
        In place of the library's error; all other errors pass unchanged.
    """
    try:
        yield
    except FmcacheError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise NoMemory(f"out of memory: {what}", found=_said(error), next_step=f"{relief}; {KEPT}") from error
        if lacks_disk(error):
            raise NoRoom(
                f"the disk is full: {what}",
                found=_said(error),
                next_step=f"free disk space, or choose another folder with --work; {KEPT}",
            ) from error
        raise


def _said(error: Exception) -> str:
    """Return the first line of an error's text, and the file that it names."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
