"""What stages share: the flags a user passes, and the encoders that failed while others went on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fmcache.errors import FmcacheError


class Flags(NamedTuple):
    """What a user may choose that changes no number beyond rounding: recorded, not part of a recipe.

    `workers` 0 runs everything in this process; `threads` 0 means all cores; `recompute` replaces what is there;
    `compiled` runs encoders through torch.compile.
    """

    work: Path
    device: str = "auto"
    threads: int = 0
    workers: int = 0
    recompute: bool = False
    offline: bool = False
    compiled: bool = False


class Failure(NamedTuple):
    """An encoder that could not be extracted or fitted; the others went on without it."""

    dataset: str
    encoder: str
    error: FmcacheError
