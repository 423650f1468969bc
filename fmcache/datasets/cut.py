"""The command `fmcache data cut`: whole slides and their annotations -> tiles, masks, and an entry in the manifest."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from fmcache.datasets.absent_labels import absent_classes
from fmcache.datasets.cut_search import (
    AnnotatedSlide,
    CutPlan,
    CutRequest,
    TileSite,
    choose_tiles,
    find_annotated,
    find_sources,
    label_shares,
    tile_id,
)
from fmcache.datasets.entries import check_dataset, check_name, folder_entry, write_entry
from fmcache.datasets.region_flags import parse_rules
from fmcache.datasets.split_remarks import lacking_labels, sizes_line
from fmcache.datasets.split_sizes import split_sizes
from fmcache.errors import ManifestError, NoRoom, SpecError
from fmcache.identity import canonical_json, differences, sha256_file, whole_file
from fmcache.manifest import IGNORE, SPLITS, FolderDataset, Label, TileEntry
from fmcache.runtime.progress import progress
from fmcache.slides.regions import Rules
from fmcache.slides.slide import opened, read_slide_tile

RULES, POSITIONS = "cut.json", "positions.csv"


def cut(manifest: Path, name: str, wanted: CutRequest, replace: bool, say: Callable[[str], None] = print) -> str:
    """Cut annotated tiles out of slides, add them as a dataset, and return lines that describe what was added.

    Tiles in the folder from an interrupted cut by the same rules are kept.

    Raises
    ------
    ExtraMissing
        When OpenSlide is not installed.
    TileError, SpecError, ManifestError, NoRoom
        When slides or annotations cannot be read or used, too few tiles are annotated, the folder holds other tiles,
        or the disk is too small.
    """
    sizes = split_sizes(wanted.split)
    if wanted.mpp_of_slide is not None and not 0 < wanted.mpp_of_slide < math.inf:
        raise SpecError(
            f"--mpp-of-slide {wanted.mpp_of_slide:g}",
            expected="um per pixel above 0, such as 0.25",
            next_step="correct --mpp-of-slide",
        )
    if wanted.tiles and wanted.tiles < (least := sum(sizes or (1, 1, 1))):
        problem = f"--tiles {wanted.tiles} is less than the split {wanted.split or '1/1/1'} needs"
        raise SpecError(problem, expected=f"{least} or more", next_step="pass more --tiles, or a smaller --split")
    check_name(manifest, name, replace)
    rules = parse_rules(
        wanted.labels,
        order=wanted.order,
        fill=wanted.fill,
        ignore=wanted.ignore,
        skip=wanted.skip,
        objects=wanted.objects,
        class_property=wanted.class_property,
    )
    rule = FolderDataset(
        labels=rules.labels,
        root=os.path.relpath(wanted.into, manifest.parent),
        mpp=wanted.mpp,
        ignore_values=(IGNORE,),
    )
    check_dataset(name, rule)
    sources = find_sources(wanted, rules, say)
    spots, cells = find_annotated(sources, rules, wanted.min_share)
    plan = choose_tiles(spots, sources, rules, wanted, sizes)
    _refuse_absent(plan, sources, rules)
    _prepare(wanted, rules, sources, plan, replace)
    say(_forecast(plan, sources, cells, len(spots), wanted))
    entries, overlap = _write(wanted.into, name, plan, sources, rules)
    if wanted.group_by == "tile":
        entries = [msgspec.structs.replace(entry, group="") for entry in entries]
    parts: dict[str, list[str]] = {
        str(part): [entries[i].id for i in sorted(at)] for part, at in zip(SPLITS, plan.splits, strict=True)
    }
    write_entry(manifest, name, folder_entry(rule, entries, parts), replace)
    sizes_shown = sizes_line(plan.splits, len(entries), sizes)
    added = f"{manifest}: {name} added, {len(entries)} tiles: {sizes_shown}; {100 * overlap:.1f} % of pixels lie under "
    notes = [f"note: {line}" for line in _lacking(plan, spots, sources, rules, wanted.group_by == "tile")]
    return "\n".join([*_shares(plan, rules), f"{added}several labels", *notes])


def _lacking(
    plan: CutPlan, spots: Sequence[TileSite], sources: Sequence[AnnotatedSlide], rules: Rules, parted: bool
) -> list[str]:
    """Return a sentence on each label that a split lacks, with the reason.

    The labels are counted in all annotated tiles, chosen or not.
    """
    places = {spot[:3]: i for i, spot in enumerate(spots)}
    members = [[places[plan.spots[i][:3]] for i in part] for part in plan.splits]
    shares = np.stack([label_shares(spot, rules) for spot in spots])
    groups = ["" if parted else sources[spot.source].group for spot in spots]
    return lacking_labels(members, shares, [label.name for label in rules.labels], groups)


def _refuse_absent(plan: CutPlan, sources: Sequence[AnnotatedSlide], rules: Rules) -> None:
    """Refuse labels that occur in none of the chosen tiles, before anything is cut."""
    if np.sum([label_shares(spot, rules) for spot in plan.spots], axis=0).all():
        return
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)  # exact counts: the shares are only sampled on a lattice
    for spot in plan.spots:
        source = sources[spot.source]
        drawn = source.regions.mask(source.grid, spot.column, spot.row)
        pixels += np.bincount(drawn.mask.ravel(), minlength=IGNORE + 1)
    classes = sum((source.regions.classes for source in sources), Counter[str]())
    labels = [
        Label(label.name, label.colour, tuple(name for name, id_ in rules.ids.items() if id_ == i))
        for i, label in enumerate(rules.labels)
    ]
    if absent := absent_classes(labels, pixels[: len(labels)], len(plan.spots), classes):
        raise absent


def _prepare(wanted: CutRequest, rules: Rules, sources: Sequence[AnnotatedSlide], plan: CutPlan, replace: bool) -> None:
    """Prepare the folder: refuse unrelated files, delete tiles cut by other rules, write the rules and positions."""
    identity = _identity(wanted, rules, sources)
    file, folders = wanted.into / RULES, [wanted.into / "images", wanted.into / "masks"]
    if file.exists():
        changed = differences(msgspec.json.decode(file.read_bytes()), identity)
        if changed and not replace:
            raise ManifestError(
                f"{wanted.into} holds tiles that were cut by other rules",
                found="; ".join(changed[:5]),
                next_step="choose another folder with --into, or pass --replace",
            )
        if changed:
            for folder in folders:
                for tile in folder.glob("*_x*_y*.png"):
                    tile.unlink()
    elif any(folder.exists() and any(folder.iterdir()) for folder in folders):
        raise ManifestError(f"{wanted.into} holds other images", next_step="choose an empty folder with --into")
    tiles = [tile_id(spot, sources) for spot in plan.spots]
    missing = [tile for tile in tiles if not (folders[0] / f"{tile}.png").exists()]
    wanted.into.mkdir(parents=True, exist_ok=True)
    needed, free = len(missing) * _most_bytes(wanted.tile_px), shutil.disk_usage(wanted.into).free
    if needed > free:
        raise NoRoom(
            f"{wanted.into}: the disk is too small for {len(missing)} tiles",
            expected=f"{needed / 1e9:.2f} GB at most",
            found=f"{free / 1e9:.2f} GB free",
            next_step="free space, or choose another folder with --into",
        )
    with whole_file(file) as out:
        out.write(msgspec.json.format(canonical_json(identity), indent=2))
    with whole_file(wanted.into / POSITIONS) as out:
        out.write(_positions(plan, sources, rules).encode())


def _identity(wanted: CutRequest, rules: Rules, sources: Sequence[AnnotatedSlide]) -> dict[str, Any]:
    """Return every setting that can change a pixel of a tile or mask. Settings added later are included only if set."""
    later = {"objects": sorted(rules.selection.objects), "class_property": rules.selection.class_property}
    return {
        "tile_px": wanted.tile_px,
        "mpp": wanted.mpp,
        "slides": {s.name: {"key": s.slide.key, "mpp": s.slide.mpp} for s in sources},
        "annotations": {s.name: s.annotations_sha256 for s in sources},
        "labels": [label.name for label in rules.labels],
        "classes": dict(rules.ids),
        "skip": sorted(rules.selection.skip),
        "order": list(rules.order),
        "fill": rules.fill,
    } | {key: value for key, value in later.items() if value}


def _positions(plan: CutPlan, sources: Sequence[AnnotatedSlide], rules: Rules) -> str:
    """Return the CSV of tiles: position in level 0 pixels as in QuPath, um/px, and shares sampled on a lattice."""
    split_of = {i: part for part, at in zip(SPLITS, plan.splits, strict=True) for i in at}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    shares = [f"share_{label.name}" for label in rules.labels]
    rows.writerow(
        ["tile", "slide", "split", "x", "y", "edge_px", "level", "mpp", *shares, "share_unannotated", "share_ignored"]
    )
    for i, spot in enumerate(plan.spots):
        name, _, _, grid, *_ = sources[spot.source]
        x, y = grid.corner(spot.column, spot.row)
        place = [x, y, f"{grid.step_px:.6g}", grid.level, f"{grid.mpp:.6g}"]
        rows.writerow([tile_id(spot, sources), name, split_of.get(i, ""), *place, *(f"{s:.4f}" for s in spot.shares)])
    return text.getvalue()


def _most_bytes(tile_px: int) -> int:
    return 3 * tile_px**2 + tile_px**2 // 8  # PNG of tissue is hardly smaller than its pixels; masks are small


def _forecast(plan: CutPlan, sources: Sequence[AnnotatedSlide], cells: int, annotated: int, wanted: CutRequest) -> str:
    counted = Counter(spot.source for spot in plan.spots)
    most = len(plan.spots) * _most_bytes(wanted.tile_px)
    lines = [
        f"cutting {len(plan.spots)} tiles of {wanted.tile_px} px at {wanted.mpp:g} um/px from {len(counted)} slides "
        f"({cells} on the grid, {annotated} annotated by {100 * wanted.min_share:.0f} % or more), at most "
        f"{most / 1e6:.0f} MB below {wanted.into}"
    ]
    if wanted.group_by == "tile":
        lines.append("WARNING: tiles of one slide are in several splits; scores look better than on a new slide")
    return "\n".join(lines)


def _write(
    into: Path, name: str, plan: CutPlan, sources: Sequence[AnnotatedSlide], rules: Rules
) -> tuple[list[TileEntry], float]:
    """Write all masks and the missing images, each file atomically; return entries and the share under two labels.

    Slides are opened one after the other, each once, because every open slide has its own cache in memory.
    """
    entries: dict[int, TileEntry] = {}
    overlap = 0.0
    with progress(f"cutting {name}", len(plan.spots), "tiles") as tick:
        for i, source in enumerate(sources):
            with opened(source.slide.path) as handle:
                for at in [at for at, spot in enumerate(plan.spots) if spot.source == i]:
                    spot = plan.spots[at]
                    tile = tile_id(spot, sources)
                    image, mask = f"images/{tile}.png", f"masks/{tile}.png"
                    if not (into / image).exists():
                        pixels = read_slide_tile(handle, source.slide, source.grid, spot.column, spot.row)
                        _save(into / image, Image.fromarray(pixels))
                    drawn = source.regions.mask(source.grid, spot.column, spot.row)
                    overlap += drawn.overlap / len(plan.spots)
                    _save(into / mask, _palette(drawn.mask, rules.labels))
                    hashes = sha256_file(into / image), sha256_file(into / mask)
                    entries[at] = TileEntry(tile, source.group, image, mask, *hashes)
                    tick(1)
    return [entries[at] for at in range(len(plan.spots))], overlap


def _palette(mask: npt.NDArray[np.uint8], labels: Sequence[Label]) -> Image.Image:
    """Return a palette image: the value is the label id, and viewers show the label's colour."""
    picture = Image.fromarray(mask).convert("P")
    colours = np.full((IGNORE + 1, 3), 128, dtype=np.uint8)
    colours[: len(labels)] = [list(bytes.fromhex(label.colour[1:])) for label in labels]
    picture.putpalette(colours.tobytes())
    return picture


def _save(path: Path, picture: Image.Image) -> None:
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def _shares(plan: CutPlan, rules: Rules) -> Iterator[str]:
    """Yield a line on each split."""
    for part, at in zip(SPLITS, plan.splits, strict=True):
        shares = np.sum([label_shares(plan.spots[i], rules) for i in at], axis=0)
        shown = ", ".join(
            f"{label.name} {100 * share:.0f} %"
            for label, share in zip(rules.labels, shares / max(shares.sum(), 1e-9), strict=True)
        )
        slides = len({plan.spots[i].source for i in at})
        yield f"{part}: {len(at)} tiles of {slides} slides, {shown}"
