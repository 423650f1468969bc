"""The command `fmcache data split`: write a fixed split, rotating folds and learning-curve subsets to the manifest.

Only lists of tile ids are written. Caches do not depend on splits, so a new split invalidates no cache. Tiles that
become training tiles for the first time get their views at the next `fmcache extract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fmcache.datasets.balance import Members, balanced_split, deviations, nested_subsets, rotating_folds
from fmcache.datasets.entries import edited, flow_list
from fmcache.datasets.split_remarks import labels_rarer_than_folds, lacking_labels
from fmcache.datasets.split_sizes import split_sizes
from fmcache.datasets.survey import count_labels
from fmcache.errors import SpecError
from fmcache.manifest import SPLITS, AnyDataset, FileDataset, Manifest, Splits


def split(manifest: Path, name: str, sizes: str, folds: int, subsets: str, seed: int) -> Group:
    """Write the splits of a dataset and return a table of label shares and their deviations from those of all tiles.

    Parameters
    ----------
    sizes
        ``15/5/10``: a new fixed split; empty: the existing split is kept.
    folds
        Number of rotating folds over all tiles. 0: no folds; existing folds are removed.
    subsets
        ``5,10,15``: sizes of the nested training subsets of the fixed split and of every fold. Empty: no subsets.

    Raises
    ------
    SpecError
        When the requested splits are impossible, or nothing is requested.
    ManifestError, TileError
        When a tile cannot be read.
    """
    if not (sizes or folds or subsets):
        raise SpecError(
            "nothing to do: no split is requested",
            next_step=f"fmcache data split {name} --folds 3, or pass --split or --subsets",
        )
    listed = Manifest(manifest)
    dataset = listed.dataset(name)
    fetched = isinstance(dataset, FileDataset) and dataset.fetch is not None
    if fetched and (sizes or subsets):
        raise SpecError(
            f"the fixed split of {name!r} is defined by {listed.lock_path(name)}, because the dataset was fetched",
            expected="only --folds",
            next_step=f"for another fixed split, change `split:` below `fetch:` in {manifest}, remove "
            f"{listed.lock_path(name)} and run fmcache data fetch {name}",
        )
    wanted, curve = split_sizes(sizes), _numbers(subsets)
    pixels = count_labels(listed, name)[:, : len(dataset.labels)]
    ids, groups = [tile.id for tile in dataset.tiles], [tile.group for tile in dataset.tiles]
    fixed = balanced_split(ids, groups, pixels, wanted, seed).members if wanted else _members(ids, dataset.splits)
    rotating = rotating_folds(ids, groups, pixels, folds, seed) if folds else []

    def with_subsets(members: Members) -> Splits:
        inner = nested_subsets(ids, members[0], pixels, curve, seed) if curve else ()
        train, val, test, *steps = (tuple(ids[i] for i in part) for part in (*members, *inner))
        return Splits(train, val, test, tuple(steps))

    splits, made = with_subsets(fixed), tuple(with_subsets(fold.members) for fold in rotating)
    with edited(manifest) as document:
        entry = document["datasets"][name]
        if not fetched:
            entry["splits"] = _written(splits)
        entry.pop("folds", None)
        if made:
            entry["folds"] = CommentedSeq(_written(fold) for fold in made)
    shares = shares_table(Manifest(manifest).dataset(name), name, pixels)
    return Group(*shares.renderables, *_removed(dataset, folds, curve, fetched))


def _removed(dataset: AnyDataset, folds: int, curve: Sequence[int], fetched: bool) -> list[str]:
    """Return a line on the folds and subsets that were removed, because they were listed but not requested again."""
    gone = [f"{len(dataset.folds)} folds (--folds {len(dataset.folds)})"] if dataset.folds and not folds else []
    if dataset.splits.subsets and not curve and not fetched:
        sizes = ",".join(str(len(subset)) for subset in dataset.splits.subsets)
        gone.append(f"the subsets of {sizes} tiles (--subsets {sizes})")
    if not gone:
        return []
    return [f"note: {' and '.join(gone)} were listed before and are now removed; to keep them, pass these flags again"]


def shares_table(dataset: AnyDataset, name: str, pixels: npt.NDArray[np.int64]) -> Group:
    """Return tiles, groups and label shares of every split, fold and subset, for the terminal.

    pixels: (tile, label), in the order of the dataset's tiles.
    """
    ids = [tile.id for tile in dataset.tiles]
    whole = 100 * pixels.sum(axis=0) / max(pixels.sum(), 1)
    table = Table(
        "", "tiles", "groups", *dataset.label_names,
        title=f"{name} · label shares in percent (points off all tiles)",
    )  # fmt: skip
    table.add_row("all tiles", str(len(ids)), _groups(dataset, range(len(ids))), *(f"{share:.1f}" for share in whole))
    worst, notes = 0.0, []
    for title, tiles in named_parts(dataset):
        part = [ids.index(tile) for tile in tiles]
        off = 100 * deviations((tuple(part),), pixels)[0]
        worst = max(worst, float(np.abs(off).max()))
        cells = (f"{share + d:.1f} ({d:+.1f})" for share, d in zip(whole, off, strict=True))
        table.add_row(title, str(len(part)), _groups(dataset, part), *cells)
        absent = [label for label, n in zip(dataset.label_names, pixels[part].sum(axis=0), strict=True) if n == 0]
        notes += [f"note: label {label!r} does not occur in {title}" for label in absent if title not in SPLITS]
    groups = [tile.group for tile in dataset.tiles]
    lacking = lacking_labels(_members(ids, dataset.splits), pixels, dataset.label_names, groups)
    lacking += labels_rarer_than_folds(pixels, dataset.label_names, groups, len(dataset.folds))
    notes = [f"note: {line}" for line in lacking] + notes
    return Group(table, f"largest deviation of a label's share: {worst:.1f} points", *notes)


def named_parts(dataset: AnyDataset) -> list[tuple[str, tuple[str, ...]]]:
    """Return every set of tiles a recipe may use, with its name: splits and subsets of the fixed split and of folds."""
    found = []
    for prefix, splits in [("", dataset.splits), *((f"fold {i} ", fold) for i, fold in enumerate(dataset.folds))]:
        found += [(f"{prefix}{part}", splits.of(part)) for part in SPLITS]
        found += [(f"{prefix}subset {len(subset)}", subset) for subset in splits.subsets]
    return found


def _members(ids: Sequence[str], splits: Splits) -> Members:
    at = {id_: i for i, id_ in enumerate(ids)}
    return tuple(tuple(at[id_] for id_ in splits.of(part)) for part in SPLITS)


def _groups(dataset: AnyDataset, part: Sequence[int]) -> str:
    tiles = [dataset.tiles[i] for i in part]
    return str(len({tile.group or f"\0{tile.id}" for tile in tiles}))


def _written(splits: Splits) -> CommentedMap:
    lists = CommentedMap((part, flow_list(splits.of(part))) for part in SPLITS)
    if splits.subsets:
        lists["subsets"] = CommentedSeq(flow_list(subset) for subset in splits.subsets)
    return lists


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise SpecError(
            f"--subsets {text!r}",
            expected="numbers of training tiles, such as 5,10,15",
            next_step="separate them with commas",
        )
    return [int(part) for part in parts]
