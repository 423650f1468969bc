"""Writing entries of the manifest: comments and other entries survive, and it is read back as a check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from fmcache.identity import whole_file
from fmcache.manifest import FORMAT, FolderDataset, GeojsonDataset, Label, Manifest, TileEntry


def folder_entry(
    rule: FolderDataset | GeojsonDataset, entries: list[TileEntry], splits: dict[str, list[str]]
) -> CommentedMap:
    """Return the manifest's entry of a folder of tiles: `rule` says all but tiles and splits."""
    entry = CommentedMap(format="folder", root=Quoted(rule.root))
    if isinstance(rule, GeojsonDataset):
        entry["format"] = "geojson"
        entry["order"] = flow_list(rule.order)
        entry["fill"] = Quoted(rule.fill)
        entry |= {key: flow_list(names) for key, names in (("skip", rule.skip), ("objects", rule.objects)) if names}
        if rule.class_property:
            entry["class_property"] = Quoted(rule.class_property)
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
