"""The command `fmcache data check`: read every listed tile, and report problems and notes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table

from fmcache.datasets.absent_labels import absent_classes, absent_values
from fmcache.datasets.duplicates import BITS, PerceptualHashes, look_hashes, pairs_alike
from fmcache.datasets.listing import palettes_apart, region_notes
from fmcache.datasets.split import named_parts
from fmcache.datasets.survey import label_counts, survey
from fmcache.errors import FmcacheError, some
from fmcache.manifest import SPLITS, AnyDataset, FolderDataset, Manifest
from fmcache.tiles.boxes import sizes_of
from fmcache.tiles.images import Tile

USUAL_MPP = (0.1, 2.5)
"""um/px of microscope histology, from a 100x to a 4x objective. Values outside usually come from a wrong unit."""

MOSTLY_UNLABELLED = 0.5
SHOWN = 8
NO_PIXELS = np.zeros((0, 0), dtype=np.uint8)


class Check(NamedTuple):
    """The findings on a dataset: problems must be fixed before a study, notes need not.

    `pixels` is (split, label + ignored). `unlabelled` is the share of ignored pixels of each tile that could be read.
    """

    name: str
    dataset: AnyDataset
    sizes: Counter[tuple[int, int]]
    pixels: npt.NDArray[np.int64]
    unlabelled: dict[str, float]
    problems: list[str]
    notes: list[str]

    def table(self) -> Group:
        """Return label shares per split, sizes, problems and notes, for the terminal."""
        table = Table("split", "tiles", *self.dataset.label_names, "ignored", title=f"{self.name} · pixels in percent")
        for split, counts in zip(SPLITS, self.pixels, strict=True):
            shares = [f"{100 * n / max(counts.sum(), 1):.1f}" for n in counts]
            table.add_row(split, str(len(self.dataset.splits.of(split))), *shares)
        mpp = self.dataset.mpp
        lines = [f"um/px: {f'{mpp:g}' if mpp else 'unknown'}; sizes: {sizes_of(self.sizes)}"]
        if self.unlabelled:
            worst = max(self.unlabelled, key=lambda tile: self.unlabelled[tile])
            median = np.median(list(self.unlabelled.values()))
            most = f"at most {self.unlabelled[worst]:.1%} ({worst})" if self.unlabelled[worst] else "none in any"
            lines.append(f"unlabelled (ignored) pixels of a tile: median {median:.1%}, {most}")
        lines += [f"note: {text}" for text in self.notes] + [f"PROBLEM: {text}" for text in self.problems]
        return Group(table, *lines, "no problems" if not self.problems else f"{len(self.problems)} problems")


class TileStats(NamedTuple):
    """What is kept of one tile: the tile without its pixels (the pixels of all tiles would need too much memory), its
    (y, x) size, pixels by label + ignored, look hashes (8,), sha256 of the pixels."""

    tile: Tile
    size: tuple[int, ...]
    counts: npt.NDArray[np.int64]
    hashes: PerceptualHashes
    sha256: str


def check(manifest: Manifest, name: str) -> Check:
    """Read every listed tile of a dataset and return what was found; problems are collected, not raised."""
    dataset = manifest.dataset(name)
    n_labels = len(dataset.labels)

    def look(tile: Tile) -> TileStats:
        # not of the file: a PNG and a TIFF may hold the same image
        sha256 = hashlib.sha256(tile.image.tobytes()).hexdigest()
        return TileStats(
            tile._replace(image=NO_PIXELS, mask=NO_PIXELS),
            tile.mask.shape,
            label_counts(tile, n_labels),
            look_hashes(tile.image),
            sha256,
        )

    seen: dict[str, TileStats] = {}
    problems = []
    for entry, found in survey(manifest, name, f"checking {name}", look):
        if isinstance(found, FmcacheError):
            problems.append(str(found))
        else:
            seen[entry.id] = found
    problems += _spoilt_labels(dataset, seen)
    copies, alike = _copies(dataset, seen)
    unlabelled = {id_: float(one.counts[-1] / max(one.counts.sum(), 1)) for id_, one in seen.items()}
    sizes = Counter((one.size[1], one.size[0]) for one in seen.values())
    problems += _oblong(sizes) + _parts_without_labels(dataset, seen)
    notes = [*_missing_labels(dataset, seen), *_scale(dataset, sizes), *_mostly_unlabelled(unlabelled), *alike]
    notes += _tiles_without_labels(dataset, seen)
    notes += region_notes(dataset, [one.tile for one in seen.values()])
    pixels = np.stack([_summed(seen, dataset.splits.of(split), n_labels) for split in SPLITS])
    return Check(name, dataset, sizes, pixels, unlabelled, problems + copies, notes)


def _parts_without_labels(dataset: AnyDataset, seen: Mapping[str, TileStats]) -> list[str]:
    """Name the splits, folds and subsets in which every tile could be read and no tile has a labelled pixel."""
    return [
        f"{title} has no labelled pixel: label one of its tiles ({some(tiles, SHOWN)}), or choose other tiles for it: "
        "edit the manifest, or run fmcache data split"
        for title, tiles in named_parts(dataset)
        if all(tile in seen and not seen[tile].counts[:-1].any() for tile in tiles)
    ]


def _tiles_without_labels(dataset: AnyDataset, seen: Mapping[str, TileStats]) -> list[str]:
    split_of = {tile: split for split in SPLITS for tile in dataset.splits.of(split)}
    empty = [f"{id_} ({split_of.get(id_, 'in no split')})" for id_, one in seen.items() if not one.counts[:-1].any()]
    if not empty:
        return []
    return [
        f"in {len(empty)} tiles every pixel is ignored; they contribute nothing to training or to scores: "
        f"{some(empty, SHOWN)}"
    ]


def _spoilt_labels(dataset: AnyDataset, seen: Mapping[str, TileStats]) -> list[str]:
    """Return problems: labels without a pixel in any tile, and differing palettes of masks that are read by index."""
    if not seen:
        return []
    pixels = _summed(seen, tuple(seen), len(dataset.labels))[:-1]
    found: Counter[int] = Counter()
    for one in seen.values():
        found.update(dict(one.tile.found))
    if not isinstance(dataset, FolderDataset):
        classes = {label: n for label, n in zip(dataset.label_names, pixels.tolist(), strict=True) if n}
        errors = [absent_classes(dataset.labels, pixels, len(seen), classes)]
    else:
        masks = {tile.id: tile.mask for tile in dataset.tiles}
        palettes = [(masks[tile], one.tile.palette) for tile, one in seen.items() if one.tile.palette]
        errors = [absent_values(dataset, pixels, len(seen), found), palettes_apart(dataset, palettes)]
    return [str(error) for error in errors if error]


def _oblong(sizes: Counter[tuple[int, int]]) -> list[str]:
    oblong = Counter({size: n for size, n in sizes.items() if size[0] != size[1]})
    if not oblong:
        return []
    return [
        f"{oblong.total()} of {sizes.total()} tiles are not square ({sizes_of(oblong)}): make them square with "
        "fmcache data add --replace --square crop, tile or pad"
    ]


def _summed(seen: Mapping[str, TileStats], tiles: tuple[str, ...], n_labels: int) -> npt.NDArray[np.int64]:
    counts = [seen[tile].counts for tile in tiles if tile in seen]
    return np.sum(counts, axis=0) if counts else np.zeros(n_labels + 1, dtype=np.int64)


def _missing_labels(dataset: AnyDataset, seen: Mapping[str, TileStats]) -> list[str]:
    notes = []
    for title, tiles in named_parts(dataset):
        pixels = _summed(seen, tiles, len(dataset.labels))
        absent = [label for label, n in zip(dataset.label_names, pixels, strict=False) if n == 0]
        notes += [f"label {label!r} does not occur in {title}" for label in absent if pixels[:-1].any()]
    return notes


def _scale(dataset: AnyDataset, sizes: Counter[tuple[int, int]]) -> list[str]:
    notes = []
    if dataset.mpp is None:
        notes.append("um/px is unknown: add `mpp:` to the manifest, so that results state their scale")
    elif not USUAL_MPP[0] <= dataset.mpp <= USUAL_MPP[1]:
        notes.append(
            f"um/px is {dataset.mpp:g}, outside the usual {USUAL_MPP[0]:g} to {USUAL_MPP[1]:g}: check its unit (um, "
            "not mm or nm), and check that it is the value of the tiles, not of another level of the slide"
        )
    if len(sizes) > 1:
        notes.append("tiles differ in size: all are resized to the recipe's tile_px, so their um/px will differ")
    return notes


def _mostly_unlabelled(unlabelled: Mapping[str, float]) -> list[str]:
    above = sorted((-share, tile) for tile, share in unlabelled.items() if MOSTLY_UNLABELLED < share < 1)
    if not above:
        return []
    named = some((f"{tile} ({-share:.0%})" for share, tile in above), SHOWN)
    return [f"{len(above)} tiles are more than half unlabelled: {named}"]


def _copies(dataset: AnyDataset, seen: Mapping[str, TileStats]) -> tuple[list[str], list[str]]:
    """Return problems (images that are in two splits) and notes (similar tiles in two splits).

    Two tiles of the same group are skipped: groups are kept in one split.
    """
    ids, group = list(seen), {tile.id: tile.group for tile in dataset.tiles}
    arrangements = [("", dataset.splits), *((f" of fold {i}", fold) for i, fold in enumerate(dataset.folds))]
    split_of = [(title, {t: split for split in SPLITS for t in splits.of(split)}) for title, splits in arrangements]
    same, alike, n_alike = [], [], 0
    for pair in pairs_alike(np.array([seen[tile].hashes for tile in ids], dtype=np.uint64).reshape(-1, 8)):
        one, other = ids[pair.first], ids[pair.second]
        if (group[one] and group[one] == group[other]) or not (where := _parted(split_of, one, other)):
            continue
        if seen[one].sha256 == seen[other].sha256:
            same.append(f"tiles {one} and {other} are the same image: {where}")
        else:
            n_alike += 1
            if n_alike <= SHOWN:  # blank tiles all look alike: there may be millions of pairs
                alike.append(f"{one} and {other} ({where}; {pair.bits} of {BITS} bits differ)")
    if not n_alike:
        return same, []
    what = "if one is a copy of the other or shows the same tissue, the test is not on new tissue"
    more = f" and {n_alike - SHOWN} more" if n_alike > SHOWN else ""
    return same, [f"{n_alike} pairs of tiles in different splits look alike; {what}: {', '.join(alike)}{more}"]


def _parted(split_of: Sequence[tuple[str, Mapping[str, str]]], one: str, other: str) -> str:
    """Return the two different splits of two tiles, in the fixed split or else in the first such fold; "" if none."""
    for title, splits in split_of:
        if one in splits and other in splits and splits[one] != splits[other]:
            return f"{splits[one]} and {splits[other]}{title}"
    return ""
