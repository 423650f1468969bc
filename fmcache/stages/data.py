"""What `fmcache data add` does, and how the manifest is written: comments survive, and it is read back as a check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from fmcache.errors import ManifestError, SpecError
from fmcache.identity import sha256_file, whole_file
from fmcache.manifest import FORMAT, IGNORE, SPLITS, FolderDataset, Label, Manifest, Splits, TileEntry
from fmcache.stages.progress import progress
from fmcache.tiles.folder import find_pairs, group_of, ignored_values, parse_labels
from fmcache.tiles.images import read_image, read_raw_mask, to_label_ids
from fmcache.tiles.splits import balanced_split


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
