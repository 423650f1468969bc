"""Looking after caches: list them, re-read every chunk against its checksum, remove them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.cache.format import Header, read_header
from fmcache.cache.reader import FILL, NEVER_WRITTEN, open_cache
from fmcache.cache.writer import locked
from fmcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound


class Entry(NamedTuple):
    """A cache below a folder: its header, or the problem that keeps it from being read; `bytes` on disk."""

    path: Path
    header: Header | None
    problem: str
    bytes: int


def find_caches(folder: Path) -> list[Entry]:
    """Return all caches below `folder`, sorted by path."""
    entries = []
    for path in sorted(folder.glob("**/*.zarr")):
        header, problem = None, ""
        try:
            header = read_header(path)
        except (CacheCorrupt, CacheMismatch, CacheNotFound) as reason:
            problem = reason.problem
        entries.append(Entry(path, header, problem, disk_bytes(path)))
    return entries


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def verify_cache(path: Path, advance: Callable[[int], None]) -> list[str]:
    """Re-read every stored view of a sealed cache; return one line per problem (none when all is well).

    `advance` is called with the number of views done.
    """
    cache = open_cache(path, read_header(path).kind, {})
    problems = []
    for tile, views in zip(cache.header.tiles, cache.header.stored, strict=True):
        for view in range(views):
            try:
                cache.read(tile, view, view + 1)
            except CacheCorrupt as reason:
                problems.append(f"tile {tile} view {view}: {reason.found or reason.problem}")
            advance(1)
    return problems


def mend_step(path: Path, problems: Sequence[str]) -> str:
    """Return what to do about the problems that `verify_cache` found."""
    if all(problem.endswith(NEVER_WRITTEN) for problem in problems):
        return FILL
    return f"fmcache cache rm {path}, then run the same fmcache extract again"


def remove_cache(path: Path) -> int:
    """Remove a cache, whole or not; return the bytes set free.

    Raises
    ------
    CacheNotFound
        When `path` is no cache (nothing else is ever removed).
    Busy
        When another process is writing it.
    """
    if path.suffix != ".zarr" or not (path / "zarr.json").is_file():
        raise CacheNotFound(f"there is no cache {path}", next_step="fmcache cache ls")
    with locked(path):
        size = disk_bytes(path)
        shutil.rmtree(path)
    return size
