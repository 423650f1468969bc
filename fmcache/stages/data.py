"""What `fmcache data add` does, and how the manifest is written: comments survive, and it is read back as a check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from fmcache.errors import ManifestError, SpecError
from fmcache.identity import whole_file
from fmcache.manifest import (
    FORMAT,
    IGNORE,
    SPLITS,
    FolderDataset,
    GeojsonDataset,
    Label,
    Manifest,
    TileEntry,
)
from fmcache.stages.progress import progress
from fmcache.tiles.folder import (
    find_pairs,
    group_of,
    holds_regions,
    ignored_values,
    parse_classes,
    parse_labels,
    parse_order,
)
from fmcache.tiles.listing import list_tiles
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
    order: str = "",
    fill: str = "ignore",
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
    if manifest.exists() and not replace:
        listed = Manifest(manifest)
        if name in {**listed.datasets, **listed.unfetched}:
            raise ManifestError(
                f"{manifest} lists a dataset {name!r} already", next_step="pass --replace, or another name"
            )
    pairs = find_pairs(images, masks)
    root = Path(os.path.commonpath([images.resolve(), masks.resolve()]))
    listed_root = os.path.relpath(root, manifest.parent.resolve())
    rule = _rule(listed_root, labels, ignore, mpp, holds_regions(masks), order, fill)
    with progress(f"reading {name}", len(pairs), "tiles") as tick:
        entries, pixels = list_tiles(rule, pairs, group_of(groups, pairs), root, tick)
    chosen = balanced_split([e.id for e in entries], [e.group for e in entries], pixels, sizes, seed)
    splits = {str(part): [entries[i].id for i in at] for part, at in zip(SPLITS, chosen.members, strict=True)}
    write_entry(manifest, name, folder_entry(rule, list(entries), splits))
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


def _rule(
    root: str, labels: str, ignore: str, mpp: float | None, regions: bool, order: str, fill: str
) -> FolderDataset | GeojsonDataset:
    """Return the dataset without its tiles."""
    found = parse_labels(labels, regions)
    if not regions:
        if order or fill != "ignore":
            raise SpecError("--order and --fill go with annotated regions", expected="a folder of GeoJSON for --masks")
        return FolderDataset(labels=found, root=root, mpp=mpp, ignore_values=ignored_values(ignore, found))
    ignored = () if ignore == str(IGNORE) else parse_classes(ignore)  # the default is a value of pictures, not a class
    try:
        return GeojsonDataset(
            labels=found, root=root, mpp=mpp, ignore_values=ignored, order=parse_order(order, found, ignored), fill=fill
        )
    except ValueError as reason:
        raise SpecError(f"--fill or --order: {reason}", next_step="correct the flag") from None


def folder_entry(
    rule: FolderDataset | GeojsonDataset, entries: list[TileEntry], splits: dict[str, list[str]]
) -> CommentedMap:
    """Return the manifest's entry of a folder of tiles: `rule` says all but tiles and splits."""
    entry = CommentedMap(format="folder", root=Quoted(rule.root))
    if isinstance(rule, GeojsonDataset):
        entry["format"] = "geojson"
        entry["order"] = flow_list(rule.order)
        entry["fill"] = Quoted(rule.fill)
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


def write_entry(manifest: Path, name: str, entry: CommentedMap) -> None:
    """Put an entry into a manifest, made when there is none; comments and other entries survive."""
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
