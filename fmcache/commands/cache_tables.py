"""What `fmcache cache` shows: a table of caches, one cache as JSON, the results of verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from fmcache.cache.header import read_header
from fmcache.cache.verify import Verdict, verify_cache
from fmcache.errors import (
    CacheCorrupt,
    CacheMismatch,
    CacheNotFound,
    CacheUnsealed,
    FmcacheError,
    ResultsCorrupt,
    ResultsMismatch,
)
from fmcache.runtime.progress import progress
from fmcache.runtime.sizes import size_text
from fmcache.scores.run_files import find_runs, read_run, studies
from fmcache.stages import at_url, places


def list_caches(work: Path) -> Table:
    """Return a table of all caches below the working folder."""
    table = Table(
        "cache", "kind", "state", "tiles", "views", "on disk", title=f"caches in {at_url.shown(places.caches(work))}"
    )
    for name, entry in at_url.list_caches(work):
        if entry.header is None:
            table.add_row(name, "?", entry.problem, "", "", size_text(entry.bytes))
            continue
        views = str(sum(entry.header.stored))
        tiles = str(len(entry.header.tiles))
        table.add_row(name, entry.header.kind, entry.header.state, tiles, views, size_text(entry.bytes))
    return table


def describe_cache(path: Path) -> str:
    """Return the header of a cache as JSON."""
    return msgspec.json.format(msgspec.json.encode(at_url.header_of(path)), indent=2).decode()


def verify_caches(paths: Sequence[Path], work: Path, say: Callable[[str], None]) -> int:
    """Verify caches (all below `work` if none is named), print the result of each; return the number of problems."""
    chosen = list(paths) or [entry.path for _, entry in at_url.list_caches(work)]
    if not chosen:
        raise CacheNotFound(
            f"there is no cache in {at_url.shown(places.caches(work))}", next_step="make one with fmcache extract"
        )
    problems = 0
    for path in chosen:
        found = _verify(path)
        say(f"{at_url.shown(path)}: " + ("no problems" if not found.problems else f"{len(found.problems)} problems"))
        for line in found.problems:
            say(f"  {line}")
        if found.problems:
            say(f"  next: {found.next_step}")
        problems += len(found.problems)
    return problems


def verify_results(work: Path, say: Callable[[str], None]) -> int:
    """Check the files of all runs below `work` against their checksums; print and return the number of damaged runs."""
    at_url.fetch_results(work)
    results = places.results(work)
    folders = [folder for study in studies(results) for folder in find_runs(results, study)]
    damaged: list[FmcacheError] = []
    for folder in folders:
        try:
            read_run(folder)
        except (ResultsCorrupt, ResultsMismatch) as reason:
            damaged.append(reason)
    if folders:
        say(
            f"{at_url.shown(results)}: {len(folders)} runs, "
            + ("no problems" if not damaged else f"{len(damaged)} damaged")
        )
    for error in damaged:
        say(f"  {error.problem}\n  next: {error.next_step}")
    return len(damaged)


def _verify(path: Path) -> Verdict:
    """Verify one cache. A cache that cannot be opened counts as a problem and does not stop the check of the others."""
    try:
        at_url.fetch_to_verify(path)
        with progress(at_url.shown(path), sum(read_header(path).stored), "views") as tick:
            verdict = verify_cache(path, tick)
        at_url.push_marks(path)
        return verdict
    except (CacheUnsealed, CacheCorrupt, CacheMismatch, CacheNotFound) as error:
        return Verdict([error.problem + (f" ({error.found})" if error.found else "")], error.next_step)
