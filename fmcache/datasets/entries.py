"""Write entries of the manifest: comments and other entries are kept.

The whole new manifest is checked, then the file is replaced in one step. A command that changes the manifest holds a
lock beside it from reading to writing, so that two commands that run concurrently lose no entry.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from fmcache.errors import ManifestError, SpecError
from fmcache.identity import whole_file
from fmcache.locks import locked
from fmcache.manifest import FORMAT, FolderDataset, GeojsonDataset, Label, Manifest, TileEntry

WAIT_S = 60
"""Seconds to wait for the manifest's lock. A command holds it only while it changes the manifest or a lock file of its
datasets, never while it reads tiles."""
FLAGS = {"labels": "--labels", "ignore_values": "--ignore", "mpp": "--mpp"}


def check_name(manifest: Path, name: str, replace: bool) -> None:
    """Refuse, before any tile is read, a name that cannot be added to the manifest.

    Raises
    ------
    ManifestError
        When it is not a valid dataset name, the manifest cannot be read, or the manifest already lists the name and
        `replace` is not set.
    """
    Manifest.check_name(name)
    if manifest.exists() and replace:
        _load(manifest)
    elif manifest.exists():
        _refuse_second(Manifest(manifest), name)


def check_dataset(name: str, rule: FolderDataset | GeojsonDataset) -> None:
    """Refuse, before any tile is read, labels and um/px that are not valid in a manifest; `rule` lists no tiles.

    Raises
    ------
    SpecError
        When a value is not valid; the message names the flag.
    """
    try:
        Manifest.check_rules(name, rule, lambda *at: FLAGS[str(at[0])] if at else "NAME")
    except ManifestError as error:
        raise SpecError(error.problem, next_step=error.next_step) from None


def _refuse_second(listed: Manifest, name: str) -> None:
    if name in {**listed.datasets, **listed.unfetched}:
        raise ManifestError(
            f"{listed.path} already lists a dataset {name!r}", next_step="pass --replace, or another name"
        )


def folder_entry(
    rule: FolderDataset | GeojsonDataset, entries: list[TileEntry], splits: dict[str, list[str]]
) -> CommentedMap:
    """Return the manifest entry of a folder of tiles: `rule` has all fields except tiles and splits."""
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


def write_entry(manifest: Path, name: str, entry: CommentedMap, replace: bool) -> None:
    """Write an entry into a manifest; comments and other entries are kept. A missing manifest is created.

    Raises
    ------
    ManifestError
        When the new manifest would not be valid, or the manifest lists the name by now and `replace` is not set. The
        file is then not changed.
    Busy
        When another process does not release the lock of the manifest in time.
    """
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with locked(manifest, WAIT_S):
        if not manifest.exists():
            key = _bare_or_quoted(name)
            _write(manifest, CommentedMap(format=FORMAT, default=key, datasets=CommentedMap({key: entry})))
            return
        if not replace:
            _refuse_second(Manifest(manifest), name)
        document = _load(manifest)
        document["datasets"][name if name in document["datasets"] else _bare_or_quoted(name)] = entry
        _write(manifest, document)


@contextmanager
def edited(manifest: Path) -> Iterator[CommentedMap]:
    """Yield the manifest, including comments, as a document to change; then check it and write it in one step.

    Raises
    ------
    ManifestError, Busy
        As in `write_entry`.
    """
    with locked(manifest, WAIT_S):
        document = _load(manifest)
        yield document
        _write(manifest, document)


def _bare_or_quoted(name: str) -> str:
    """Quote a name that YAML would read back as a number, a date or a boolean, such as 007 or no."""
    return Quoted(name) if yaml.safe_dump(name).startswith("'") else name


def _load(manifest: Path) -> CommentedMap:
    """Return a manifest as a document to change. It need not be valid, so that an invalid entry can be replaced."""
    try:
        document: CommentedMap = _yaml().load(manifest.read_text(encoding="utf-8"))
        if isinstance(document["datasets"], CommentedMap):
            return document
    except (YAMLError, OSError, UnicodeDecodeError, LookupError, TypeError):
        Manifest(manifest)  # raises an error that says what is wrong, and where
    raise ManifestError(f"{manifest} cannot be changed: it lists no datasets", next_step="fix or remove it")


def flow_list(values: Iterable[Any]) -> CommentedSeq:
    """Return a list that is written on one line; its strings are quoted, also inside nested lists.

    Without quotes, YAML would read a tile called 007 back as a number, and a tile called no as a boolean.
    """
    kept = (flow_list(v) if isinstance(v, tuple | list) else Quoted(v) if isinstance(v, str) else v for v in values)
    sequence = CommentedSeq(kept)
    sequence.fa.set_flow_style()
    return sequence


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096  # one line per tile
    yaml.preserve_quotes = True  # without quotes, a tile called no would be read back as false
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _write(manifest: Path, document: CommentedMap) -> None:
    text = io.StringIO()
    _yaml().dump(document, text)
    Manifest(manifest, text.getvalue())
    with whole_file(manifest.resolve()) as file:  # a symbolic link stays a link
        file.write(text.getvalue().encode())
