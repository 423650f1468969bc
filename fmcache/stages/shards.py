"""Writing the shards of stage one, as a pipeline: tiles are decoded and views rendered ahead in threads, the encoder
runs in the caller's thread, finished shards are compressed and written behind it in another.

Order and batches are those of one shard after another, so the bytes are too. What waits is bounded: `VIEWS_BYTES` of
rendered views (and the tiles they come from), and `PENDING` shards to be written beside the one in the making.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fmcache.cache.layout import Shard
from fmcache.cache.stores import store_of
from fmcache.cache.writer import write_shard
from fmcache.encoders.load import Encoder, compile_blocks, load_encoder
from fmcache.encoders.tokens import grids_of_views
from fmcache.grid import Grid
from fmcache.manifest import AnyDataset, TileEntry
from fmcache.specs import EncoderChoice, Precision, ViewSpec
from fmcache.stages import runners
from fmcache.stages.ahead import Behind, ahead, pool_of
from fmcache.tiles.images import Pixels, Tile, check_view_mpp, read_tile, resize_tile
from fmcache.tiles.views import render_mask, render_view

STORE = {"float16": torch.float16, "float32": torch.float32}
VIEWS_BYTES = 64 * 2**20
LEAST_VIEWS, MOST_VIEWS, PENDING = 4, 128, 2


LESS_MEMORY = "use fewer --workers, another --device, or a smaller tile_px in a recipe of another name"


class Source(NamedTuple):
    """How a process finds the views of a tile. `dataset` carries no tile list: it travels with every task."""

    folder: Path
    name: str
    dataset: AnyDataset
    tile_px: int
    views: ViewSpec

    def tile(self, entry: TileEntry) -> Tile:
        """Return a tile at the recipe's size."""
        tile = read_tile(self.dataset, entry, self.folder)
        check_view_mpp(self.dataset, tile, self.tile_px)
        return resize_tile(tile, self.tile_px)


class Target(NamedTuple):
    """A shard of a cache, to be written."""

    path: Path
    shard: Shard


class BankTask(NamedTuple):
    """One shard of the view bank."""

    target: Target
    source: Source
    entry: TileEntry
    relief: str = LESS_MEMORY

    @property
    def weight(self) -> int:
        return self.target.shard.weight

    @property
    def title(self) -> str:
        return f"{self.source.name} · view bank · tile {self.entry.id}"


class TokenTask(NamedTuple):
    """The same views of a tile in the caches of one encoder: one target for each of `taps`."""

    targets: tuple[Target, ...]
    taps: tuple[str, ...]
    source: Source
    entry: TileEntry
    encoder: EncoderChoice
    grid: Grid
    precision: Precision
    store: str
    device: str
    threads: int
    offline: bool
    lock: Path
    compiled: bool
    relief: str = LESS_MEMORY

    @property
    def weight(self) -> int:
        return self.targets[0].shard.weight

    @property
    def title(self) -> str:
        return f"{self.source.name} · {self.encoder.name} · tile {self.entry.id}"


def write_bank_shards(tasks: Sequence[BankTask], tick: runners.Tick) -> None:
    """Render the masks of shards of the view bank and write them, several at a time."""
    threads = max(2, torch.get_num_threads())
    with pool_of(threads, "bank") as pool:
        for weight in ahead(pool, _write_bank_shard, tasks, 2 * threads):
            tick(weight)


def _write_bank_shard(task: BankTask) -> int:
    mask = task.source.tile(task.entry).mask
    shard = task.target.shard
    views = range(shard.first, shard.stop)
    spec, name = task.source.views, task.source.name
    masks = np.stack([render_mask(spec, name, task.entry.id, view, mask) for view in views])
    write_shard(task.target.path, "view_bank", shard, masks)
    return task.weight


def write_token_shards(tasks: Sequence[TokenTask], tick: runners.Tick) -> None:
    """Run the encoder over the views of all tasks, which share encoder and settings, and write their shards.

    When this is interrupted or fails, shards that were finished are still written.
    """
    first = tasks[0]
    torch.set_num_threads(first.threads)
    encoder = encoder_of(first.encoder, first.device, first.offline, first.lock, first.compiled)
    # the writer is left last, and waits for what was handed over to it, whatever happened
    with ThreadPoolExecutor(1, "write") as writer, pool_of(max(2, first.threads), "views") as pool:
        behind = Behind(writer, PENDING)
        views = _views_ahead(pool, tasks)
        for task in tasks:
            behind.hand_over(_write_taps, task, _encode(encoder, task, islice(views, task.weight), tick))
        behind.finish()


def _views_ahead(pool: ThreadPoolExecutor, tasks: Sequence[TokenTask]) -> Iterator[Pixels]:
    """Yield the pixels of the views of all tasks in order, rendered ahead across the borders of tasks."""
    tile_px = tasks[0].source.tile_px
    window = min(max(VIEWS_BYTES // (3 * tile_px**2), LEAST_VIEWS), MOST_VIEWS)

    def jobs() -> Iterator[tuple[TokenTask, int, Future[Pixels]]]:
        for task in tasks:
            # begun before its views are: a view that waits for its tile always waits for something that runs
            image = pool.submit(_image, task)
            shard = task.targets[0].shard
            yield from ((task, view, image) for view in range(shard.first, shard.stop))

    return ahead(pool, _render, jobs(), window)


def _image(task: TokenTask) -> Pixels:
    return task.source.tile(task.entry).image


def _render(job: tuple[TokenTask, int, Future[Pixels]]) -> Pixels:
    task, view, image = job
    return render_view(task.source.views, task.source.name, task.entry.id, view, image.result())


def _encode(
    encoder: Encoder, task: TokenTask, views: Iterator[Pixels], tick: runners.Tick
) -> list[list[npt.NDArray[Any]]]:
    """Return for each tap the token grids of a shard, in batches (view, channel, row, col)."""
    parts: list[list[npt.NDArray[Any]]] = [[] for _ in task.taps]
    dtype = STORE[store_of(task.store).dtype]
    under_way: deque[list[OnItsWay]] = deque()

    def arrive() -> None:
        for part, grids in zip(parts, under_way.popleft(), strict=True):
            part.append(grids.arrived())
        tick(len(parts[0][-1]))

    for batch in grids_of_views(encoder, views, task.grid, task.precision, task.taps):
        under_way.append([OnItsWay(grids.to(dtype)) for grids in batch])
        if len(under_way) > 1:  # a GPU works on the next batch while this one is waited for
            arrive()
    while under_way:
        arrive()
    return parts


class OnItsWay:
    """Values of a GPU being copied to the host's memory while both go on; on a CPU they are there already."""

    def __init__(self, values: torch.Tensor) -> None:
        self._host = values
        self._event: torch.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.current_stream(values.device).record_event()

    def arrived(self) -> npt.NDArray[Any]:
        """Return the values, once they are there."""
        if self._event:
            self._event.synchronize()
        values: npt.NDArray[Any] = self._host.numpy()
        return values


def _write_taps(task: TokenTask, parts: list[list[npt.NDArray[Any]]]) -> None:
    store = store_of(task.store)
    for target, part in zip(task.targets, parts, strict=True):
        write_shard(target.path, "tokens", target.shard, store.rounded(np.concatenate(part)))


@functools.lru_cache(maxsize=1)
def encoder_of(choice: EncoderChoice, device: str, offline: bool, lock: Path, compiled: bool) -> Encoder:
    """Return an encoder; one at a time per process is kept, since the largest take most of a GPU."""
    encoder = load_encoder(choice, torch.device(device), offline=offline, lock=lock)
    if compiled:
        compile_blocks(encoder)
    return encoder
