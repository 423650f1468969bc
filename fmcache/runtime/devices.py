"""Which device a stage runs on, and what to record of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import torch

from fmcache.errors import SpecError


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; for ``auto`` the first GPU, or the CPU where there is none.

    Raises
    ------
    SpecError
        When torch knows or has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpecError(f"unknown device {name!r}", expected="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(
            f"device {name!r} is not here",
            expected=f"one of {torch.cuda.device_count()} CUDA devices",
            next_step="pass --device cpu, or install the torch build for your GPU driver",
        )
    return device


def thread_count(threads: int) -> int:
    """Return how many CPU threads a user asked for; for 0 as many as the process may use."""
    return threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


@contextmanager
def using_threads(threads: int) -> Iterator[int]:
    """Let torch use this many CPU threads (0: as many as the process may use) in the body; yield the number.

    Sums over threads are rounded in another order, so the number is recorded beside each result.
    """
    before, count = torch.get_num_threads(), thread_count(threads)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """Return a device's name for the record: the GPU's model, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of packages, for the record."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
