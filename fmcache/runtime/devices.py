"""Which device a stage runs on, and what is recorded about it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import torch

from fmcache.errors import SpecError


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; for ``auto`` the first GPU, or the CPU if there is none.

    Raises
    ------
    SpecError
        When torch does not know this device, or the machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpecError(f"unknown device {name!r}", expected="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(
            f"this machine has no device {name!r}",
            expected=f"one of {torch.cuda.device_count()} CUDA devices",
            next_step="pass --device cpu, or install the torch build for your GPU driver",
        )
    return device


def thread_count(threads: int) -> int:
    """Return the requested number of CPU threads; for 0, as many as the process may use."""
    return threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


@contextmanager
def using_threads(threads: int) -> Iterator[int]:
    """Let torch use this many CPU threads (0: as many as the process may use) in the body; yield the number.

    The number of threads changes the order in which sums are rounded, so it is recorded with each result.
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
