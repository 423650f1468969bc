"""Whether a worker of a Dask cluster fits this process: versions, code, folders, files. Checked before its first task.

Workers may be on other machines. A worker with another version, or with another manifest, would write other numbers. A
worker that does not see the working folder would write where nobody reads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import socket
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from fmcache.errors import ClusterUnfit, some

PACKAGES = (
    "fmcache", "torch", "timm", "numpy", "zarr", "numcodecs", "opencv-python-headless", "pillow", "polars", "dask",
    "distributed",
)  # fmt: skip
WHOLE_BYTES = 64 * 2**20
"""Files up to this size are compared by their sha256; larger files (weights) by their size, because loading checks
their sha256 anyway."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Sees(NamedTuple):
    """What workers must see: files and folders that tasks read, by what they are, and folders that tasks write into."""

    reads: tuple[tuple[str, Path], ...] = ()
    writes: tuple[tuple[str, Path], ...] = ()


NOTHING = Sees()


class Expected(NamedTuple):
    """What a worker compares: the current folder of the client, and (what, path, state) of what it must see."""

    folder: str
    reads: tuple[tuple[str, str, str], ...]
    marks: tuple[tuple[str, str], ...]
    """(what, path) of files that the client has just made in the folders that tasks write into."""


class Facts(NamedTuple):
    """What a worker is: its host, versions by package, CPU cores it may use, its GPUs, and what it does not see."""

    host: str
    versions: Mapping[str, str]
    cores: int
    gpus: tuple[str, ...]
    visible: str
    unseen: tuple[str, ...]


@contextlib.contextmanager
def expected(sees: Sees) -> Iterator[Expected]:
    """Yield what workers must find; in the body, each folder to write into holds a marker file."""
    made: list[tuple[str, str]] = []
    try:
        for what, folder in sees.writes:
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder.resolve() / f".fmcache-seen-{uuid.uuid4().hex}"
            mark.touch()
            made.append((what, str(mark)))
        reads = tuple((what, str(path.resolve()), state_of(path)) for what, path in sees.reads)
        yield Expected(str(Path.cwd()), reads, tuple(made))
    finally:
        for _, name in made:
            Path(name).unlink(missing_ok=True)


def state_of(path: Path) -> str:
    """Return the state of a file or folder as text: equal for equal content of files up to `WHOLE_BYTES`."""
    try:
        if path.is_dir():
            return "a folder"
        size = path.stat().st_size
        if size > WHOLE_BYTES:
            return f"{size} bytes"
        return f"{size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    except OSError as reason:
        return reason.strerror or "cannot be read"


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python, of this package's source code, and of the packages that decide numbers."""
    found = {"python": platform.python_version(), "code of fmcache": _code()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _code() -> str:
    """Return the start of the sha256 of all Python files of the package: two checkouts may have the same version."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def look(wanted: Expected) -> Facts:
    """Return the facts of the process that calls this: a worker of a cluster."""
    unseen = []
    if not Path(wanted.folder).is_dir():
        unseen.append(f"current folder {wanted.folder}: there is no such folder")
    for what, name, state in wanted.reads:
        if (here := state_of(Path(name))) != state:
            unseen.append(f"{what} {name}: {here}, where the command runs: {state}")
    for what, name in wanted.marks:
        folder = Path(name).parent
        if not folder.is_dir():
            unseen.append(f"{what} {folder}: there is no such folder")
        elif not Path(name).exists():
            unseen.append(f"{what} {folder}: a folder of this name exists, but it is another one")
        elif not os.access(folder, os.W_OK):
            unseen.append(f"{what} {folder}: no right to write")
    return Facts(socket.gethostname(), versions(), _cores(), _gpus(), os.environ.get(VISIBLE, ""), tuple(unseen))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> tuple[str, ...]:
    if os.environ.get(VISIBLE) in ("", "-1") or not util.find_spec("torch"):
        return ()
    import torch

    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def differences(facts: Facts) -> list[str]:
    """Return what is different on a worker from this process: versions, and what it does not see."""
    here, there = versions(), facts.versions
    lines = [
        f"{name} {there.get(name, 'is not installed')} instead of {here.get(name, 'none')}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
    return lines + list(facts.unseen)


def check(workers: Mapping[str, Facts]) -> None:
    """Compare workers, by their addresses, with this process and with each other.

    Raises
    ------
    ClusterUnfit
        When a worker has other versions or does not see what tasks need; the message names all differences. Also when
        some workers have GPUs and others have none, or several workers of one machine would use the same GPU although
        it has more.
    """
    found: dict[str, list[str]] = {}
    for address, facts in workers.items():
        for line in differences(facts):
            found.setdefault(line, []).append(f"{address} on {facts.host}")
    if found:
        raise ClusterUnfit(
            "workers of the Dask cluster do not fit this command",
            expected="the same versions as here, and the same files under the same paths",
            found="\n         ".join(f"{line} ({some(who, 3)})" for line, who in found.items()),
            next_step="install the same environment for the workers, and mount the same folders at the same paths",
        )
    _check_gpus(workers)


def _check_gpus(workers: Mapping[str, Facts]) -> None:
    if len({bool(facts.gpus) for facts in workers.values()}) > 1:
        without = [f"{address} on {facts.host}" for address, facts in workers.items() if not facts.gpus]
        raise ClusterUnfit(
            "some workers have a GPU and others have none: their numbers would differ",
            found=f"no GPU: {some(without)}",
            next_step="start workers of one kind",
        )
    shared: dict[tuple[str, str], int] = {}
    for facts in workers.values():
        if len(facts.gpus) > 1:
            shared[facts.host, facts.visible] = shared.get((facts.host, facts.visible), 0) + 1
    if crowded := [host for (host, _), n in shared.items() if n > 1]:
        raise ClusterUnfit(
            "several workers of one machine would all use its first GPU, although it has more",
            found=some(crowded),
            next_step=f"start each worker with one GPU of its own: {VISIBLE}=0 dask worker ..., {VISIBLE}=1 dask "
            "worker ...",
        )
