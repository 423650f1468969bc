"""Stage one: manifest -> views -> encoder -> cache. Every frozen encoder runs once over every view."""

from __future__ import annotations

import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from fmcache.cache.layout import raw_bytes
from fmcache.cache.reader import open_cache
from fmcache.cache.stores import store_of
from fmcache.cache.writer import Writer, open_writer
from fmcache.encoders.load import Encoder
from fmcache.encoders.taps import LAST, check_taps, grid_at, width_at
from fmcache.errors import (
    Busy,
    CacheCorrupt,
    CacheMismatch,
    EncoderUnavailable,
    NoMemory,
    NoRoom,
    SpecError,
    TokensOverflow,
    WeightsMismatch,
    WorkerDied,
)
from fmcache.grid import Grid
from fmcache.manifest import AnyDataset, Manifest, TileEntry
from fmcache.remembered import Remembered
from fmcache.scores.table import EncoderInfo
from fmcache.shortage import shortage_told
from fmcache.specs import EncoderChoice, Precision, Recipe, variants
from fmcache.stages import places, runners
from fmcache.stages.devices import device_name, pick_device, set_threads, versions
from fmcache.stages.flags import Failure, Flags
from fmcache.stages.identities import (
    Hashes,
    bank_identity,
    chosen_splits,
    listed_hashes,
    tokens_identity,
    used_tiles,
    views_wanted,
    with_encoder,
)
from fmcache.stages.labelled import check_labelled, label_pixels
from fmcache.stages.origins import origin_of, weights_name
from fmcache.stages.progress import progress
from fmcache.stages.scale import is_recorded, scale_of
from fmcache.stages.shards import (
    LESS_MEMORY,
    BankTask,
    Source,
    Target,
    TokenTask,
    encoder_of,
    write_bank_shards,
    write_token_shards,
)
from fmcache.stages.sizes import size_text
from fmcache.stages.sources import check_sources
from fmcache.strict import builtins
from fmcache.tiles.images import read_tile

WAIT_S = 0.5


def extract(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None] = print) -> list[Failure]:
    """Make the view bank of each dataset of `recipe` and the cache of each of its encoders; return those that failed.

    What is there is kept; only missing shards are written. `say` gets one line on each cache.

    Raises
    ------
    FmcacheError
        For anything that would spoil all encoders: manifest, tiles, disk space, a view bank of other views, a split
        without a labelled pixel. What concerns one encoder (its weights, its cache, another process at it, memory) is
        returned.
    """
    set_threads(flags.threads)
    device = pick_device(flags.device)
    # views 1..n do not depend on how many there are: the variant with most of them holds those of all others
    recipe = max(variants(recipe), key=lambda variant: variant.views.count)
    places.encoder_keys(recipe)  # two encoders of one name are refused before one of them has run
    failures, remembered = [], Remembered(places.remembered(flags.work))
    for name in recipe.datasets or (manifest.default,):
        dataset = manifest.dataset(name)
        chosen = chosen_splits(recipe, name, dataset)
        demand = views_wanted(dataset, chosen.values(), recipe.views.count)
        entries = [tile for tile in dataset.tiles if tile.id in demand]
        check_sources(name, dataset, entries, manifest.folder, remembered)
        hashes = content_hashes(dataset, entries, manifest.folder)
        bare: AnyDataset = msgspec.structs.replace(dataset, tiles=())
        source = Source(manifest.folder, name, bare, recipe.tile_px, recipe.views)
        banked = False
        for i, choice in enumerate(recipe.encoder_choices, start=1):
            try:
                with shortage_told(f"{name} · {choice.name}", LESS_MEMORY):
                    encoder = encoder_of(
                        choice, str(device), flags.offline, places.weights_lock(flags.work), flags.compiled
                    )
                    check_taps(encoder, recipe.taps, Grid(recipe.tile_px, encoder.card.patch, recipe.grid))
                    if not banked:  # only now: who may not have the weights is told before all masks are rendered
                        _fill_bank(recipe, source, entries, demand, hashes, flags, say)
                        _check_bank(recipe, name, dataset, flags.work)
                        banked = True
                    _fill_tokens(recipe, choice, encoder, source, entries, demand, hashes, flags, say)
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
                if not banked and isinstance(error, CacheMismatch | CacheCorrupt | WorkerDied):
                    raise  # the view bank is everybody's
                # with its traceback an error would keep what filled the memory
                failures.append(Failure(name, places.encoder_key(choice), error.bare()))
                more = "; going on with the next encoder" if i < len(recipe.encoder_choices) else ""
                say(f"{name} · {choice.name}: failed{more}")
    return failures


def content_hashes(dataset: AnyDataset, entries: Sequence[TileEntry], folder: Path) -> Hashes:
    """Return (image, mask) sha256 by tile id: those of the manifest for files, of what is drawn for drawn tiles."""
    if hashes := listed_hashes(dataset, [entry.id for entry in entries]):
        return hashes
    tiles = (read_tile(dataset, entry, folder) for entry in entries)
    return {tile.id: (tile.image_sha256, tile.mask_sha256) for tile in tiles}


def _fill_bank(
    recipe: Recipe,
    source: Source,
    entries: Sequence[TileEntry],
    demand: dict[str, int],
    hashes: Hashes,
    flags: Flags,
    say: Callable[[str], None],
) -> None:
    path = places.bank_path(flags.work, source.name, recipe)
    identity = bank_identity(recipe, source.name, source.dataset, hashes)
    scale = scale_of(source.dataset)
    about = {"versions": versions("fmcache", "opencv-python-headless", "pillow")} | scale
    item, title = (recipe.tile_px, recipe.tile_px), f"{source.name} · view bank"
    # shards that are there were made, and checked, under what the manifest stated then
    if scale["view_mpp"] and not flags.recompute and not is_recorded(path, source.dataset):
        for entry in entries:
            source.tile(entry)

    def opened() -> AbstractContextManager[Writer]:
        return open_writer(path, "view_bank", identity, item, "uint8", demand, about, flags.recompute)

    with _when_free(opened, title, say) as writer:
        by_id = {entry.id: entry for entry in entries}
        _fill(
            [writer],
            write_bank_shards,
            lambda tile, targets: BankTask(targets[0], source, by_id[tile]),
            title,
            flags.workers,
            say,
        )
        writer.record(scale)


@contextmanager
def _when_free(
    opened: Callable[[], AbstractContextManager[Writer]], title: str, say: Callable[[str], None]
) -> Iterator[Writer]:
    """Open a cache that every process needs: while another one makes it, wait."""
    with ExitStack() as held:
        while True:
            try:
                writer = held.enter_context(opened())
                break
            except Busy:
                if title:
                    say(f"{title}: another process is making it; waiting until it ends")
                title = ""
                time.sleep(WAIT_S)
        yield writer


def _check_bank(recipe: Recipe, name: str, dataset: AnyDataset, work: Path) -> None:
    """Refuse a split of untouched tiles without a labelled pixel, before an encoder runs for hours for it."""
    bank = open_cache(places.bank_path(work, name, recipe), "view_bank", {})
    chosen = chosen_splits(recipe, name, dataset)
    tiles, side = used_tiles(dataset, chosen.values()), recipe.tile_px
    pixels = label_pixels(bank, tiles, len(dataset.labels), (side,))[side]
    for fold, splits in chosen.items():
        check_labelled(name, fold, splits, pixels)


def _fill_tokens(
    recipe: Recipe,
    choice: EncoderChoice,
    encoder: Encoder,
    source: Source,
    entries: Sequence[TileEntry],
    demand: dict[str, int],
    hashes: Hashes,
    flags: Flags,
    say: Callable[[str], None],
) -> None:
    card, device = encoder.card, encoder.device
    key = places.encoder_key(choice)
    grid = Grid(recipe.tile_px, card.patch, recipe.grid)
    published: Precision = card.precision if device.type == "cuda" else "float32"
    precision = published if recipe.precision == "published" else recipe.precision
    about = {
        "device": device_name(device),
        "compiled": flags.compiled,
        "versions": versions("fmcache", "torch", "timm", "opencv-python-headless", "pillow"),
        "origin": builtins(origin_of(choice, card, encoder.weights, encoder.notes)),
    }
    store = store_of(recipe.store)
    by_id = {entry.id: entry for entry in entries}
    with ExitStack() as stack:
        writers = []
        for tap in recipe.taps:
            path = places.tokens_path(flags.work, source.name, key, recipe, tap)
            identity = with_encoder(
                tokens_identity(recipe, source.name, hashes, tap), builtins(card), encoder.weights_sha256,
                encoder.random_weights, precision,
            )  # fmt: skip
            told = about | {"encoder": builtins(_info(encoder, key, tap, choice))}
            at = grid_at(encoder, tap, grid)
            item = (width_at(encoder, tap), at.side, at.side)
            opened = open_writer(
                path, "tokens", identity, item, store.dtype, demand, told, flags.recompute, store.compressor
            )
            writers.append(stack.enter_context(opened))
        tap_of = {writer.path: tap for writer, tap in zip(writers, recipe.taps, strict=True)}
        _fill(
            writers,
            write_token_shards,
            lambda tile, targets: TokenTask(
                targets, tuple(tap_of[target.path] for target in targets), source, by_id[tile], choice, grid,
                precision, recipe.store, str(device), torch.get_num_threads(), flags.offline,
                places.weights_lock(flags.work), flags.compiled,
            ),
            f"{source.name} · {_info(encoder, key, LAST, choice).display}",
            flags.workers,
            say,
        )  # fmt: skip


def _info(encoder: Encoder, key: str, tap: str, choice: EncoderChoice) -> EncoderInfo:
    """Return what tables and figures say of an encoder; a tap other than the last makes it another entry."""
    card, kind = encoder.card, "block" if encoder.axes == "tokens" else "stage"
    title = choice.alias or card.title
    name, title = (key, title) if tap == LAST else (f"{key}@{tap}", f"{title}, {kind} {tap}")
    patch = card.patch if tap == LAST else encoder.taps[int(tap.partition("+")[0]) - 1].patch
    return EncoderInfo(
        name, title, encoder.params, width_at(encoder, tap), patch, card.control, encoder.random_weights,
        encoder.weights_sha256, card.licence, card.citation, weights_name(choice, card, encoder.weights),
    )  # fmt: skip


def _fill(
    writers: Sequence[Writer],
    write: Callable[[Sequence[Any], runners.Tick], None],
    task_of: Callable[[str, tuple[Target, ...]], Any],
    title: str,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Write what is missing in caches of the same views; one task for the same views in all of them.

    Views of taps whose shards hold different numbers of them go through the encoder once for each such number. Here,
    `write` gets all tasks, and works ahead from one to the next; on a cluster each process gets one at a time.
    """
    first = writers[0]
    by_views: dict[tuple[str, int, int], list[Target]] = {}
    size = 0
    for writer in writers:
        missing = writer.missing()
        size += raw_bytes(missing, writer.layout.view_bytes)
        for shard in missing:
            views = (writer.header.tiles[shard.tile], shard.first, shard.stop)
            by_views.setdefault(views, []).append(Target(writer.path, shard))
    wanted, passes = sum(first.demand), sum(stop - start for _, start, stop in by_views)
    todo = len({(tile, view) for tile, start, stop in by_views for view in range(start, stop)})
    if not by_views and all(writer.header.state == "sealed" for writer in writers):
        say(f"{title}: complete, {wanted} views")
        return
    free = shutil.disk_usage(first.path.parent).free
    shapes = Counter("x".join(str(n) for n in writer.layout.item) for writer in writers)
    layout = " + ".join(shape + (f" at {n} taps" if n > 1 else "") for shape, n in shapes.items())
    say(f"{title}: {todo} of {wanted} views of {layout}, at most {size_text(size)}; {size_text(free)} free on disk")
    if size > free:
        raise NoRoom(
            f"{first.path} does not fit on the disk",
            expected=f"{size_text(size)} free (compression will need less, but not surely)",
            found=f"{size_text(free)} free",
            next_step="free space, move the working folder with --work, or use fewer views",
        )
    for writer in writers:
        writer.begin()
    tasks = [task_of(tile, tuple(targets)) for (tile, _, _), targets in by_views.items()]
    with progress(title, wanted - todo + passes, "views", done=wanted - todo) as tick:
        if workers:
            with closing(runners.run(functools.partial(_one, write), tasks, tick, workers)) as ended:
                for _ in ended:
                    pass
        elif tasks:
            with shortage_told(title, LESS_MEMORY):
                write(tasks, tick)
    for writer in writers:
        writer.seal()


def _one(write: Callable[[Sequence[Any], runners.Tick], None], task: Any, tick: runners.Tick) -> Sequence[None]:
    """Write the shards of one task: what a worker process is given at a time. The shards are all there is of it."""
    write([task], tick)
    return ()
