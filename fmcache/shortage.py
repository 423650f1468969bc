"""When memory or the disk runs out: told from other errors, whichever library raised it, and put into words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fmcache.errors import FmcacheError, NoMemory, NoRoom

KEPT = "what was finished is kept, and the same command goes on from there"
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "insufficient memory", "alloc_failed")
"""What torch says of a GPU, of main memory (Linux, Windows), what OpenCV says, what CUDA's libraries say."""
_DISK = ("no space left on device", "disk quota exceeded", "(os error 28)", "(os error 122)")
"""What libraries in other languages make of the system's refusal."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that main memory, or that of a GPU, ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, Exception) and any(sign in str(error).lower() for sign in _MEMORY)


def lacks_disk(error: BaseException) -> bool:
    """Return whether an error says that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and any(sign in str(error).lower() for sign in _DISK)


@contextmanager
def shortage_told(what: str, relief: str) -> Iterator[None]:
    """Say of memory or a disk that runs out in the body what was being done then.

    Parameters
    ----------
    what
        The work: dataset, encoder, seed.
    relief
        What makes it need less memory.

    Raises
    ------
    NoMemory, NoRoom
        In place of what a library raised; all other errors pass.
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
                next_step=f"free disk space, or choose another place with --work; {KEPT}",
            ) from error
        raise


def _said(error: Exception) -> str:
    """Return the first line of what an error says, and the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
