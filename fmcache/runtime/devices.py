"""Which device a stage runs on, and what is recorded about it."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import NamedTuple

import torch

from fmcache.errors import ClusterUnfit, SpecError, some


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


class Where(NamedTuple):
    """Where tasks run: the device as torch calls it, its name for the record, the CPU threads of each process,
    and the number of processes."""

    device: str
    name: str
    threads: int
    processes: int


def where(device: str, threads: int, workers: int | str) -> Where:
    """Return where tasks run: in this process (`workers` 0), in processes of this machine, or at a scheduler's workers.

    With 0 threads, processes of one machine share its cores. All workers use the same number of threads, because it
    changes rounding: the smallest of their shares. ``auto`` is a GPU when the workers have GPUs.

    Raises
    ------
    SpecError
        When there is no such device; when workers are asked to use one particular GPU, although each uses its own.
    ClusterUnfit
        When the scheduler or its workers do not fit (`fmcache.runtime.lanes.facts_of`), or GPUs are missing.
    """
    if workers and device.startswith("cuda:"):
        raise SpecError(
            f"workers cannot all use {device}: each worker uses a GPU of its own",
            next_step="pass --device cuda; CUDA_VISIBLE_DEVICES chooses the GPUs of this machine",
        )
    if not isinstance(workers, str):
        picked = pick_device(device)
        share = thread_count(threads) // (1 if threads else max(workers, 1))
        return Where(str(picked), device_name(picked), max(share, 1), max(workers, 1))
    from fmcache.runtime.lanes import facts_of

    facts = facts_of(workers)
    gpus = {one.gpus[0] for one in facts.values() if one.gpus}
    if device == "cuda" and not gpus:
        raise ClusterUnfit(
            "the workers of the Dask cluster have no GPU",
            found=some(f"{address} on {one.host}" for address, one in facts.items()),
            next_step="pass --device cpu, or install the torch build for the GPU driver of the workers",
        )
    hosts = Counter(one.host for one in facts.values())
    share = min(one.cores // hosts[one.host] for one in facts.values())
    count = threads or max(share, 1)
    if device == "cpu" or not gpus:
        return Where("cpu", device_name(torch.device("cpu")), count, len(facts))
    return Where("cuda", " + ".join(sorted(gpus)), count, len(facts))


def device_name(device: torch.device) -> str:
    """Return a device's name for the record: the GPU's model, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of packages, for the record."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
