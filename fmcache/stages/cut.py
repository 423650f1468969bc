"""What `fmcache data cut` does: whole slides and their annotations -> tiles, masks, and their entry in the manifest."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from fmcache.errors import ManifestError, NoRoom, SpecError, TileError
from fmcache.identity import canonical_json, differences, sha256_file, whole_file
from fmcache.manifest import IGNORE, SPLITS, FolderDataset, Label, Manifest, Splits, TileEntry
from fmcache.stages.data import folder_entry, listed_root, split_sizes, write_entry
from fmcache.stages.progress import progress
from fmcache.tiles.annotations import class_counts, listed, read_annotations
from fmcache.tiles.choose import choose_even, deal_slides
from fmcache.tiles.regions import IGNORED, Regions, Rules, parse_rules
from fmcache.tiles.slides import Grid, Slide, opened, plan_grid, read_tile
from fmcache.tiles.splits import balanced_split

RULES, POSITIONS = "cut.json", "positions.csv"


class Wanted(NamedTuple):
    """What the user asks for; um/px as `mpp`, names and rules as `fmcache data cut --help` has them."""

    slides: Sequence[Path]
    annotations: Path
    into: Path
    mpp: float
    tile_px: int
    labels: str
    order: str = ""
    fill: str = IGNORED
    ignore: str = ""
    skip: str = ""
    min_share: float = 0.5
    tiles: int = 0
    split: str = "15/5/10"
    group_by: str = "slide"
    seed: int = 0
    mpp_of_slide: float | None = None


class Source(NamedTuple):
    """An open slide with its grid and regions."""

    slide: Slide
    grid: Grid
    regions: Regions
    annotations_sha256: str


class Spot(NamedTuple):
    """A tile of a grid: its slide's number, its place, and the shares of its pixels (labels, unannotated, ignored)."""

    source: int
    column: int
    row: int
    shares: npt.NDArray[np.float64]


class Plan(NamedTuple):
    """The tiles to cut, and which of them (by position) are in train, val and test."""

    spots: list[Spot]
    splits: list[list[int]]


def cut(manifest: Path, name: str, wanted: Wanted, replace: bool, say: Callable[[str], None] = print) -> str:
    """Cut annotated tiles out of slides, list them as a dataset, and return a line on what was added.

    Tiles that an interrupted cut by the same rules left in the folder are kept.

    Raises
    ------
    ExtraMissing
        When OpenSlide is not installed.
    TileError, SpecError, ManifestError, NoRoom
        When slides or annotations cannot be read or used, too few tiles are annotated, the folder holds other tiles,
        or the disk is too small.
    """
    sizes = split_sizes(wanted.split)
    if wanted.tiles and wanted.tiles < sum(sizes):
        raise SpecError(f"--tiles {wanted.tiles} is less than the split {wanted.split} needs", found=str(sum(sizes)))
    if manifest.exists() and name in Manifest(manifest).datasets and not replace:
        raise ManifestError(f"{manifest} lists a dataset {name!r} already", next_step="pass --replace, or another name")
    rules = parse_rules(wanted.labels, wanted.order, wanted.fill, wanted.ignore, wanted.skip)
    with ExitStack() as stack:
        sources = _sources(stack, wanted, rules, say)
        spots, cells = _annotated(sources, rules, wanted.min_share)
        plan = _plan(spots, sources, rules, wanted, sizes)
        _prepare(wanted, rules, sources, plan, replace)
        say(_forecast(plan, sources, cells, len(spots), wanted))
        entries, overlap = _write(wanted.into, name, plan, sources, rules)
    rule = FolderDataset(
        labels=rules.labels, tiles=(), splits=Splits((), (), ()), root=listed_root(wanted.into, manifest),
        mpp=wanted.mpp, ignore_values=(IGNORE,),
    )  # fmt: skip
    if wanted.group_by == "tile":
        entries = [msgspec.structs.replace(entry, group="") for entry in entries]
    parts: dict[str, list[str]] = {
        str(part): [entries[i].id for i in sorted(at)] for part, at in zip(SPLITS, plan.splits, strict=True)
    }
    write_entry(manifest, name, folder_entry(rule, entries, parts))
    return "\n".join([*_shares(plan, rules), f"{manifest}: {name} added, {len(entries)} tiles; {overlap}"])


def _sources(stack: ExitStack, wanted: Wanted, rules: Rules, say: Callable[[str], None]) -> list[Source]:
    """Open every slide and read its annotations; complain of all unknown classes at once."""
    sources: list[Source] = []
    found: Counter[str] = Counter()
    for path, annotated in _pairs(wanted):
        slide = stack.enter_context(opened(path, wanted.mpp_of_slide))
        grid = plan_grid(slide.size, slide.mpp, slide.downsamples, wanted.mpp, wanted.tile_px)
        if grid.window_px < grid.tile_px:
            say(
                f"note: {slide.name} has {slide.mpp:g} um/px; tiles of {wanted.mpp:g} um/px are enlarged and show no "
                "more than it does"
            )
        notes: Counter[str] = Counter()
        annotations = read_annotations(annotated, notes)
        if notes:
            say(f"note: {annotated}: {listed(notes)}")
        found += class_counts(annotations)
        sources.append(Source(slide, grid, Regions(annotations, rules), sha256_file(annotated)))
    unknown = Counter({c: n for c, n in found.items() if c not in rules.ids and c not in rules.skip})
    if unknown:
        raise TileError(
            f"annotations of classes that no label has: {listed(unknown)}",
            expected=", ".join([*rules.ids, *sorted(rules.skip)]),
            found=listed(found),
            next_step="add them to a label in --labels, to --ignore (no truth there) or to --skip (as if not drawn)",
        )
    return sources


def _pairs(wanted: Wanted) -> list[tuple[Path, Path]]:
    """Return each slide with its annotation file."""
    names = [path.stem for path in wanted.slides]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise SpecError(f"two slides are called {twice!r}", next_step="rename one: tiles are named after their slide")
    if not wanted.annotations.is_dir():
        if len(wanted.slides) != 1:
            raise SpecError(
                f"{wanted.annotations} is one file for {len(wanted.slides)} slides",
                expected="a folder that holds NAME.geojson for every slide NAME.*",
                next_step="pass the folder to --annotations",
            )
        return [(wanted.slides[0], wanted.annotations)]
    pairs = [(path, wanted.annotations / f"{path.stem}.geojson") for path in wanted.slides]
    if missing := [str(file) for _, file in pairs if not file.is_file()]:
        raise SpecError(
            f"{len(missing)} of {len(pairs)} slides have no annotations",
            expected="NAME.geojson for every slide NAME.*",
            found="missing: " + ", ".join(missing[:5]),
            next_step="export them from QuPath as GeoJSON, or leave those slides out",
        )
    return pairs


def _annotated(sources: Sequence[Source], rules: Rules, min_share: float) -> tuple[list[Spot], int]:
    """Return the tiles of which at least `min_share` carries a label, and how many tiles the grids have."""
    spots, cells, bare = [], 0, len(rules.labels)
    with progress("looking for annotated tiles", len(sources), "slides") as tick:
        for i, source in enumerate(sources):
            shares = source.regions.counts(source.grid)
            cells += shares.shape[0] * shares.shape[1]
            enough = shares[..., :bare].sum(axis=-1) >= max(min_share, 1e-9)
            for row, column in np.argwhere(enough).tolist():
                spots.append(Spot(i, column, row, shares[row, column]))
            tick(1)
    return spots, cells


def _plan(spots: list[Spot], sources: Sequence[Source], rules: Rules, wanted: Wanted, sizes: list[int]) -> Plan:
    """Choose tiles and deal them to splits."""
    total = wanted.tiles or sum(sizes)
    if len(spots) < total:
        raise SpecError(
            f"{total} tiles are wanted",
            found=f"{len(spots)} tiles of {wanted.tile_px} px at {wanted.mpp:g} um/px that are annotated by "
            f"{100 * wanted.min_share:.0f} % or more",
            next_step="choose smaller --split (and --tiles), --min-share or --tile-px, or annotate more",
        )
    pixels = np.stack([_labelled(spot, rules) for spot in spots])
    slides = np.array([spot.source for spot in spots])
    if wanted.group_by == "tile":
        chosen = [spots[i] for i in choose_even(pixels, slides, total)]
        ids = [_tile_id(spot, sources) for spot in chosen]
        counts = np.rint(np.stack([_labelled(spot, rules) for spot in chosen]) * wanted.tile_px**2).astype(np.int64)
        found = balanced_split(ids, [""] * len(ids), counts, sizes, wanted.seed)
        return Plan(chosen, [list(part) for part in found.members])
    quotas = [size + (total - sum(sizes)) * size // sum(sizes) for size in sizes]
    quotas[0] += total - sum(quotas)
    chosen, splits = [], []
    for members, quota, size in zip(deal_slides(pixels, slides, quotas, wanted.seed), quotas, sizes, strict=True):
        at = np.flatnonzero(np.isin(slides, members))
        # the first tiles chosen are the best balanced: they make the split, what is cut beyond them is spare
        splits.append(list(range(len(chosen), len(chosen) + size)))
        chosen += [spots[at[i]] for i in choose_even(pixels[at], slides[at], quota)]
    return Plan(chosen, splits)


def _labelled(spot: Spot, rules: Rules) -> npt.NDArray[np.float64]:
    """Return the share of each label in a tile, unannotated pixels counted as the fill label if there is one."""
    shares = spot.shares[: len(rules.labels)].copy()
    if rules.fill != IGNORE:
        shares[rules.fill] += spot.shares[len(rules.labels)]
    return shares


def _tile_id(spot: Spot, sources: Sequence[Source]) -> str:
    slide, grid, *_ = sources[spot.source]
    x, y = grid.corner(spot.column, spot.row)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", slide.name).lstrip("._-")
    return f"{name}_x{x:06d}_y{y:06d}"


def _prepare(wanted: Wanted, rules: Rules, sources: Sequence[Source], plan: Plan, replace: bool) -> None:
    """Make the folder ready: refuse files of others, drop tiles cut by other rules, write the rules and positions."""
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
    missing = [_tile_id(spot, sources) for spot in plan.spots]
    missing = [tile for tile in missing if not all((folder / f"{tile}.png").exists() for folder in folders)]
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


def _identity(wanted: Wanted, rules: Rules, sources: Sequence[Source]) -> dict[str, Any]:
    """Return everything that can change a pixel of a tile or mask."""
    return {
        "tile_px": wanted.tile_px,
        "mpp": wanted.mpp,
        "slides": {s.slide.name: {"key": s.slide.key, "mpp": s.slide.mpp} for s in sources},
        "annotations": {s.slide.name: s.annotations_sha256 for s in sources},
        "labels": [label.name for label in rules.labels],
        "classes": dict(rules.ids),
        "skip": sorted(rules.skip),
        "order": list(rules.order),
        "fill": rules.fill,
    }


def _positions(plan: Plan, sources: Sequence[Source], rules: Rules) -> str:
    """Return the CSV of tiles: place in pixels of level 0, um/px, shares as counted on a lattice."""
    split_of = {i: part for part, at in zip(SPLITS, plan.splits, strict=True) for i in at}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    shares = [f"share_{label.name}" for label in rules.labels]
    rows.writerow(
        ["tile", "slide", "split", "x", "y", "edge_px", "level", "mpp", *shares, "share_unannotated", "share_ignored"]
    )
    for i, spot in enumerate(plan.spots):
        slide, grid, *_ = sources[spot.source]
        x, y = grid.corner(spot.column, spot.row)
        place = [x, y, f"{grid.step_px:.6g}", grid.level, f"{grid.mpp:.6g}"]
        rows.writerow(
            [_tile_id(spot, sources), slide.name, split_of.get(i, ""), *place, *(f"{s:.4f}" for s in spot.shares)]
        )
    return text.getvalue()


def _most_bytes(tile_px: int) -> int:
    return 3 * tile_px**2 + tile_px**2 // 8  # PNG of tissue is hardly smaller than its pixels; masks are small


def _forecast(plan: Plan, sources: Sequence[Source], cells: int, annotated: int, wanted: Wanted) -> str:
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


def _write(into: Path, name: str, plan: Plan, sources: Sequence[Source], rules: Rules) -> tuple[list[TileEntry], str]:
    """Write the tiles that are not there, each file whole; return the entries, and a line on overlapping labels."""
    entries, overlaps = [], []
    with progress(f"cutting {name}", len(plan.spots), "tiles") as tick:
        for spot in plan.spots:
            slide, grid, regions, _ = sources[spot.source]
            tile = _tile_id(spot, sources)
            image, mask = f"images/{tile}.png", f"masks/{tile}.png"
            if not ((into / image).exists() and (into / mask).exists()):
                drawn = regions.mask(grid, spot.column, spot.row)
                overlaps.append(drawn.overlap)
                _save(into / image, Image.fromarray(read_tile(slide, grid, spot.column, spot.row)))
                _save(into / mask, _palette(drawn.mask, rules.labels))
            hashes = sha256_file(into / image), sha256_file(into / mask)
            entries.append(TileEntry(tile, slide.name, image, mask, *hashes))
            tick(1)
    if not overlaps:
        return entries, "all were there already"
    return entries, f"{100 * float(np.mean(overlaps)):.1f} % of pixels lie under several labels"


def _palette(mask: npt.NDArray[np.uint8], labels: Sequence[Label]) -> Image.Image:
    """Return a palette image: the value is the label id, the colour that of the label, so that viewers show it."""
    picture = Image.fromarray(mask).convert("P")
    colours = np.full((IGNORE + 1, 3), 128, dtype=np.uint8)
    colours[: len(labels)] = [list(bytes.fromhex(label.colour[1:])) for label in labels]
    picture.putpalette(colours.tobytes())
    return picture


def _save(path: Path, picture: Image.Image) -> None:
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def _shares(plan: Plan, rules: Rules) -> Iterator[str]:
    """Yield a line on each split."""
    for part, at in zip(SPLITS, plan.splits, strict=True):
        shares = np.sum([_labelled(plan.spots[i], rules) for i in at], axis=0)
        shown = ", ".join(
            f"{label.name} {100 * share:.0f} %"
            for label, share in zip(rules.labels, shares / max(shares.sum(), 1e-9), strict=True)
        )
        slides = len({plan.spots[i].source for i in at})
        yield f"{part}: {len(at)} tiles of {slides} slides, {shown}"
