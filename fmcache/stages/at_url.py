"""What the stages do when the working folder is the copy of a URL; otherwise these functions do nothing.

The stages work in the copy. Before, they read what they need from the URL; what they finish is written to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fmcache.cache.header import Header, read_header
from fmcache.demand import Demand
from fmcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound
from fmcache.remote.copies import home_of, home_of_cache
from fmcache.specs import Recipe
from fmcache.stages import places
from fmcache.stages.extract_request import ExtractRequest

if TYPE_CHECKING:
    from fmcache.cache.verify import CacheEntry


@contextlib.contextmanager
def extracting(asked: ExtractRequest) -> Iterator[None]:
    """Make the copy whole for the caches of a request before the body decides what is missing; share small files."""
    work = asked.flags.work
    if not (home := home_of(work)):
        yield
        return
    from fmcache.remote.cache_copies import CacheCopy
    from fmcache.remote.result_copies import fetch_files, push_files, share_pins

    share_pins(home, places.weights_lock(work))
    pictures = places.tile_picture(work, asked.demand.name, asked.recipe.tile_px, "").parent
    known = fetch_files(home, pictures)
    if not asked.flags.recompute:
        keys = [places.encoder_key(choice) for choice in asked.recipe.encoder_choices]
        caches = [
            places.tokens_path(work, asked.demand.name, k, asked.recipe, tap) for k in keys for tap in asked.recipe.taps
        ]
        for path in (asked.mask_cache_path, *caches):
            CacheCopy(home, path).fetch()
    yield
    share_pins(home, places.weights_lock(work))
    push_files(home, pictures, known)


def writing(path: Path, *, recompute: bool) -> AbstractContextManager[None]:
    """Return the context in which the cache at `path` is written, also at its URL."""
    if not (home := home_of_cache(path)):
        return nullcontext()
    from fmcache.remote.cache_copies import CacheCopy

    return CacheCopy(home, path).writing(recompute=recompute)


def fetch_masks(recipe: Recipe, demand: Demand, work: Path) -> None:
    """Read what a fit needs besides tokens: masks, pictures of tiles, pins of weights. Raises as `CacheCopy.fetch`."""
    if not (home := home_of(work)):
        return
    from fmcache.remote.cache_copies import CacheCopy
    from fmcache.remote.result_copies import fetch_files, share_pins

    share_pins(home, places.weights_lock(work))
    fetch_files(home, places.tile_picture(work, demand.name, recipe.tile_px, "").parent)
    CacheCopy(home, places.mask_cache_path(work, demand.name, recipe)).fetch(demand.views)


def fetch_tokens(recipe: Recipe, demand: Demand, key: str, taps: Sequence[str], work: Path) -> None:
    """Read the views of an encoder's tokens that a fit needs. Raises as `CacheCopy.fetch`."""
    if not (home := home_of(work)):
        return
    from fmcache.remote.cache_copies import CacheCopy

    for tap in taps:
        CacheCopy(home, places.tokens_path(work, demand.name, key, recipe, tap)).fetch(demand.views)


def cached_encoders(work: Path, dataset: str, recipe: Recipe, taps: Sequence[str]) -> list[str]:
    """Return the keys of the encoders that have caches of all `taps` for this dataset and recipe, sorted."""
    if not (home := home_of(work)):
        return places.cached_encoders(work, dataset, recipe, taps)
    from fmcache.remote.cache_copies import CacheCopy

    keys = home.objects.folders(home.key(places.caches(work) / dataset))
    paths = {key: [places.tokens_path(work, dataset, key, recipe, tap) for tap in taps] for key in keys}
    return [key for key, wanted in paths.items() if all(CacheCopy(home, path).exists() for path in wanted)]


def writing_results(study: Path, work: Path) -> AbstractContextManager[None]:
    """Return the context in which runs are added to the results of a study, also at their URL."""
    if not (home := home_of(work)):
        return nullcontext()
    from fmcache.remote import result_copies

    return result_copies.writing_results(home, study)


def fetch_results(work: Path) -> None:
    """Read the results of all studies that the copy lacks, or of which it has others."""
    if not (home := home_of(work)):
        return
    from fmcache.remote import result_copies

    result_copies.fetch_results(home, places.results(work))


def shown(path: Path) -> str:
    """Return the name of a file or folder for messages: its URL when it lies in the copy of one."""
    home = next((home for folder in path.parents if (home := home_of(folder))), None)
    return home.url(path) if home else str(path)


def list_caches(work: Path) -> list[tuple[str, CacheEntry]]:
    """Return the caches of a working folder with their names for messages, sorted by path."""
    from fmcache.cache.verify import CacheEntry, find_caches

    if not (home := home_of(work)):
        return [(str(entry.path), entry) for entry in find_caches(places.caches(work))]
    from fmcache.remote.cache_copies import CacheCopy

    found, folders, top = [], home.objects.folders, places.caches(work)
    for folder in (
        top / dataset / key for dataset in folders(home.key(top)) for key in folders(home.key(top / dataset))
    ):
        for name in folders(home.key(folder)):
            if not name.endswith(".zarr"):
                continue
            copy, header, problem = CacheCopy(home, folder / name), None, ""
            try:
                header = copy.header()
            except (CacheCorrupt, CacheMismatch, CacheNotFound) as reason:
                problem = reason.problem
            found.append((home.url(copy.path), CacheEntry(copy.path, header, problem, copy.bytes())))
    return found


def header_of(path: Path) -> Header:
    """Return the header of a cache: that at its URL, or that on disk; raises as `read_header`."""
    if not (home := home_of_cache(path)):
        return read_header(path)
    from fmcache.remote.cache_copies import CacheCopy

    return CacheCopy(home, path).header()


def fetch_to_verify(path: Path) -> None:
    """Read all shards of a cache from its URL again."""
    if home := home_of_cache(path):
        from fmcache.remote.cache_copies import CacheCopy

        CacheCopy(home, path).fetch(fresh=True)


def push_marks(path: Path) -> None:
    """Write the marks of damaged shards of a cache to its URL."""
    if home := home_of_cache(path):
        from fmcache.remote.cache_copies import CacheCopy

        CacheCopy(home, path).push_marks()


def remove(path: Path) -> int:
    """Remove a cache, also at its URL; return the freed bytes there. Raises as `fmcache.cache.verify.remove_cache`."""
    if not (home := home_of_cache(path)):
        from fmcache.cache.verify import remove_cache

        return remove_cache(path)
    from fmcache.remote.cache_copies import CacheCopy

    return CacheCopy(home, path).remove()
