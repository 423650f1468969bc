"""From the cache to batches: an encoder's grids in memory, and the order in which a seed uses them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch.utils.data import Dataset

from fmcache.cache.reader import Cache
from fmcache.errors import NoRoom
from fmcache.identity import random_key
from fmcache.specs import FitSpec

Step = npt.NDArray[np.int64]
"""One batch: (item, 2), the positions (tile, view) to train on."""
MEMORY_SHARE = 0.8
"""Grids may take this share of the free main memory; the rest is for training."""
PIECE_BYTES = 16 * 2**20
"""What one thread reads at a time, before compression."""


@dataclass(frozen=True, eq=False)
class JoinedTaps:
    """Token caches of several taps of an encoder as one source: their channels follow each other.

    `taps` must hold the same tiles and views, as the same type, on grids of the same size.
    """

    taps: tuple[Cache, ...]

    @property
    def path(self) -> Path:
        """Path of the first tap's cache."""
        return self.taps[0].path

    @property
    def item(self) -> tuple[int, ...]:
        """Shape of one view: (channel, row, col), with the channels of all taps."""
        return sum(tap.item[0] for tap in self.taps), *self.taps[0].item[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""
        return self.taps[0].dtype

    def read_into(self, tile: str, first: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Read views `first` to `stop` - 1 of a tile into `out`, (view, channel, row, col); see `Cache.read_into`."""
        start = 0
        for tap in self.taps:
            end = start + tap.item[0]
            out[:, start:end] = tap.read(tile, first, stop)
            start = end


@dataclass(frozen=True, eq=False)
class TokenGrids(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Token grids and masks of some tiles and views, in memory: a torch Dataset whose items are views, tile by tile.

    tokens: (tile, view, channel, row, col), as stored. masks: (tile, view, y, x) uint8, 255 = ignore.
    `views` are the indices of the views on the view axis. `spilled` states whether the arrays are mapped from a file.
    """

    tiles: tuple[str, ...]
    views: range
    tokens: torch.Tensor
    masks: torch.Tensor
    spilled: bool = False

    def __len__(self) -> int:
        """Return the number of items: tiles x views."""
        return len(self.tiles) * len(self.views)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (channel, row, col) float32 and mask (y, x) uint8 of a view."""
        tile, view = divmod(range(len(self))[item], len(self.views))
        return self.tokens[tile, view].float(), self.masks[tile, view]

    def fetch(self, step: Step, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (item, channel, row, col) float32 and masks (item, y, x) uint8 on `device`."""
        tile, view = torch.from_numpy(step).to(self.tokens.device).unbind(1)
        tokens = self.tokens[tile, view].to(device).float()
        return tokens, self.masks[tile, view].to(device)


def load_token_grids(
    tokens: Cache | JoinedTaps,
    mask_cache: Cache,
    tiles: Sequence[str],
    views: range,
    device: torch.device,
    spill: Path,
) -> TokenGrids:
    """Return grids and masks of tiles and views, read once; on `device` if they take at most half its free memory.

    Arrays that would take more than `MEMORY_SHARE` of the free main memory are stored in an unnamed file in the folder
    `spill`, which is mapped into memory. The system frees the file with the last reference, however the process ends.

    Raises
    ------
    NoRoom
        When they fit neither into memory nor onto the disk of `spill`.
    """
    sources: tuple[Cache | JoinedTaps, Cache] = (tokens, mask_cache)
    shapes = [(len(tiles), len(views), *source.item) for source in sources]
    size = sum(math.prod(shape) * source.dtype.itemsize for shape, source in zip(shapes, sources, strict=True))
    free = psutil.virtual_memory().available
    spilled = size > MEMORY_SHARE * free
    if spilled:
        _check_disk(f"{len(tiles)} tiles x {len(views)} views of {tokens.path.parent.name}", size, free, spill)
    held = []
    for shape, source in zip(shapes, sources, strict=True):
        array = _on_disk(shape, source.dtype, spill) if spilled else np.empty(shape, source.dtype)
        _fill(array, source, tiles, views)
        held.append(torch.from_numpy(array))
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 2:
        held = [values.to(device) for values in held]
    return TokenGrids(tuple(tiles), views, held[0], held[1], spilled)


def _fill(array: npt.NDArray[Any], source: Cache | JoinedTaps, tiles: Sequence[str], views: range) -> None:
    def read(pieces: Sequence[tuple[int, range]]) -> None:
        for tile, at in pieces:
            source.read_into(tiles[tile], views[at.start], views[at.stop - 1] + 1, array[tile, at.start : at.stop])

    step = max(1, PIECE_BYTES // array[0, 0].nbytes)
    runs = [range(at, min(at + step, len(views))) for at in range(0, len(views), step)]
    pieces = [(tile, run) for tile in range(len(tiles)) for run in runs]
    # threads that read small pieces would mostly wait for each other: several tiles are grouped into one large piece
    group = max(1, step // len(views))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        reads = [pool.submit(read, pieces[at : at + group]) for at in range(0, len(pieces), group)]
        try:
            for done in reads:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _on_disk(shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path) -> npt.NDArray[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the closed file
        if hasattr(os, "posix_fallocate"):  # otherwise a disk that fills up later would end the process at some write
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * dtype.itemsize))
        return np.memmap(file, dtype, "w+", shape=shape)


def _check_disk(what: str, size: int, free: int, spill: Path) -> None:
    folder = next(path for path in (spill, *spill.parents) if path.exists())
    disk = shutil.disk_usage(folder).free
    if size > disk:
        raise NoRoom(
            f"the grids of {what} fit neither into memory nor onto the disk of {folder}",
            expected=f"{size / MEMORY_SHARE / 2**30:.1f} GiB of memory or {size / 2**30:.1f} GiB of disk free",
            found=f"{free / 2**30:.1f} GiB of memory, {disk / 2**30:.1f} GiB of disk",
            next_step="use fewer views (views: {count: ...}), or another --work folder",
        )


def steps_per_epoch(n_tiles: int, spec: FitSpec) -> int:
    """Return the number of batches in an epoch; the last batch may be smaller and is used too."""
    return -(-n_tiles * spec.passes_per_epoch // spec.batch)


def epoch_steps(tiles: Sequence[str], n_views: int, spec: FitSpec, seed: int, epoch: int) -> list[Step]:
    """Return the batches of an epoch (0, 1, ...): every tile `passes_per_epoch` times, each time in its next view.

    Every seed has its own order of the views of a tile. When all views were used, a new order starts. The items of an
    epoch are shuffled, then split into batches; the last batch may be smaller. Everything depends only on (seed, tile
    ids, epoch).
    """
    items = []
    for tile, name in enumerate(tiles):
        for use in range(epoch * spec.passes_per_epoch, (epoch + 1) * spec.passes_per_epoch):
            lap, at = divmod(use, n_views)
            order = _generator(seed, "views", name, lap).permutation(n_views)
            items.append((tile, order[at]))
    shuffled = np.array(items, dtype=np.int64)[_generator(seed, "order", epoch).permutation(len(items))]
    return [shuffled[i : i + spec.batch] for i in range(0, len(shuffled), spec.batch)]


def in_order(n_tiles: int, batch: int) -> Iterator[Step]:
    """Yield batches of the tiles in order, first view only (validation and test)."""
    for first in range(0, n_tiles, batch):
        tiles = np.arange(first, min(first + batch, n_tiles))
        yield np.stack([tiles, np.zeros_like(tiles)], axis=1)


def _generator(*names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=random_key(*names)))
