"""What `fmcache data add` does: a folder of images and masks -> an entry of the manifest, hashed and split."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from fmcache.errors import ManifestError, SpecError
from fmcache.manifest import IGNORE, SPLITS, FolderDataset, GeojsonDataset, Manifest
from fmcache.stages.entries import folder_entry, write_entry
from fmcache.stages.progress import progress
from fmcache.stages.squares import Wish, check_square, make_squares
from fmcache.tiles.folder import Found, find_tiles
from fmcache.tiles.groups import group_of, likely_groups
from fmcache.tiles.labels import ignored_values, parse_classes, parse_labels, parse_order
from fmcache.tiles.listing import list_tiles
from fmcache.tiles.splits import balanced_split
from fmcache.tiles.squares import image_sizes, shape_note

DEFAULT_SPLIT = "15/5/10"


class FileRules(NamedTuple):
    """How files become tiles.

    `missing` is ``refuse`` or ``skip``: images without masks, and the reverse. `square` is empty, ``crop``, ``tile`` or
    ``pad``, with `tile_px` for ``tile``; squares are written to `into`, by default NAME-squares beside the manifest.
    `other` are files that are no images of tiles, whatever their names.
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
    labels: str,
    ignore: str,
    mpp: float | None,
    groups: str,
    split: str,
    seed: int,
    replace: bool,
    order: str = "",
    fill: str = "ignore",
    files: FileRules = AS_THEY_ARE,
    say: Callable[[str], None] = print,
) -> str:
    """List a folder of images and masks in the manifest (made when there is none); return a line on what was added.

    Every image and mask is read and hashed. The split is that of folders called train, val and test where tiles lie in
    such; else it is balanced by label share and respects groups. Comments in the manifest survive. `say` is told, line
    by line, what is worth knowing.

    Raises
    ------
    ManifestError, SpecError, TileError
        When files have no partner or cannot be read, a mask holds unknown values, or the split cannot be made.
    """
    sizes = split_sizes(split or DEFAULT_SPLIT)
    if manifest.exists() and not replace:
        listed = Manifest(manifest)
        if name in {**listed.datasets, **listed.unfetched}:
            raise ManifestError(
                f"{manifest} lists a dataset {name!r} already", next_step="pass --replace, or another name"
            )
    check_mpp(mpp)
    check_square(files.square, files.tile_px, files.into)
    found = _found(images, masks, groups, files, say)
    found = found._replace(splits=_folder_splits(found, split, say))
    rule = _rule(_listed(found.root, manifest), labels, ignore, mpp, found.regions, order, fill)
    if files.square:
        into = files.into or manifest.parent / f"{name}-squares"
        found, rule = _squared(found, rule, manifest, Wish(files.square, files.tile_px, into, replace), say)
    with progress(f"reading {name}", len(found.pairs), "tiles") as tick:
        entries, pixels = list_tiles(rule, found.pairs, found.groups, found.root, tick)
    if any(found.splits):
        splits = {str(p): [e.id for e, its in zip(entries, found.splits, strict=True) if its == p] for p in SPLITS}
        write_entry(manifest, name, folder_entry(rule, list(entries), splits))
        counts = "/".join(str(len(ids)) for ids in splits.values())
        return f"{manifest}: {name} added, {len(entries)} tiles, split {counts} as in their folders"
    chosen = balanced_split([e.id for e in entries], [e.group for e in entries], pixels, sizes, seed)
    splits = {str(part): [entries[i].id for i in at] for part, at in zip(SPLITS, chosen.members, strict=True)}
    write_entry(manifest, name, folder_entry(rule, list(entries), splits))
    spare = len(entries) - sum(sizes)
    return (
        f"{manifest}: {name} added, {len(entries)} tiles, split {split or DEFAULT_SPLIT}"
        + (f" ({spare} in no split)" if spare else "")
        + f"; label shares of a split are at most {100 * chosen.off:.1f} points off those of all tiles"
    )


def check_mpp(mpp: float | None) -> None:
    """Raise SpecError when um/px is given and is no positive, finite number."""
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise SpecError(
            f"--mpp {mpp:g} is no size of a pixel",
            expected="um per pixel, above 0, such as 0.5; without the flag it is unknown",
            next_step="correct it, or leave it out",
        )


def _found(images: Path, masks: Path, groups: str, files: FileRules, say: Callable[[str], None]) -> Found:
    """Return pairs with their groups, and tell what is worth knowing before anything long begins."""
    found = find_tiles(images, masks, files.missing == "skip", files.other)
    notes = list(found.notes)
    if not files.square and (note := shape_note(image_sizes([pair.image for pair in found.pairs]))):
        notes.append(note)
    if groups:
        found = found._replace(groups=group_of(groups, found.pairs, lambda note: notes.append(note)))
    elif not any(found.groups) and not any(found.splits) and (hint := likely_groups(found.pairs)):
        notes.append(hint)
    for note in notes:
        say(f"note: {note}")
    return found


def _folder_splits(found: Found, split: str, say: Callable[[str], None]) -> list[str]:
    """Return the split of each tile that folders say, or nothing for each when one is to be drawn."""
    there = [part for part in SPLITS if part in found.splits]
    if not there:
        return [""] * len(found.pairs)
    lacking = [part for part in SPLITS if part not in there]
    if lacking and not split:
        raise ManifestError(
            f"tiles lie in folders {' and '.join(there)}, but none in {' or '.join(lacking)}",
            expected="train, val (weights are chosen by it) and test",
            next_step=f"move tiles of whole patients into {' and '.join(lacking)}/, or pass --split {DEFAULT_SPLIT} to "
            "draw a new split from all tiles",
        )
    if lacking:
        say(f"note: folders {' and '.join(there)} are no whole split: --split {split} is drawn from all tiles")
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
            f"note: the folders train, val and test are the split; --split {split} is not used (fmcache data split "
            "draws another)"
        )
    return found.splits


def _squared(
    found: Found, rule: FolderDataset | GeojsonDataset, manifest: Path, wish: Wish, say: Callable[[str], None]
) -> tuple[Found, FolderDataset]:
    """Return squares in place of the images, with the groups and splits of these, and the dataset that reads them."""
    made = make_squares(rule, found.pairs, wish, lambda line: say(f"note: {line}"))
    groups = found.groups
    if wish.way == "tile":  # squares of one image show one piece of tissue
        groups = [group or pair.id for group, pair in zip(groups, found.pairs, strict=True)]
    root = wish.into.resolve()
    squares = found._replace(
        pairs=made.pairs,
        groups=[groups[i] for i in made.sources],
        splits=[found.splits[i] for i in made.sources],
        root=root,
    )
    return squares, msgspec.structs.replace(made.dataset, root=_listed(root, manifest))


def _listed(root: Path, manifest: Path) -> str:
    return os.path.relpath(root, manifest.parent.resolve())


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
