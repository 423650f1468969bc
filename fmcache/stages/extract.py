"""Stage one: manifest -> views -> encoder -> cache. Every frozen encoder runs once over every view."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from fmcache.cache.layout import Shard, raw_bytes
from fmcache.cache.writer import Writer, open_writer, write_shard
from fmcache.encoders.load import Encoder, load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.errors import EncoderUnavailable, NoRoom, SpecError, TokensOverflow, WeightsMismatch
from fmcache.grid import Grid
from fmcache.manifest import AnyDataset, Manifest, TileEntry
from fmcache.scores.table import EncoderInfo
from fmcache.specs import EncoderChoice, Precision, Recipe, ViewSpec
from fmcache.stages import places, runners
from fmcache.stages.caches import size_text
from fmcache.stages.devices import device_name, pick_device, set_threads, versions
from fmcache.stages.flags import Failure, Flags
from fmcache.stages.identities import (
    Hashes,
    bank_identity,
    listed_hashes,
    tokens_identity,
    used_tiles,
    with_encoder,
)
from fmcache.stages.progress import progress
from fmcache.strict import builtins
from fmcache.tiles.images import Tile, read_tile, resize_tile
from fmcache.tiles.views import render_mask, render_view

BATCH = {"cpu": 4, "cuda": 16}
STORE = {"float16": torch.float16, "float32": torch.float32}


class Source(NamedTuple):
    """How a process finds the views of a tile. `dataset` carries no tile list: it travels with every task."""

    folder: Path
    name: str
    dataset: AnyDataset
    tile_px: int
    views: ViewSpec

    def tile(self, entry: TileEntry) -> Tile:
        """Return a tile at the recipe's size."""
        return resize_tile(read_tile(self.dataset, entry, self.folder), self.tile_px)


class BankTask(NamedTuple):
    """One shard of the view bank."""

    path: Path
    source: Source
    entry: TileEntry
    shard: Shard

    @property
    def weight(self) -> int:
        return self.shard.weight


class TokenTask(NamedTuple):
    """One shard of an encoder's cache."""

    path: Path
    source: Source
    entry: TileEntry
    shard: Shard
    encoder: EncoderChoice
    grid: Grid
    precision: Precision
    store: str
    device: str
    threads: int
    offline: bool

    @property
    def weight(self) -> int:
        return self.shard.weight


def extract(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None] = print) -> list[Failure]:
    """Make the view bank of each dataset of `recipe` and the cache of each of its encoders; return those that failed.

    What is there is kept; only missing shards are written. `say` gets one line on each cache.

    Raises
    ------
    FmcacheError
        For anything that would spoil all encoders: manifest, tiles, disk space, a cache of other views.
    """
    set_threads(flags.threads)
    device = pick_device(flags.device)
    failures = []
    for name in recipe.datasets or (manifest.default,):
        dataset = manifest.dataset(name)
        demand = views_wanted(dataset, recipe.views.count)
        entries = [tile for tile in dataset.tiles if tile.id in demand]
        hashes = content_hashes(dataset, entries, manifest.folder)
        bare: AnyDataset = msgspec.structs.replace(dataset, tiles=())
        source = Source(manifest.folder, name, bare, recipe.tile_px, recipe.views)
        _fill_bank(recipe, source, entries, demand, hashes, flags, say)
        for i, choice in enumerate(recipe.encoder_choices, start=1):
            try:
                _fill_tokens(recipe, choice, source, entries, demand, hashes, device, flags, say)
            except (EncoderUnavailable, SpecError, WeightsMismatch, TokensOverflow) as error:
                failures.append(Failure(name, places.encoder_key(choice), error))
                more = "; going on with the next encoder" if i < len(recipe.encoder_choices) else ""
                say(f"{name} · {choice.name}: failed{more}")
    return failures


def views_wanted(dataset: AnyDataset, count: int) -> dict[str, int]:
    """Return the number of views of each tile in a split: `count` + 1 to train on, 1 to validate and test."""
    return {tile: count + 1 if tile in dataset.splits.train else 1 for tile in used_tiles(dataset)}


def content_hashes(dataset: AnyDataset, entries: Sequence[TileEntry], folder: Path) -> Hashes:
    """Return (image, mask) sha256 by tile id: those of the manifest for files, of what is drawn for drawn tiles."""
    if hashes := listed_hashes(dataset):
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
    about = {"versions": versions("fmcache", "opencv-python-headless", "pillow")}
    item = (recipe.tile_px, recipe.tile_px)
    with open_writer(path, "view_bank", identity, item, "uint8", demand, about, flags.recompute) as writer:
        by_id = {entry.id: entry for entry in entries}
        _fill(
            writer,
            write_bank_shard,
            lambda shard: BankTask(path, source, by_id[writer.header.tiles[shard.tile]], shard),
            f"{source.name} · view bank",
            flags.workers,
            say,
        )


def _fill_tokens(
    recipe: Recipe,
    choice: EncoderChoice,
    source: Source,
    entries: Sequence[TileEntry],
    demand: dict[str, int],
    hashes: Hashes,
    device: torch.device,
    flags: Flags,
    say: Callable[[str], None],
) -> None:
    encoder = _encoder(choice, str(device), flags.offline)
    card = encoder.card
    key = places.encoder_key(choice)
    grid = Grid(recipe.tile_px, card.patch, recipe.grid)
    published: Precision = card.precision if device.type == "cuda" else "float32"
    precision = published if recipe.precision == "published" else recipe.precision
    identity = with_encoder(
        tokens_identity(recipe, source.name, hashes), builtins(card), encoder.weights_sha256,
        encoder.random_weights, precision,
    )  # fmt: skip
    info = EncoderInfo(
        key, card.title, encoder.params, card.width, card.patch, card.control, encoder.random_weights,
        encoder.weights_sha256, card.licence, card.citation,
    )  # fmt: skip
    about = {
        "encoder": builtins(info),
        "device": device_name(device),
        "versions": versions("fmcache", "torch", "timm", "opencv-python-headless", "pillow"),
    }
    path = places.tokens_path(flags.work, source.name, key, recipe)
    item = (card.width, grid.side, grid.side)
    with open_writer(path, "tokens", identity, item, recipe.store, demand, about, flags.recompute) as writer:
        by_id = {entry.id: entry for entry in entries}
        _fill(
            writer,
            write_token_shard,
            lambda shard: TokenTask(
                path, source, by_id[writer.header.tiles[shard.tile]], shard, choice, grid, precision,
                recipe.store, str(device), torch.get_num_threads(), flags.offline,
            ),
            f"{source.name} · {info.display}",
            flags.workers,
            say,
        )  # fmt: skip


def _fill(
    writer: Writer,
    write: Callable[[Any, runners.Tick], None],
    task_of: Callable[[Shard], Any],
    title: str,
    workers: int,
    say: Callable[[str], None],
) -> None:
    shards = writer.missing()
    if not shards and writer.header.state == "sealed":
        say(f"{title}: complete, {sum(writer.demand)} views")
        return
    wanted, todo = sum(writer.demand), sum(shard.weight for shard in shards)
    size = raw_bytes(shards, writer.layout.view_bytes)
    free = shutil.disk_usage(writer.path.parent).free
    layout = "x".join(str(n) for n in writer.layout.item)
    say(f"{title}: {todo} of {wanted} views of {layout}, at most {size_text(size)}; {size_text(free)} free on disk")
    if size > free:
        raise NoRoom(
            f"{writer.path} does not fit on the disk",
            expected=f"{size_text(size)} free (compression will need less, but not surely)",
            found=f"{size_text(free)} free",
            next_step="free space, move the working folder with --work, or use fewer views",
        )
    writer.begin()
    with progress(title, wanted, "views", done=wanted - todo) as tick:
        for _ in runners.run(write, [task_of(shard) for shard in shards], tick, workers):
            pass
    writer.seal()


def write_bank_shard(task: BankTask, tick: runners.Tick) -> None:
    """Render the masks of one shard and write it."""
    mask = task.source.tile(task.entry).mask
    views = range(task.shard.first, task.shard.stop)
    spec, name = task.source.views, task.source.name
    masks = np.stack([render_mask(spec, name, task.entry.id, view, mask) for view in views])
    write_shard(task.path, "view_bank", task.shard, masks)
    tick(task.weight)


def write_token_shard(task: TokenTask, tick: runners.Tick) -> None:
    """Run the encoder over the views of one shard and write it. Views are rendered ahead in threads."""
    torch.set_num_threads(task.threads)
    encoder = _encoder(task.encoder, task.device, task.offline)
    image = task.source.tile(task.entry).image
    spec, name = task.source.views, task.source.name
    render = functools.partial(render_view, spec, name, task.entry.id, image=image)
    parts = []
    with ThreadPoolExecutor(max_workers=max(2, task.threads)) as pool:
        for views in _batches(pool.map(render, range(task.shard.first, task.shard.stop)), task.device):
            grids = token_grids(encoder, np.stack(views), task.grid, task.precision)
            parts.append(grids.to(STORE[task.store]).cpu().numpy())
            tick(len(views))
    write_shard(task.path, "tokens", task.shard, np.concatenate(parts))


def _batches(views: Iterator[Any], device: str) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = BATCH[torch.device(device).type]
    for view in views:
        batch.append(view)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@functools.lru_cache(maxsize=1)
def _encoder(choice: EncoderChoice, device: str, offline: bool) -> Encoder:
    # one encoder at a time per process: the largest take most of a GPU
    return load_encoder(choice, torch.device(device), offline=offline)
