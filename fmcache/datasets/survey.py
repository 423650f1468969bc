"""Read every tile of a dataset once: tiles are decoded in threads, evaluated and dropped, so memory stays constant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fmcache.errors import FmcacheError
from fmcache.manifest import IGNORE, Manifest, TileEntry
from fmcache.runtime.prefetch import prefetch
from fmcache.runtime.progress import progress
from fmcache.tiles.images import Tile, read_tile

T = TypeVar("T")
THREADS = min(8, os.cpu_count() or 1)


def survey(
    manifest: Manifest, name: str, title: str, look: Callable[[Tile], T], tiles: Sequence[TileEntry] | None = None
) -> Iterator[tuple[TileEntry, T | FmcacheError]]:
    """Yield the result of `look` for each tile of a dataset (or for some tiles), in order; or the error of the tile.

    `look` is called in threads; its result should be small.
    """
    dataset = manifest.dataset(name)
    entries = dataset.tiles if tiles is None else tiles

    def read(entry: TileEntry) -> T | FmcacheError:
        try:
            return look(read_tile(dataset, entry, manifest.folder))
        except FmcacheError as error:
            return error

    with progress(title, len(entries), "tiles") as tick, ThreadPoolExecutor(THREADS) as pool:
        for entry, seen in zip(entries, prefetch(pool, read, entries, 2 * THREADS), strict=True):
            tick(1)
            yield entry, seen


def label_counts(tile: Tile, n_labels: int) -> npt.NDArray[np.int64]:
    """Return the number of pixels of each label and, last, of ignored pixels: (label + 1,) int64."""
    counts = np.bincount(tile.mask.ravel(), minlength=IGNORE + 1)
    return np.append(counts[:n_labels], counts[IGNORE]).astype(np.int64)


def count_labels(manifest: Manifest, name: str) -> npt.NDArray[np.int64]:
    """Return the pixels of each label in each tile: (tile, label + ignored).

    Raises
    ------
    ManifestError, TileError
        When a tile cannot be read.
    """
    n_labels = len(manifest.dataset(name).labels)
    rows = []
    for _, seen in survey(manifest, name, f"reading {name}", lambda tile: label_counts(tile, n_labels)):
        if isinstance(seen, FmcacheError):
            raise seen
        rows.append(seen)
    return np.stack(rows)
