"""fmcache cache: list, inspect, verify and remove caches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fmcache.commands.options import DEFAULT_WORK, Work, say, show
from fmcache.errors import Busy, CacheNotFound, FmcacheError

app = typer.Typer(no_args_is_help=True, help="Caches: list, inspect, verify, remove.\n\nExample: fmcache cache ls")


@app.command("ls")
def cache_ls(work: Work = DEFAULT_WORK) -> None:
    """List all caches with state, views and size on disk.

    Example: fmcache cache ls
    """
    from fmcache.commands.cache_tables import list_caches

    show(list_caches(work))


@app.command("info")
def cache_info(path: Annotated[Path, typer.Argument(help="A cache (a folder NAME.zarr, or its URL).")]) -> None:
    """Print what a cache was made from, as JSON.

    Example: fmcache cache info work/cache/demo/raw-pixels/128px.zarr
    """
    from fmcache.commands.cache_tables import describe_cache
    from fmcache.remote.copies import local_cache

    say(describe_cache(local_cache(path)))


@app.command("verify")
def cache_verify(
    path: Annotated[
        list[Path] | None, typer.Argument(help="Caches; default: all caches and results in the working folder.")
    ] = None,
    work: Work = DEFAULT_WORK,
) -> None:
    """Read every chunk and compare its checksum; without a path, check results too. Exit code 1 if anything is damaged.

    Damaged shards are marked. Then the same extract and fit compute only the damaged shards and runs again.

    Example: fmcache cache verify
    """
    from fmcache.commands.cache_tables import verify_caches, verify_results
    from fmcache.remote.copies import local_cache

    problems = verify_caches([local_cache(one) for one in path or ()], work, say)
    if not path:
        problems += verify_results(work, say)
    if problems:
        raise typer.Exit(1)


@app.command("rm")
def cache_rm(
    path: Annotated[list[Path], typer.Argument(help="Caches to remove.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove caches. A cache that cannot be removed is reported after the others were removed.

    Example: fmcache cache rm work/cache/demo/raw-pixels/128px.zarr
    """
    from fmcache.remote.copies import local_cache
    from fmcache.runtime.sizes import size_text
    from fmcache.stages.at_url import remove, shown

    failed: list[FmcacheError] = []
    for folder in path:
        cache = local_cache(folder)
        if yes or typer.confirm(f"remove {shown(cache)}?"):
            try:
                say(f"{shown(cache)}: removed, {size_text(remove(cache))} freed")
            except (CacheNotFound, Busy) as error:
                failed.append(error)
    for reason in failed:
        print(f"error: {reason}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
