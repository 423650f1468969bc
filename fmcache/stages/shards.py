"""Write the shards of stage one, as a pipeline. Several threads decode tiles and render views in advance. The encoder
runs in the caller's thread. One more thread compresses and writes finished shards.

Order and batches are the same as for one shard after another, so the written bytes are the same too. Memory is limited:
at most `VIEWS_BYTES` of rendered views (and the tiles they come from) wait for the encoder. At most `PENDING` finished
shards wait to be written while the next shard is encoded.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fmcache.cache.encoding import Store, store_of
from fmcache.cache.layout import Shard
from fmcache.cache.writer import write_shard
from fmcache.encoders.load import Encoder, compile_blocks, load_encoder
from fmcache.encoders.tokens import grids_of_views
from fmcache.grid import GridGeometry
from fmcache.manifest import AnyDataset, TileEntry
from fmcache.runtime import runners
from fmcache.runtime.prefetch import WriteBehind, pool_of, prefetch
from fmcache.specs import EncoderChoice, Precision, ViewSpec
from fmcache.tiles.images import Tile, check_view_mpp, read_tile, resize_tile
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.views import opencv_on_one_thread, render_mask, render_view

STORE = {"float16": torch.float16, "float32": torch.float32}
VIEWS_BYTES = 64 * 2**20
LEAST_VIEWS, MOST_VIEWS, PENDING = 4, 128, 2
BUNDLES_EACH, MOST_SHARDS = 8, 64


LESS_MEMORY = "use fewer --workers or another --device, or write a recipe with another name and a smaller tile_px"


class ViewSource(NamedTuple):
    """How a process makes the views of a tile. `dataset` has no tile list: each task contains the entry of its tile."""

    folder: Path
    name: str
    dataset: AnyDataset
    tile_px: int
    views: ViewSpec

    def tile(self, entry: TileEntry) -> Tile:
        """Return a tile, resized to the recipe's `tile_px`."""
        tile = read_tile(self.dataset, entry, self.folder)
        check_view_mpp(self.dataset, tile, self.tile_px)
        return resize_tile(tile, self.tile_px)

    def side_px(self, entry: TileEntry) -> int:
        """Return the side of a tile's image before it is resized."""
        return len(read_tile(self.dataset, entry, self.folder).image)

    @contextmanager
    def open(self) -> Iterator[ViewSource]:
        """Yield this object: mask caches need nothing else."""
        yield self


class EncoderSetup(NamedTuple):
    """The settings of one encoder on one dataset: how a process loads the encoder and how it encodes views."""

    source: ViewSource
    choice: EncoderChoice
    grid: GridGeometry
    precision: Precision
    store: str
    device: str
    threads: int
    offline: bool
    lock: Path
    compiled: bool

    @contextmanager
    def open(self) -> Iterator[LoadedEncoder]:
        """Load the encoder; it is freed when the context is left."""
        torch.set_num_threads(self.threads)
        yield LoadedEncoder(
            self,
            load(self.choice, torch.device(self.device), offline=self.offline, lock=self.lock, compiled=self.compiled),
        )


class LoadedEncoder(NamedTuple):
    """The setup of an encoder and the loaded encoder."""

    setup: EncoderSetup
    encoder: Encoder


class Target(NamedTuple):
    """A shard to write, with the path and the fingerprint of its cache."""

    path: Path
    shard: Shard
    fingerprint: str


class ShardTask(NamedTuple):
    """The same views of a tile in one or more caches: one target for each of `taps`. A mask cache has no taps."""

    of: str
    targets: tuple[Target, ...]
    entry: TileEntry
    taps: tuple[str, ...] = ()
    relief: str = LESS_MEMORY

    @property
    def weight(self) -> int:
        return self.targets[0].shard.weight

    @property
    def title(self) -> str:
        return f"{self.of} · tile {self.entry.id}"


class ShardBundle(NamedTuple):
    """Shards that one worker writes as one pipeline."""

    tasks: tuple[ShardTask, ...]
    relief: str = LESS_MEMORY

    @property
    def weight(self) -> int:
        return sum(task.weight for task in self.tasks)

    @property
    def title(self) -> str:
        first, last = self.tasks[0], self.tasks[-1]
        return first.title if first.title == last.title else f"{first.title} to tile {last.entry.id}"


def bundles(tasks: Sequence[ShardTask], processes: int) -> list[ShardBundle]:
    """Return tasks in bundles for a number of processes: some for each process, so that all end at about the same time.

    One shard takes milliseconds on a fast GPU, and a scheduler hands out hundreds of tasks a second, not thousands.
    """
    size = min(max(len(tasks) // (BUNDLES_EACH * processes), 1), MOST_SHARDS)
    return [ShardBundle(tuple(tasks[i : i + size])) for i in range(0, len(tasks), size)]


def load(choice: EncoderChoice, device: torch.device, *, offline: bool, lock: Path, compiled: bool) -> Encoder:
    """Return an encoder, ready for `write_token_shards`; raises the errors of `load_encoder`."""
    encoder = load_encoder(choice, device, offline=offline, lock=lock)
    if compiled:
        compile_blocks(encoder)
    return encoder


def write_mask_shards(source: ViewSource, tasks: Sequence[ShardTask], tick: runners.Tick) -> None:
    """Render the masks for shards of the mask cache and write them, several shards concurrently."""
    threads = max(2, torch.get_num_threads())
    with opencv_on_one_thread(), pool_of(threads, "masks") as pool:
        for weight in prefetch(pool, functools.partial(_write_mask_shard, source), tasks, 2 * threads):
            tick(weight)


def _write_mask_shard(source: ViewSource, task: ShardTask) -> int:
    mask = source.tile(task.entry).mask
    (target,) = task.targets
    views = range(target.shard.first, target.shard.stop)
    masks = np.stack([render_mask(source.views, source.name, task.entry.id, view, mask) for view in views])
    write_shard(target.path, "view_bank", target.shard, masks, target.fingerprint)
    return task.weight


def write_token_shards(encoding: LoadedEncoder, tasks: Sequence[ShardTask], tick: runners.Tick) -> None:
    """Run the encoder over the views of all tasks and write their shards.

    If this is interrupted or fails, finished shards are still written.
    """
    setup = encoding.setup
    store = store_of(setup.store)
    # the view pool is closed first, then the writer: it finishes its shards even after an error
    with (
        opencv_on_one_thread(),
        ThreadPoolExecutor(1, "write") as writer,
        pool_of(max(2, setup.threads), "views") as pool,
    ):
        behind = WriteBehind(writer, PENDING)
        views = _views_ahead(pool, setup.source, tasks)
        for task in tasks:
            behind.hand_over(_write_taps, store, task, _encode(encoding, task, islice(views, task.weight), tick))
        behind.finish()


def _views_ahead(pool: ThreadPoolExecutor, source: ViewSource, tasks: Sequence[ShardTask]) -> Iterator[Pixels]:
    """Yield the pixels of the views of all tasks in order; views of later tasks are rendered in advance too."""
    window = min(max(VIEWS_BYTES // (3 * source.tile_px**2), LEAST_VIEWS), MOST_VIEWS)

    def image(entry: TileEntry) -> Pixels:
        return source.tile(entry).image

    def render(view_of: tuple[TileEntry, int, Future[Pixels]]) -> Pixels:
        entry, view, pixels = view_of
        return render_view(source.views, source.name, entry.id, view, pixels.result())

    def wanted() -> Iterator[tuple[TileEntry, int, Future[Pixels]]]:
        for task in tasks:
            # the tile is submitted before its views, so a view only waits for a tile that is already started
            pixels = pool.submit(image, task.entry)
            shard = task.targets[0].shard
            yield from ((task.entry, view, pixels) for view in range(shard.first, shard.stop))

    return prefetch(pool, render, wanted(), window)


def _encode(
    encoding: LoadedEncoder, task: ShardTask, views: Iterator[Pixels], tick: runners.Tick
) -> list[list[npt.NDArray[Any]]]:
    """Return for each tap the token grids of a shard, as batches of shape (view, channel, row, col)."""
    setup = encoding.setup
    parts: list[list[npt.NDArray[Any]]] = [[] for _ in task.taps]
    dtype = STORE[store_of(setup.store).dtype]
    under_way: deque[list[HostCopy]] = deque()

    def arrive() -> None:
        for part, grids in zip(parts, under_way.popleft(), strict=True):
            part.append(grids.arrived())
        tick(len(parts[0][-1]))

    for batch in grids_of_views(encoding.encoder, views, setup.grid, setup.precision, task.taps):
        under_way.append([HostCopy(grids.to(dtype)) for grids in batch])
        if len(under_way) > 1:  # wait for the earlier batch while a GPU computes the next one
            arrive()
    while under_way:
        arrive()
    return parts


class HostCopy:
    """Copy GPU values to main memory while GPU and CPU continue to work; CPU values are used without a copy."""

    def __init__(self, values: torch.Tensor) -> None:
        self._host = values
        self._event: torch.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.current_stream(values.device).record_event()

    def arrived(self) -> npt.NDArray[Any]:
        """Wait until the copy is complete, then return the values."""
        if self._event:
            self._event.synchronize()
        values: npt.NDArray[Any] = self._host.numpy()
        return values


def _write_taps(store: Store, task: ShardTask, parts: list[list[npt.NDArray[Any]]]) -> None:
    for target, part in zip(task.targets, parts, strict=True):
        values = store.rounded(np.concatenate(part))
        write_shard(target.path, "tokens", target.shard, values, target.fingerprint)
