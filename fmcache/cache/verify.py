"""Managing caches: list them, read every chunk and compare its checksum, remove them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Set
from pathlib import Path
from typing import NamedTuple

from fmcache.cache.checksums import mark_damaged
from fmcache.cache.header import ARRAY, FILLING, MADE_BY, METADATA, Header, Kind, read_header
from fmcache.cache.reader import open_cache
from fmcache.errors import Busy, CacheCorrupt, CacheMismatch, CacheNotFound
from fmcache.identity import remove_folder
from fmcache.locks import lock_files, locked


class CacheEntry(NamedTuple):
    """A cache below a folder: its header, or the problem why it cannot be read; `bytes` on disk."""

    path: Path
    header: Header | None
    problem: str
    bytes: int


def find_caches(folder: Path) -> list[CacheEntry]:
    """Return all caches below `folder`, sorted by path."""
    entries = []
    for path in sorted(folder.glob("**/*.zarr")):
        header, problem = None, ""
        try:
            header = read_header(path)
        except (CacheCorrupt, CacheMismatch, CacheNotFound) as reason:
            problem = reason.problem
        entries.append(CacheEntry(path, header, problem, disk_bytes(path)))
    return entries


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Verdict(NamedTuple):
    """The result of verifying a cache: one line per problem (empty when there is none), and what to do."""

    problems: list[str]
    next_step: str


def verify_cache(path: Path, advance: Callable[[int], None]) -> Verdict:
    """Read every stored view of a sealed cache, and mark damaged or missing shards: extract then writes them again.

    `advance` is called with the number of views done.

    Raises
    ------
    CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
        When it cannot be opened, as in `open_cache`.
    """
    cache = open_cache(path, read_header(path).kind, {})
    problems, damaged = [], set()
    for position, (tile, views) in enumerate(zip(cache.header.tiles, cache.header.stored, strict=True)):
        for view in range(views):
            try:
                cache.read(tile, view, view + 1)
            except CacheCorrupt as reason:
                problems.append(f"tile {tile} view {view}: {reason.found or reason.problem}")
                damaged.add((position, view // cache.views_a_shard))
            advance(1)
    return Verdict(problems, _marked(path, cache.header.kind, damaged) if damaged else "")


def _marked(path: Path, kind: Kind, damaged: Set[tuple[int, int]]) -> str:
    try:
        with locked(path):
            for tile, block in damaged:
                mark_damaged(path, tile, block)
    except (Busy, OSError) as reason:
        return (
            f"the damage could not be marked ({reason}): get write access and verify again before you run "
            f"{MADE_BY[kind]}"
        )
    if kind == "slide_tokens":
        return f"run the same {MADE_BY[kind]} again: it replaces this cache when it makes a map"
    shards = "1 damaged shard" if len(damaged) == 1 else f"the {len(damaged)} damaged shards"
    return f"run the same {MADE_BY[kind]} again: it rewrites only {shards}"


def remove_cache(path: Path) -> int:
    """Remove a cache, complete or not; return the freed bytes.

    Raises
    ------
    CacheNotFound
        When `path` is not a cache (other folders are never removed).
    Busy
        When another process is writing it.
    """
    if path.suffix != ".zarr" or not path.is_dir() or not any((path / name).exists() for name in _PARTS):
        raise CacheNotFound(f"there is no cache {path}", next_step="fmcache cache ls lists all caches")
    with locked(path):
        size = disk_bytes(path)
        remove_folder(path)
        for file in lock_files(path):
            with contextlib.suppress(PermissionError):  # Windows does not remove open files
                file.unlink(missing_ok=True)
    return size


_PARTS = (METADATA, FILLING, *ARRAY.values())
"""A folder that holds any of these is a cache, possibly an incomplete one that a kill left."""
