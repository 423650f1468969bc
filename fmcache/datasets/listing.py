"""Pairs of image and mask -> tile entries for a manifest (ids, groups, hashes), and the pixels of each label."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.datasets.absent_labels import absent_classes, absent_values
from fmcache.datasets.folder import Pair
from fmcache.datasets.label_flags import classes_of
from fmcache.errors import TileError, some
from fmcache.identity import sha256_file
from fmcache.manifest import IGNORE, AnyDataset, FolderDataset, GeojsonDataset, TileEntry
from fmcache.quoting import quoted
from fmcache.tiles.annotation_notes import CORNER, listed, refuse_unknown_classes, sentences, unused_classes
from fmcache.tiles.annotations import read_annotations
from fmcache.tiles.classes import Selection
from fmcache.tiles.images import Tile, read_mask
from fmcache.tiles.pictures import TRANSPARENT, read_image
from fmcache.tiles.values import Palette, ignored_keys, mask_values, palette_clash, shown_key, unknown_values


class Listing(NamedTuple):
    """Entries of tiles in the order of the pairs, pixels (tile, label), and notes, one line each."""

    entries: tuple[TileEntry, ...]
    pixels: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()


class Drawing(NamedTuple):
    """What is kept of a drawn tile: the share of pixels under several labels, and counts of repairs and omissions."""

    id: str
    overlap: float
    notes: tuple[tuple[str, int], ...]


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
        When a file cannot be read, masks hold values or classes that no label has, palettes that are read by index
        differ, or a label is in no tile.
    """
    classes = known_classes(dataset, pairs) if isinstance(dataset, GeojsonDataset) else Counter()
    entries, palettes, drawings, values = [], [], [], []
    found, unknown = Counter[int](), Counter[int]()
    pixels = np.zeros((len(pairs), len(dataset.labels)), dtype=np.int64)
    for i, (pair, group) in enumerate(zip(pairs, groups, strict=True)):
        drawn = read_mask(pair.mask, dataset, read_image(pair.image), unknown)
        pixels[i] = np.bincount(drawn.mask.ravel(), minlength=IGNORE + 1)[: len(dataset.labels)]
        found.update(dict(drawn.found))
        drawings.append(Drawing(pair.id, drawn.overlap, drawn.notes))
        values.append(dict(drawn.found))
        if drawn.palette:
            palettes.append((str(pair.mask), drawn.palette))
        # folders are resolved like `root`; the file is not, because it may be a link to another folder
        image, file = (
            (path.parent.resolve() / path.name).relative_to(root).as_posix() for path in (pair.image, pair.mask)
        )
        entries.append(TileEntry(pair.id, group, image, file, sha256_file(pair.image), sha256_file(pair.mask)))
        tick(1)
    if isinstance(dataset, FolderDataset):
        if clash := palettes_apart(dataset, palettes):
            raise clash
        if unknown:  # report those of all files in one error
            raise unknown_values(str(pairs[0].mask.parent), unknown, dataset)
        absent = absent_values(dataset, pixels.sum(axis=0), len(pairs), found)
    else:
        absent = absent_classes(dataset.labels, pixels.sum(axis=0), len(pairs), _by(0, classes))
    if absent:
        raise absent
    notes = drawing_notes(dataset, classes, drawings)
    if isinstance(dataset, FolderDataset):
        notes += odd_ones(dataset, [entry.mask for entry in entries], values)
    return Listing(tuple(entries), pixels, tuple(notes))


def odd_ones(dataset: FolderDataset, masks: Sequence[str], found: Sequence[Mapping[int, int]]) -> list[str]:
    """Return a line on masks that hold an ignored value instead of a label's value, if most masks ignore nothing.

    Such masks were probably saved in another way: as 0 and 255, while the others are 0 and 1. `found` has the pixels
    by key of each mask.
    """
    ignoring = [ignored_keys(dataset, values) - {TRANSPARENT} for values in found]
    if 2 * sum(map(bool, ignoring)) >= len(masks):
        return []
    usual = {key for values, keys in zip(found, ignoring, strict=True) if not keys for key in values}
    odd: dict[int, list[str]] = {}
    for mask, values, keys in zip(masks, found, ignoring, strict=True):
        if len(keys) == 1 and len(values.keys() & usual) < min(2, len(usual)):
            odd.setdefault(keys.pop(), []).append(mask)
    return [
        f"{shown_key(key)} is ignored, but {len(names)} of {len(masks)} masks hold it and at most one label, while "
        f"most masks do not hold it: {some(names)}; if it is a label in these masks, add it to the label's values"
        for key, names in odd.items()
    ]


def palettes_apart(dataset: FolderDataset, palettes: Sequence[tuple[str, Palette]]) -> TileError | None:
    """Return an error when named masks are read by palette index but their palettes differ, else None.

    The error proposes labels given by colour, with the colours of the first palette if it has all values.
    """
    clash = palette_clash(palettes)
    if not clash:
        return None
    colours = palettes[0][1].colours
    ids = [(dataset.labels[label].name, value) for value, label in mask_values(dataset.labels)]
    if all(isinstance(value, int) and value < len(colours) for _, value in ids):
        labels = ",".join(f"{quoted(name)}={colours[int(value)]}" for name, value in ids)
    else:
        labels = f"{quoted(ids[0][0])}={colours[0]},..."
    return TileError(
        "masks are read by their palette indices, but the palettes differ",
        expected="the same palette in all masks, or labels given by colour",
        found=clash,
        next_step=f"give the labels by colour, such as --labels {shlex.quote(labels)}; if the indices are right and "
        "the colours have no meaning, save the masks as grey values",
    )


def known_classes(dataset: GeojsonDataset, pairs: Sequence[Pair]) -> Counter[tuple[str, str]]:
    """Return the number of regions by class and kind of object.

    Raises
    ------
    TileError
        When a file cannot be read, or there are classes that no label has. The message names those of all files.
    """
    selection, files = Selection.of(dataset), [pair.mask for pair in pairs]
    counts = Counter((region.name, region.kind) for file in files for region in read_annotations(file, None, selection))
    refuse_unknown_classes(counts, dataset.classes(), f"{files[0].parent}: ", files, selection)
    return counts


def drawing_notes(
    dataset: FolderDataset | GeojsonDataset, classes: Mapping[tuple[str, str], int], drawings: Sequence[Drawing]
) -> list[str]:
    """Return `region_notes`, then notes on named classes without regions and on drawn kinds of objects.

    `classes` is the number of regions by class and kind. Kinds of objects are noted only if there are several.
    """
    notes = region_notes(dataset, drawings)
    if isinstance(dataset, GeojsonDataset):
        named = {
            "--labels": [name for label in dataset.labels for name in classes_of(label)],
            "--ignore": [str(value) for value in dataset.ignore_values],
            "--skip": dataset.skip,
        }
        notes += unused_classes(named, _by(0, classes), {key: n for one in drawings for key, n in one.notes})
        kinds = _by(1, classes)
        if len(kinds) > 1 and not dataset.objects:
            notes.append(f"regions are {listed(kinds)} objects, and all are drawn; choose some of them with --objects")
    return notes


def _by(key: int, counts: Mapping[tuple[str, str], int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for keys, n in counts.items():
        found[keys[key]] += n
    return found


def region_notes(dataset: AnyDataset, tiles: Sequence[Tile | Drawing]) -> list[str]:
    """Return notes on annotated regions: how much labels overlap, and what was repaired or left out."""
    notes = []
    overlapping = [tile for tile in tiles if tile.overlap > 0]
    if overlapping:
        most = max(overlapping, key=lambda tile: tile.overlap)
        ordered = isinstance(dataset, GeojsonDataset) and dataset.order
        winner = "the order in the manifest decides" if ordered else "the later region in the file wins"
        notes.append(
            f"regions of different labels overlap in {len(overlapping)} of {len(tiles)} tiles, in "
            f"{sum(tile.overlap for tile in tiles) / len(tiles):.2%} of all pixels, at most in {most.overlap:.2%} "
            f"(tile {most.id}); {winner}"
        )
    found: Counter[str] = Counter()
    for tile in tiles:
        found.update(dict(tile.notes))
    notes += sentences(found)
    if tiles and found[CORNER] == len(tiles):
        notes.append(
            "in every tile all regions lie in the upper left quarter: check that their unit is pixels of the tile, not "
            "um and not pixels of a smaller level"
        )
    return notes
