"""What `fmcache data add` does: a folder of images and masks -> an entry of the manifest, hashed and split."""

from __future__ import annotations

import os
from pathlib import Path

from fmcache.errors import SpecError
from fmcache.manifest import IGNORE, SPLITS, FolderDataset, GeojsonDataset
from fmcache.stages.entries import check_dataset, check_name, folder_entry, write_entry
from fmcache.stages.progress import progress
from fmcache.tiles.folder import find_pairs, group_of, holds_regions
from fmcache.tiles.labels import ignored_values, parse_classes, parse_labels, parse_order
from fmcache.tiles.listing import list_tiles
from fmcache.tiles.remarks import lacking_labels, split_line
from fmcache.tiles.sizes import split_sizes
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

    Every image and mask is read and hashed; the split is balanced by label share and respects groups. An empty `split`
    is 15/5/10, scaled to fewer tiles or to whole groups. Comments in the manifest survive.

    Raises
    ------
    ManifestError, SpecError, TileError
        When files have no partner or cannot be read, a mask holds unknown values, or the split cannot be made.
    """
    sizes = check_flags(manifest, name, split, replace)
    pairs = find_pairs(images, masks)
    root = Path(os.path.commonpath([images.resolve(), masks.resolve()]))
    listed_root = os.path.relpath(root, manifest.parent.resolve())
    rule = _rule(listed_root, labels, ignore, mpp, holds_regions(masks), order, fill)
    check_dataset(name, rule)
    with progress(f"reading {name}", len(pairs), "tiles") as tick:
        entries, pixels = list_tiles(rule, pairs, group_of(groups, pairs), root, tick)
    chosen = balanced_split([e.id for e in entries], [e.group for e in entries], pixels, sizes, seed)
    splits = {str(part): [entries[i].id for i in at] for part, at in zip(SPLITS, chosen.members, strict=True)}
    write_entry(manifest, name, folder_entry(rule, list(entries), splits), replace)
    lacking = lacking_labels(chosen.members, pixels, rule.label_names, [e.group for e in entries])
    added = f"{manifest}: {name} added, {len(entries)} tiles: {split_line(chosen, len(entries), sizes)}"
    return "\n".join([added, *(f"note: {line}" for line in lacking)])


def check_flags(manifest: Path, name: str, split: str, replace: bool) -> list[int] | None:
    """Refuse what the manifest could not take before anything is read or written; return the sizes of the split.

    Raises
    ------
    ManifestError, SpecError
        When the name or the sizes cannot be, or the manifest cannot be read or lists the name already.
    """
    check_name(manifest, name, replace)
    return split_sizes(split)


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
