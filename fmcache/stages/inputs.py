"""Open the caches that stage two reads, and check them against recipe and manifest."""

from __future__ import annotations

from pathlib import Path

from fmcache.cache.reader import Cache, open_cache
from fmcache.demand import Demand
from fmcache.specs import Recipe
from fmcache.stages import places
from fmcache.stages.identities import mask_identity, only_tiles, tokens_identity
from fmcache.stages.scale import check_scale


def open_masks(recipe: Recipe, demand: Demand, work: Path) -> Cache:
    """Return the mask cache of a dataset for a recipe.

    Raises
    ------
    CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
        As `open_cache`; also CacheMismatch when the manifest states another um/px than before.
    """
    path = places.mask_cache_path(work, demand.name, recipe)
    identity = mask_identity(recipe, demand.name, demand.dataset, demand.listed_hashes)
    masks = open_cache(path, "view_bank", identity)
    check_scale(path, masks.header, demand.dataset)
    return masks


def open_tokens(recipe: Recipe, demand: Demand, key: str, tap: str, masks: Cache, work: Path) -> Cache:
    """Return the token cache of the encoder `key`, which must hold the same tiles as the mask cache `masks`.

    Drawn tiles have no files: their hashes are those of the mask cache.

    Raises
    ------
    CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
        As `open_cache`.
    """
    hashes = only_tiles(masks.header.identity, demand.views)["tiles"]
    path = places.tokens_path(work, demand.name, key, recipe, tap)
    return open_cache(path, "tokens", tokens_identity(recipe, demand.name, hashes, tap))
