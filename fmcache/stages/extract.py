"""Stage one: manifest -> views -> encoder -> cache. Every frozen encoder runs once over every view.

This module decides from headers and hashes what is missing. torch and weights are loaded only if something is missing
(filling.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fmcache.cache.reader import open_cache
from fmcache.cache.writer import is_complete
from fmcache.demand import Demand, all_tiles, check_sweep, demands
from fmcache.encoders.cards import TIMM, read_card
from fmcache.errors import (
    Busy,
    CacheCorrupt,
    CacheMismatch,
    CacheNotFound,
    CacheUnsealed,
    EncoderUnavailable,
    NoMemory,
    SpecError,
    TokensOverflow,
    WeightsMismatch,
    WorkerDied,
)
from fmcache.manifest import Manifest
from fmcache.remembered import Remembered
from fmcache.runtime.cluster import keeping_workers
from fmcache.specs import EncoderChoice, Recipe, cache_recipes
from fmcache.stages import at_url, places
from fmcache.stages.extract_request import ExtractRequest
from fmcache.stages.flags import Failure, Flags
from fmcache.stages.identities import Hashes, mask_identity, tokens_identity
from fmcache.stages.labelled import check_labelled, label_pixels
from fmcache.stages.origins import check_origin, encoder_info
from fmcache.stages.scale import check_boundary, is_recorded, without_side
from fmcache.stages.sources import check_sources
from fmcache.stages.tile_pictures import write_tile_pictures
from fmcache.tiles.images import read_tile


def extract(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None] = print) -> list[Failure]:
    """Write the mask cache of each dataset of `recipe` and the caches of its encoders; return the encoders that failed.

    A sweep has several sets of caches if it changes them (`cache_recipes`).

    Shards that exist are kept; only missing shards are written. `say` gets one line for each cache. Then pictures of
    test tiles are written, as far as they are missing.

    Raises
    ------
    FmcacheError
        For an error that affects all encoders: manifest, tiles, disk space, a mask cache with other views, a split
        without a labelled pixel. An error of one encoder (its weights, its cache, another process that writes its
        cache, memory) is not raised but returned.
    ClusterUnfit
        When the workers of a Dask cluster do not fit.
    """
    with keeping_workers():
        return _extract(recipe, manifest, flags, say)


def _extract(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None]) -> list[Failure]:
    _check_request(recipe, flags)
    failures: list[Failure] = []
    remembered = Remembered(places.remembered(flags.work))
    if line := check_sweep(recipe, manifest, flags.yes):
        say(line)
    for one in cache_recipes(recipe):
        for demand in demands(one, manifest):
            check_boundary(one, demand)
            check_sources(demand, manifest.folder, remembered)
            hashes = content_hashes(demand, manifest.folder)
            asked = ExtractRequest(one, demand, hashes, manifest.path, flags, say)
            with at_url.extracting(asked):
                failed = _extract_dataset(asked, remembered)
            failures += [failure for failure in failed if failure[:2] not in {known[:2] for known in failures}]
    return failures


def _check_request(recipe: Recipe, flags: Flags) -> None:
    """Raise for mistakes in the request, before tiles are read: that can take minutes.

    Raises
    ------
    EncoderUnavailable, SpecError
        When no encoder has this name, two encoders have the same name, or there is no such device.
    """
    places.encoder_keys(recipe)
    for choice in recipe.encoder_choices:
        if not choice.name.startswith(TIMM):
            read_card(choice.name)
    if flags.device not in ("auto", "cpu") and not isinstance(flags.workers, str):
        from fmcache.runtime.devices import pick_device  # torch

        pick_device(flags.device)
    flags.work.mkdir(parents=True, exist_ok=True)


def content_hashes(demand: Demand, folder: Path) -> Hashes:
    """Return (image, mask) sha256 by tile id: from the manifest for files, from the drawn pixels for drawn tiles."""
    if hashes := demand.listed_hashes:
        return hashes
    tiles = (read_tile(demand.dataset, entry, folder) for entry in demand.entries)
    return {tile.id: (tile.image_sha256, tile.mask_sha256) for tile in tiles}


def _extract_dataset(asked: ExtractRequest, remembered: Remembered) -> list[Failure]:
    mask_cache, failures = _MaskCache(asked), []
    choices, name = asked.recipe.encoder_choices, asked.demand.name
    complete = {choice: _complete(asked, choice, remembered) for choice in choices}
    remembered.keep()
    for i, choice in enumerate(choices, start=1):
        try:
            if title := complete[choice]:
                mask_cache.make()
                asked.say(f"{name} · {title}: complete, {sum(asked.demand.views.values())} views")
            else:
                from fmcache.stages.filling import fill_encoder  # torch

                fill_encoder(asked, choice, mask_cache.make)
        except (
            EncoderUnavailable,
            SpecError,
            WeightsMismatch,
            TokensOverflow,
            Busy,
            CacheMismatch,
            CacheCorrupt,
            NoMemory,
            WorkerDied,
        ) as error:
            if not mask_cache.made and isinstance(error, CacheMismatch | CacheCorrupt | WorkerDied):
                raise  # all encoders need the mask cache
            # the traceback of an error would keep large objects in memory
            failures.append(Failure(name, places.encoder_key(choice), error.bare()))
            more = "; continuing with the next encoder" if i < len(choices) else ""
            asked.say(f"{name} · {choice.name}: failed{more}")
    if mask_cache.made:
        write_tile_pictures(asked)
    return failures


class _MaskCache:
    """The mask cache of a dataset. It is written once for all encoders, when the first encoder is ready to run."""

    def __init__(self, asked: ExtractRequest) -> None:
        self._asked, self.made = asked, False

    def make(self) -> None:
        """Write the mask cache if not yet done. Raise for a split without a labelled pixel, before an encoder runs."""
        if self.made:
            return
        asked, demand = self._asked, self._asked.demand
        if self._is_complete():
            asked.say(f"{demand.name} · mask cache: complete, {sum(demand.views.values())} views")
        else:
            from fmcache.stages.filling import fill_masks  # torch

            fill_masks(asked)
        self._check()
        self.made = True

    def _is_complete(self) -> bool:
        asked, demand = self._asked, self._asked.demand
        identity = mask_identity(asked.recipe, demand.name, demand.dataset, asked.hashes)
        return (
            not asked.flags.recompute
            and is_complete(asked.mask_cache_path, "view_bank", identity, demand.views)
            and is_recorded(asked.mask_cache_path, demand.dataset)
            and not without_side(asked.recipe, demand, asked.hashes, asked.mask_cache_path)
        )

    def _check(self) -> None:
        demand, side = self._asked.demand, self._asked.recipe.tile_px
        mask_cache = open_cache(self._asked.mask_cache_path, "view_bank", {})
        pixels = label_pixels(mask_cache, all_tiles(demand.splits.values()), len(demand.dataset.labels), (side,))[side]
        for fold, splits in demand.splits.items():
            check_labelled(demand.name, fold, splits, pixels)


def _complete(asked: ExtractRequest, choice: EncoderChoice, remembered: Remembered) -> str:
    """Return the display name of an encoder if all its caches are complete and all facts about it were compared.

    Otherwise return an empty string. Then the encoder is loaded, and loading reports the problem.
    """
    if asked.flags.recompute:
        return ""
    recipe, demand = asked.recipe, asked.demand
    key, lock, title = places.encoder_key(choice), places.weights_lock(asked.flags.work), ""
    try:
        for tap in recipe.taps:
            path = places.tokens_path(asked.flags.work, demand.name, key, recipe, tap)
            identity = tokens_identity(recipe, demand.name, asked.hashes, tap)
            if not is_complete(path, "tokens", identity, demand.views):
                return ""
            cache = open_cache(path, "tokens", identity)
            if check_origin(cache, key, choice, recipe, lock, remembered.sha256):
                return ""
            title = title or encoder_info(cache).display
    except (
        CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt, SpecError, EncoderUnavailable, WeightsMismatch
    ):  # fmt: skip
        return ""
    return title
