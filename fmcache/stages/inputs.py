"""Open the caches that stage two reads, and check them against recipe and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmcache.cache.reader import Cache, open_cache
from fmcache.demand import Demand
from fmcache.errors import CacheNotFound, SpecError
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


def open_taps(
    recipe: Recipe, demand: Demand, key: str, taps: Sequence[str], masks: Cache, work: Path
) -> tuple[Cache, ...]:
    """Return the token caches of the taps that one decoder reads, in their order.

    Raises
    ------
    CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
        As `open_tokens`.
    SpecError
        When the grids of the taps have different sizes.
    """
    found, absent = [], []
    for tap in taps:
        try:
            found.append(open_tokens(recipe, demand, key, tap, masks, work))
        except CacheNotFound:
            if len(taps) == 1:
                raise
            absent.append(tap)
    if absent:
        raise CacheNotFound(
            f"{demand.name} · {key}: a decoder for taps that were not extracted",
            expected=f"caches of taps {', '.join(taps)}",
            found=f"no cache of {', '.join(absent)}",
            next_step=f"run fmcache extract --dataset {demand.name} --encoder {key} --tap {','.join(taps)}, with the "
            "same recipe and --work folder",
        )
    sides = {tap: cache.item[-1] for tap, cache in zip(taps, found, strict=True)}
    if len(set(sides.values())) > 1:
        raise SpecError(
            f"{demand.name} · {key}: one decoder cannot read taps whose grids have different sizes",
            found=", ".join(f"{tap}: {side} x {side}" for tap, side in sides.items()),
            next_step="choose taps of one size, or another decoder",
        )
    return tuple(found)


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
