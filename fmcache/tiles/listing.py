"""Pairs of image and mask -> what a manifest lists of them: ids, groups, hashes, and the pixels of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.identity import sha256_file
from fmcache.manifest import IGNORE, AnyDataset, FolderDataset, GeojsonDataset, TileEntry
from fmcache.tiles.annotations import read_annotations
from fmcache.tiles.census import refuse_unknown_classes, told
from fmcache.tiles.classes import Selection
from fmcache.tiles.folder import Pair
from fmcache.tiles.images import Tile, read_image, read_mask


class Listing(NamedTuple):
    """Entries of tiles in the order of their ids, and (tile, label) pixels."""

    entries: tuple[TileEntry, ...]
    pixels: npt.NDArray[np.int64]


def list_tiles(
    dataset: FolderDataset | GeojsonDataset,
    pairs: Sequence[Pair],
    groups: Sequence[str],
    root: Path,
    tick: Callable[[int], None],
) -> Listing:
    """Read and hash every image and mask; paths are listed relative to `root`. `tick` is called with 1 per tile.

    Raises
    ------
    TileError
        When a file cannot be read, or a mask holds a value or class that no label has.
    """
    if isinstance(dataset, GeojsonDataset):
        _refuse_unknown_classes(dataset, pairs)
    entries = []
    pixels = np.zeros((len(pairs), len(dataset.labels)), dtype=np.int64)
    for i, (pair, group) in enumerate(zip(pairs, groups, strict=True)):
        mask = read_mask(pair.mask, dataset, read_image(pair.image)).mask
        pixels[i] = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(dataset.labels)]
        # folders resolved as `root` is, the file not: it may be a link to elsewhere
        image, file = (
            (path.parent.resolve() / path.name).relative_to(root).as_posix() for path in (pair.image, pair.mask)
        )
        entries.append(TileEntry(pair.id, group, image, file, sha256_file(pair.image), sha256_file(pair.mask)))
        tick(1)
    return Listing(tuple(entries), pixels)


def _refuse_unknown_classes(dataset: GeojsonDataset, pairs: Sequence[Pair]) -> None:
    selection, files = Selection.of(dataset), [pair.mask for pair in pairs]
    counts = Counter((region.name, region.kind) for file in files for region in read_annotations(file, None, selection))
    refuse_unknown_classes(counts, dataset.classes(), f"{files[0].parent}: ", files, selection)


def region_notes(dataset: AnyDataset, tiles: Sequence[Tile]) -> list[str]:
    """Return what is worth knowing of annotated regions: how far labels overlap, what was mended or left out."""
    notes = []
    overlapping = [tile for tile in tiles if tile.overlap > 0]
    if overlapping:
        most = max(overlapping, key=lambda tile: tile.overlap)
        ordered = isinstance(dataset, GeojsonDataset) and dataset.order
        winner = "the order in the manifest decides" if ordered else "the later in the file wins"
        notes.append(
            f"regions of different labels overlap in {len(overlapping)} of {len(tiles)} tiles, in "
            f"{sum(tile.overlap for tile in tiles) / len(tiles):.2%} of all pixels, at most in {most.overlap:.2%} "
            f"(tile {most.id}); {winner}"
        )
    found: Counter[str] = Counter()
    for tile in tiles:
        found.update(dict(tile.notes))
    notes += told(found)
    return notes
