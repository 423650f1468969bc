"""What `fmcache data` does: list a folder in the manifest, check every listed file, show the tiles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from fmcache.errors import FmcacheError, ManifestError, SpecError
from fmcache.identity import sha256_file, whole_file
from fmcache.manifest import FORMAT, IGNORE, SPLITS, AnyDataset, FolderDataset, Label, Manifest, Splits, TileEntry
from fmcache.stages.progress import progress
from fmcache.tiles.folder import find_pairs, group_of, ignored_values, parse_labels
from fmcache.tiles.images import read_image, read_raw_mask, read_tile, to_label_ids
from fmcache.tiles.sheet import Entry, contact_sheet
from fmcache.tiles.splits import balanced_split


class Check(NamedTuple):
    """What was found in a dataset: problems stop a study, notes are worth knowing. `pixels` is (split, label +
    ignored)."""

    name: str
    dataset: AnyDataset
    sizes: Counter[str]
    pixels: npt.NDArray[np.int64]
    problems: list[str]
    notes: list[str]

    def table(self) -> Group:
        """Return label shares per split, sizes, problems and notes, for the terminal."""
        table = Table("split", "tiles", *self.dataset.label_names, "ignored", title=f"{self.name} · pixels in percent")
        for split, counts in zip(SPLITS, self.pixels, strict=True):
            shares = [f"{100 * n / max(counts.sum(), 1):.1f}" for n in counts]
            table.add_row(split, str(len(self.dataset.splits.of(split))), *shares)
        mpp = self.dataset.mpp
        lines = [f"um/px: {f'{mpp:g}' if mpp else 'unknown'}; sizes: {_counted(self.sizes)}"]
        lines += [f"note: {text}" for text in self.notes] + [f"PROBLEM: {text}" for text in self.problems]
        return Group(table, *lines, "no problems" if not self.problems else f"{len(self.problems)} problems")


def add(
    manifest: Path,
    name: str,
    images: Path,
    masks: Path,
    labels: str,
    ignore: str,
    mpp: float | None,
    groups: str,
    split: str,
    seed: int,
    replace: bool,
) -> str:
    """List a folder of images and masks in the manifest (made when there is none); return a line on what was added.

    Every image and mask is read and hashed; the split is balanced by label share and respects groups. Comments in the
    manifest survive.

    Raises
    ------
    ManifestError, SpecError, TileError
        When files have no partner or cannot be read, a mask holds unknown values, or the split cannot be made.
    """
    sizes = split_sizes(split)
    if manifest.exists() and name in Manifest(manifest).datasets and not replace:
        raise ManifestError(f"{manifest} lists a dataset {name!r} already", next_step="pass --replace, or another name")
    pairs = find_pairs(images, masks)
    found = parse_labels(labels)
    root = Path(os.path.commonpath([images.resolve(), masks.resolve()]))
    listed_root = os.path.relpath(root, manifest.parent.resolve())
    rule = FolderDataset(
        labels=found, tiles=(), splits=Splits((), (), ()), root=listed_root, mpp=mpp,
        ignore_values=ignored_values(ignore, found),
    )  # fmt: skip
    entries, pixels = [], np.zeros((len(pairs), len(found)), dtype=np.int64)
    with progress(f"reading {name}", len(pairs), "tiles") as tick:
        for i, (pair, group) in enumerate(zip(pairs, group_of(groups, pairs), strict=True)):
            read_image(pair.image)
            mask = to_label_ids(read_raw_mask(pair.mask), rule, pair.mask)
            pixels[i] = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(found)]
            image, file = (path.resolve().relative_to(root).as_posix() for path in (pair.image, pair.mask))
            entries.append(TileEntry(pair.id, group, image, file, sha256_file(pair.image), sha256_file(pair.mask)))
            tick(1)
    chosen = balanced_split([e.id for e in entries], [e.group for e in entries], pixels, sizes, seed)
    splits = {str(part): [entries[i].id for i in at] for part, at in zip(SPLITS, chosen.members, strict=True)}
    _write_entry(manifest, name, _entry(rule, entries, splits))
    spare = len(entries) - sum(sizes)
    return (
        f"{manifest}: {name} added, {len(entries)} tiles, split {split}"
        + (f" ({spare} in no split)" if spare else "")
        + f"; label shares of a split are at most {100 * chosen.off:.1f} points off those of all tiles"
    )


def check(manifest: Manifest, name: str) -> Check:
    """Read every listed tile of a dataset and return what was found; problems are collected, not raised."""
    dataset = manifest.dataset(name)
    split_of = {tile: i for i, split in enumerate(SPLITS) for tile in dataset.splits.of(split)}
    pixels = np.zeros((len(SPLITS), len(dataset.labels) + 1), dtype=np.int64)
    sizes: Counter[str] = Counter()
    problems, notes = [], []
    with progress(f"checking {name}", len(dataset.tiles), "tiles") as tick:
        for entry in dataset.tiles:
            tick(1)
            try:
                tile = read_tile(dataset, entry, manifest.folder)
            except FmcacheError as error:
                problems.append(str(error))
                continue
            height, width = tile.mask.shape
            sizes[f"{width} x {height} px"] += 1
            counts = np.bincount(tile.mask.ravel(), minlength=IGNORE + 1)
            seen = counts[: len(dataset.labels)]
            if not seen.any():
                problems.append(f"tile {entry.id}: every pixel is ignored")
            if height != width:
                problems.append(f"tile {entry.id}: {width} x {height} px is not square; cut it into squares")
            if entry.id in split_of:
                pixels[split_of[entry.id]] += [*seen, counts[IGNORE]]
    for i, split in enumerate(SPLITS):
        absent = [label for label, n in zip(dataset.label_names, pixels[i], strict=False) if n == 0]
        notes += [f"label {label!r} does not occur in {split}" for label in absent if pixels[i].any()]
    if dataset.mpp is None:
        notes.append("um/px is unknown: add `mpp:` to the manifest, so that results say at what scale they hold")
    if len(sizes) > 1:
        notes.append("tiles differ in size: all are resized to the recipe's tile_px, so their um/px will differ")
    return Check(name, dataset, sizes, pixels, problems, notes)


def show(manifest: Manifest, name: str, out: Path) -> Path:
    """Write the contact sheet of a dataset as PNG and return its path."""
    dataset = manifest.dataset(name)
    split_of = {tile: split for split in SPLITS for tile in dataset.splits.of(split)}
    order = sorted(dataset.tiles, key=lambda e: (*SPLITS, "").index(split_of.get(e.id, "")))
    entries = []
    with progress(f"drawing {name}", len(order), "tiles") as tick:
        for entry in order:
            tile = read_tile(dataset, entry, manifest.folder)
            entries.append(Entry(tile, f"{entry.id} · {split_of.get(entry.id, 'no split')}"))
            tick(1)
    sheet = contact_sheet(f"{name}: {dataset.title}".rstrip(": "), entries, dataset.labels, dataset.mpp)
    with whole_file(out) as file:
        sheet.save(file, format="PNG")
    return out


def split_sizes(split: str) -> list[int]:
    """Return the numbers of tiles in ``15/5/10``: to train, validate and test on.

    Raises
    ------
    SpecError
        When it is not three positive numbers.
    """
    parts = split.split("/")
    if len(parts) != len(SPLITS) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SpecError(f"--split {split!r}", expected="three numbers of tiles, such as 15/5/10 (train/val/test)")
    return [int(part) for part in parts]


def _entry(rule: FolderDataset, entries: list[TileEntry], splits: dict[str, list[str]]) -> CommentedMap:
    entry = CommentedMap(format="folder", root=Quoted(rule.root))
    if rule.mpp is not None:
        entry["mpp"] = rule.mpp
    entry["labels"] = CommentedSeq(_flow(_label(label)) for label in rule.labels)
    entry["ignore_values"] = flow_list(rule.ignore_values)
    fields = TileEntry.__struct_fields__
    entry["tiles"] = CommentedSeq(_flow({f: Quoted(getattr(e, f)) for f in fields if getattr(e, f)}) for e in entries)
    entry["splits"] = CommentedMap((part, flow_list(ids)) for part, ids in splits.items())
    return entry


def _label(label: Label) -> dict[str, Any]:
    return {"name": Quoted(label.name), "colour": Quoted(label.colour), "values": flow_list(label.values)}


def _flow(values: dict[str, Any]) -> CommentedMap:
    mapping = CommentedMap(values)
    mapping.fa.set_flow_style()
    return mapping


def _write_entry(manifest: Path, name: str, entry: CommentedMap) -> None:
    if not manifest.exists():
        _write(manifest, CommentedMap(format=FORMAT, default=name, datasets=CommentedMap({name: entry})))
        return
    with edited(manifest) as document:
        document["datasets"][name] = entry


@contextmanager
def edited(manifest: Path) -> Iterator[CommentedMap]:
    """Yield the manifest as a document to change, comments and all; write it back whole, and read it as a check."""
    document = _yaml().load(manifest.read_text(encoding="utf-8"))
    yield document
    _write(manifest, document)


def flow_list(values: Iterable[Any]) -> CommentedSeq:
    """Return a list that is written on one line; strings are quoted, lists inside it too.

    Bare, a tile called 007 or no would be read back as something else.
    """
    kept = (flow_list(v) if isinstance(v, tuple | list) else Quoted(v) if isinstance(v, str) else v for v in values)
    sequence = CommentedSeq(kept)
    sequence.fa.set_flow_style()
    return sequence


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096  # one line per tile
    yaml.preserve_quotes = True  # bare, a tile called no would be read back as false
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _write(manifest: Path, document: CommentedMap) -> None:
    yaml = _yaml()
    with whole_file(manifest) as file:
        yaml.dump(document, file)
    Manifest(manifest)


def _counted(sizes: Counter[str]) -> str:
    return ", ".join(f"{n} of {size}" for size, n in sizes.most_common()) or "none"
