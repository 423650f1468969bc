"""What stages share: the flags that a user passes, and what failed while the rest continued."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fmcache import errors
from fmcache.errors import FmcacheError


class Flags(NamedTuple):
    """Choices of the user that change no number beyond rounding. They are recorded but are not part of a recipe.

    `workers` 0 runs everything in this process, N > 0 in N processes of this machine, and text on the workers of the
    Dask scheduler at this address; `threads` 0 means all cores; `recompute` replaces existing caches and
    results; `compiled` runs encoders through torch.compile; `yes` agrees to a sweep of very many variants.
    """

    work: Path
    device: str = "auto"
    threads: int = 0
    workers: int | str = 0
    recompute: bool = False
    offline: bool = False
    compiled: bool = False
    yes: bool = False


class Failure(NamedTuple):
    """An encoder that could not be extracted or fitted; the other encoders continued without it."""

    dataset: str
    encoder: str
    error: FmcacheError


class Refused(NamedTuple):
    """An error as plain values: a task yields it in place of a result, also from a worker process."""

    kind: str
    problem: str
    expected: str
    found: str
    next_step: str

    @classmethod
    def of(cls, error: FmcacheError) -> Refused:
        """Return the values of an error."""
        return cls(type(error).__name__, error.problem, error.expected, error.found, error.next_step)

    def error(self) -> FmcacheError:
        """Return the error again."""
        kind: type[FmcacheError] = getattr(errors, self.kind)
        return kind(self.problem, expected=self.expected, found=self.found, next_step=self.next_step)
