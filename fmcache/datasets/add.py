"""The command `fmcache data add`: a folder of images and masks -> an entry of the manifest, hashed and split."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from fmcache.datasets.balance import balanced_split
from fmcache.datasets.entries import check_dataset, check_name, folder_entry, write_entry
from fmcache.datasets.folder import FolderPairs, find_tiles
from fmcache.datasets.groups import group_of, likely_groups
from fmcache.datasets.label_flags import (
    ignored_values,
    parse_classes,
    parse_fill,
    parse_labels,
    parse_order,
    refuse_twice,
)
from fmcache.datasets.listing import list_tiles
from fmcache.datasets.split_remarks import lacking_labels, split_line
from fmcache.datasets.split_sizes import USUAL, shown, split_sizes
from fmcache.datasets.squares import SquareRequest, Squares, check_square, make_squares, seal
from fmcache.errors import ManifestError, SpecError
from fmcache.manifest import IGNORE, SPLITS, FolderDataset, GeojsonDataset
from fmcache.runtime.progress import progress
from fmcache.tiles.boxes import image_sizes, shape_note
from fmcache.tiles.classes import parse_objects, parse_property

NO_GROUPS = "none"


class FileRules(NamedTuple):
    """How files become tiles.

    `missing` is ``refuse`` or ``skip``: what to do with images without masks and masks without images. `square` is
    empty, ``crop``, ``tile`` or ``pad``; ``tile`` also uses `tile_px`. Squares are written to `into`, by default the
    folder NAME-squares beside the manifest. `other` lists files that are not images of tiles, even if their names look
    like it.
    """

    missing: str = "refuse"
    square: str = ""
    tile_px: int = 0
    into: Path | None = None
    other: Collection[Path] = ()


AS_THEY_ARE = FileRules()


def add(
    manifest: Path,
    name: str,
    images: Path,
    masks: Path,
    *,
    labels: str,
    ignore: str,
    mpp: float | None,
    groups: str,
    split: str,
    seed: int,
    replace: bool,
    order: str = "",
    fill: str = "ignore",
    skip: str = "",
    objects: str = "",
    class_property: str = "",
    files: FileRules = AS_THEY_ARE,
    say: Callable[[str], None] = print,
) -> str:
    """Add a folder of images and masks to the manifest; return lines that describe what was added.

    The manifest is created if it does not exist. Comments in it are kept. Every image and mask is read and hashed.

    When tiles lie in folders called train, val and test, these folders are the split. Otherwise the split is balanced
    by label share and keeps groups whole. An empty `split` means 15/5/10, scaled down to fewer tiles or to whole
    groups. `groups` of ``none`` means that tiles have no groups, even where folders or squares suggest them. `say`
    gets each note as one line.

    Raises
    ------
    ManifestError, SpecError, TileError
        When files have no partner or cannot be read, a mask holds unknown values, or the split cannot be made.
    """
    sizes = check_flags(manifest, name, split, replace)
    check_square(files.square, files.tile_px, files.into)
    found = _found(images, masks, groups, files, say)
    found = found._replace(splits=_folder_splits(found, split, say))
    rule = _rule(
        _listed(found.root, manifest),
        labels=labels,
        ignore=ignore,
        mpp=mpp,
        regions=found.regions,
        order=order,
        fill=fill,
        skip=skip,
        objects=objects,
        class_property=class_property,
    )
    check_dataset(name, rule)
    if files.square:
        wish = SquareRequest(files.square, files.tile_px, files.into or manifest.parent / f"{name}-squares", replace)
        squares = make_squares(rule, found.pairs, wish, lambda line: say(f"note: {line}"))
        found, rule = _squared(found, squares, manifest, wish, groups)
    with progress(f"reading {name}", len(found.pairs), "tiles") as tick:
        entries, pixels, drawn = list_tiles(rule, found.pairs, found.groups, found.root, tick)
    for note in drawn:
        say(f"note: {note}")
    if any(found.splits):
        splits = {str(p): [e.id for e, its in zip(entries, found.splits, strict=True) if its == p] for p in SPLITS}
        counts = "/".join(str(len(ids)) for ids in splits.values())
        lines = [f"{manifest}: {name} added, {len(entries)} tiles, split {counts} as in their folders"]
    else:
        chosen = balanced_split([e.id for e in entries], [e.group for e in entries], pixels, sizes, seed)
        splits = {str(part): [entries[i].id for i in at] for part, at in zip(SPLITS, chosen.members, strict=True)}
        lacking = lacking_labels(chosen.members, pixels, rule.label_names, [e.group for e in entries])
        added = f"{manifest}: {name} added, {len(entries)} tiles: {split_line(chosen, len(entries), sizes)}"
        lines = [added, *(f"note: {line}" for line in lacking)]
    if files.square:
        seal(wish, squares)
    write_entry(manifest, name, folder_entry(rule, list(entries), splits), replace)
    return "\n".join(lines)


def _found(images: Path, masks: Path, groups: str, files: FileRules, say: Callable[[str], None]) -> FolderPairs:
    """Return pairs with their groups, and report the notes on them before any long work begins."""
    found = find_tiles(images, masks, files.missing == "skip", files.other)
    notes = list(found.notes)
    if not files.square and (note := shape_note(image_sizes([pair.image for pair in found.pairs]))):
        notes.append(note)
    if groups == NO_GROUPS:
        found = found._replace(groups=[""] * len(found.pairs))
    elif groups:
        found = found._replace(groups=group_of(groups, found.pairs, lambda note: notes.append(note)))
    elif not any(found.groups) and not any(found.splits) and (hint := likely_groups(found.pairs)):
        notes.append(hint)
    for note in notes:
        say(f"note: {note}")
    return found


def _folder_splits(found: FolderPairs, split: str, say: Callable[[str], None]) -> list[str]:
    """Return each tile's split as its folder names it, or "" for each tile when a split must be drawn."""
    there = [part for part in SPLITS if part in found.splits]
    if not there:
        return [""] * len(found.pairs)
    lacking = [part for part in SPLITS if part not in there]
    if lacking and not split:
        raise ManifestError(
            f"tiles lie in folders {' and '.join(there)}, but none in {' or '.join(lacking)}",
            expected="folders train, val (used to choose the weights) and test",
            next_step=f"move tiles of whole patients into {' and '.join(lacking)}/, or pass --split {shown(USUAL)} to "
            "draw a new split from all tiles",
        )
    if lacking:
        say(f"note: folders {' and '.join(there)} are not a complete split, so --split {split} is drawn from all tiles")
        return [""] * len(found.pairs)
    parts: dict[str, str] = {}
    for group, part in zip(found.groups, found.splits, strict=True):
        if group and parts.setdefault(group, part) != part:
            raise ManifestError(
                f"group {group!r} has tiles in the folders {parts[group]} and {part}",
                expected="all tiles of a patient or slide in one split",
                next_step="move them into one folder, or correct --groups",
            )
    if split:
        say(
            f"note: the folders train, val and test are the split; --split {split} is not used (to draw another "
            "split, run fmcache data split)"
        )
    return found.splits


def _squared(
    found: FolderPairs, made: Squares, manifest: Path, wish: SquareRequest, asked: str
) -> tuple[FolderPairs, FolderDataset]:
    """Return the squares as pairs, with the groups and splits of their source images, and the dataset of squares."""
    groups = found.groups
    if wish.way == "tile" and asked != NO_GROUPS:  # squares of one image show one piece of tissue
        groups = [group or pair.id for group, pair in zip(groups, found.pairs, strict=True)]
    root = wish.into.resolve()
    there = found._replace(
        pairs=made.pairs,
        groups=[groups[i] for i in made.sources],
        splits=[found.splits[i] for i in made.sources],
        root=root,
    )
    return there, msgspec.structs.replace(made.dataset, root=_listed(root, manifest))


def _listed(root: Path, manifest: Path) -> str:
    return os.path.relpath(root, manifest.parent.resolve())


def check_flags(manifest: Path, name: str, split: str, replace: bool) -> list[int] | None:
    """Check the name and the split before anything is read or written; return the sizes of the split.

    Raises
    ------
    ManifestError, SpecError
        When the name or the sizes are not valid, or the manifest cannot be read or already lists the name.
    """
    check_name(manifest, name, replace)
    return split_sizes(split)


def _rule(
    root: str,
    *,
    labels: str,
    ignore: str,
    mpp: float | None,
    regions: bool,
    order: str,
    fill: str,
    skip: str,
    objects: str,
    class_property: str,
) -> FolderDataset | GeojsonDataset:
    """Return the dataset without its tiles."""
    found = parse_labels(labels, regions)
    if not regions:
        if order or fill != "ignore" or skip or objects or class_property:
            raise SpecError(
                "--order, --fill, --skip, --objects and --class-property work only with annotated regions",
                expected="a folder of GeoJSON files as --masks",
                next_step="leave these options out, or pass annotations as --masks",
            )
        return FolderDataset(labels=found, root=root, mpp=mpp, ignore_values=ignored_values(ignore, found))
    ignored = () if ignore == str(IGNORE) else parse_classes(ignore)  # the default is a mask value, not a class
    skipped = parse_classes(skip, "--skip")
    refuse_twice(found, ignored, skipped)
    return GeojsonDataset(
        labels=found,
        root=root,
        mpp=mpp,
        ignore_values=ignored,
        order=parse_order(order, found, ignored),
        fill=parse_fill(fill, found),
        skip=skipped,
        objects=parse_objects(objects),
        class_property=parse_property(class_property),
    )
