"""From the cache to batches: an encoder's grids in memory, and the order in which a seed walks them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch

from fmcache.cache.reader import Cache
from fmcache.errors import NoRoom
from fmcache.identity import random_key
from fmcache.specs import FitSpec

Step = npt.NDArray[np.int64]
"""One batch: (item, 2), the positions (tile, view) to train on."""


class Grids(NamedTuple):
    """Token grids and masks of some tiles and views, in memory.

    tokens: (tile, view, channel, row, col), as stored. masks: (tile, view, y, x) uint8, 255 = ignore.
    `views` are the indices of the views on the view axis.
    """

    tiles: tuple[str, ...]
    views: range
    tokens: torch.Tensor
    masks: torch.Tensor

    def fetch(self, step: Step, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (item, channel, row, col) float32 and masks (item, y, x) uint8 on `device`."""
        tile, view = torch.from_numpy(step).to(self.tokens.device).unbind(1)
        tokens = self.tokens[tile, view].to(device).float()
        return tokens, self.masks[tile, view].to(device)


def load_grids(tokens: Cache, bank: Cache, tiles: Sequence[str], views: range, device: torch.device) -> Grids:
    """Return grids and masks of tiles and views, read once; on `device` if they take at most half its free memory.

    Raises
    ------
    NoRoom
        When they do not fit into the main memory that is free.
    """
    sources = (tokens, bank)
    shapes = [(len(tiles), len(views), *source.item) for source in sources]
    dtypes = [source.dtype for source in sources]
    size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
    free = psutil.virtual_memory().available
    if size > free:
        raise NoRoom(
            f"the grids of {len(tiles)} tiles x {len(views)} views of {tokens.path.parent.name} do not fit into memory",
            expected=f"{size / 2**30:.1f} GiB free",
            found=f"{free / 2**30:.1f} GiB free",
            next_step="use fewer views (views: {count: ...}) or a machine with more memory",
        )
    arrays = [np.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for array, source in zip(arrays, sources, strict=True):
        for i, values in enumerate(source.read_tiles(tiles, views.start, views.stop)):
            array[i] = values
    home = device
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2:
        home = torch.device("cpu")
    held, masks = (torch.from_numpy(array).to(home) for array in arrays)
    return Grids(tuple(tiles), views, held, masks)


def steps_per_epoch(n_tiles: int, spec: FitSpec) -> int:
    """Return the number of batches in an epoch; the last one may be smaller and is kept."""
    return -(-n_tiles * spec.passes_per_epoch // spec.batch)


def epoch_steps(tiles: Sequence[str], n_views: int, spec: FitSpec, seed: int, epoch: int) -> list[Step]:
    """Return the batches of an epoch (0, 1, ...): every tile `passes_per_epoch` times, each time in its next view.

    A tile's views are walked in an order of the seed's own; when all were used, in a new order. The items of an
    epoch are shuffled, then cut into batches; the last one may be smaller. All
    of it depends on (seed, tile ids, epoch) alone.
    """
    items = []
    for tile, name in enumerate(tiles):
        for use in range(epoch * spec.passes_per_epoch, (epoch + 1) * spec.passes_per_epoch):
            lap, at = divmod(use, n_views)
            order = _generator(seed, "views", name, lap).permutation(n_views)
            items.append((tile, order[at]))
    shuffled = np.array(items, dtype=np.int64)[_generator(seed, "order", epoch).permutation(len(items))]
    return [shuffled[i : i + spec.batch] for i in range(0, len(shuffled), spec.batch)]


def in_order(grids: Grids, batch: int) -> Iterator[Step]:
    """Yield batches that walk all tiles of `grids` in order, first view only (validation and test)."""
    for first in range(0, len(grids.tiles), batch):
        tiles = np.arange(first, min(first + batch, len(grids.tiles)))
        yield np.stack([tiles, np.zeros_like(tiles)], axis=1)


def _generator(*names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=random_key(*names)))
