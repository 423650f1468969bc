"""Find the tiles to cut: open slides and annotations, find annotated tiles, choose tiles, and assign them to splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.datasets.balance import balanced_split
from fmcache.datasets.cut_choice import choose_even, deal_groups, largest_sizes
from fmcache.datasets.groups import group_of
from fmcache.datasets.label_flags import IGNORED
from fmcache.datasets.slide_pairs import pair_slides
from fmcache.datasets.split_sizes import USUAL, scaled, shown
from fmcache.errors import SpecError, TileError, some
from fmcache.identity import sha256_file
from fmcache.manifest import IGNORE, SPLITS
from fmcache.runtime.progress import progress
from fmcache.slides.regions import Regions, Rules
from fmcache.slides.slide import Slide, SlideGrid, describe, plan_grid
from fmcache.tiles.annotation_notes import refuse_unknown_classes, sentences, unused_classes
from fmcache.tiles.annotations import Annotation, read_annotations

EDGE_PX = 2  # tolerance beyond an edge, for hand-drawn outlines and rounding


class CutRequest(NamedTuple):
    """What the user requests: `mpp` in um/px; names and rules as in `fmcache data cut --help`."""

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
    split: str = ""
    groups: str = ""
    group_by: str = "slide"
    seed: int = 0
    mpp_of_slide: float | None = None
    objects: str = ""
    class_property: str = ""


class AnnotatedSlide(NamedTuple):
    """A slide with its group (its patient, or the slide itself), grid and regions."""

    name: str
    slide: Slide
    group: str
    grid: SlideGrid
    regions: Regions
    annotations_sha256: str


class TileSite(NamedTuple):
    """A tile of a grid: number of its slide, position, and shares of its pixels (labels, unannotated, ignored)."""

    source: int
    column: int
    row: int
    shares: npt.NDArray[np.float64]


class CutPlan(NamedTuple):
    """The tiles to cut, and the positions in this list of those in train, val and test."""

    spots: list[TileSite]
    splits: list[list[int]]


def find_sources(wanted: CutRequest, rules: Rules, say: Callable[[str], None]) -> list[AnnotatedSlide]:
    """Return every slide with its annotations; unknown classes of all slides are reported in one error."""
    sources: list[AnnotatedSlide] = []
    found: Counter[tuple[str, str]] = Counter()
    all_notes: Counter[str] = Counter()
    pairs, patients = pair_slides(wanted.slides, wanted.annotations)
    if not wanted.groups:
        _report_folders(wanted.slides, patients, say)
    groups = group_of(wanted.groups, pairs) if wanted.groups else patients
    for (name, path, drawn), group in zip(pairs, groups, strict=True):
        slide = describe(path, wanted.mpp_of_slide)
        if twin := next((source.name for source in sources if source.slide.key == slide.key), ""):
            raise SpecError(
                f"{path} is the same slide as {twin}",
                found="the same quick hash",
                next_step="leave one of them out; else the same tissue may be in training and in test",
            )
        grid = plan_grid(slide.size, slide.mpp, slide.downsamples, wanted.mpp, wanted.tile_px)
        if grid.window_px < grid.tile_px:
            say(
                f"note: {slide.name} has {slide.mpp:g} um/px; tiles of {wanted.mpp:g} um/px are enlarged and show no "
                "more detail than the slide"
            )
        notes: Counter[str] = Counter()
        annotations = read_annotations(drawn, notes, rules.selection)
        for line in sentences(notes):
            say(f"note: {drawn}: {line}")
        all_notes += notes
        _check_place(drawn, annotations, slide, say)
        found.update((annotation.name, annotation.kind) for annotation in annotations)
        sources.append(
            AnnotatedSlide(name, slide, group or name, grid, Regions(annotations, rules), sha256_file(drawn))
        )
    refuse_unknown_classes(found, rules.ids, "", [pair.mask for pair in pairs], rules.selection)
    named = {"--labels or --ignore": rules.ids, "--skip": rules.selection.skip}
    for line in unused_classes(named, {name for name, _ in found}, all_notes):
        say(f"note: {line}")
    return sources


def _report_folders(slides: Sequence[Path], patients: Sequence[str], say: Callable[[str], None]) -> None:
    """Report that folders are used as patients, or that they may be patients but are not used as such."""
    folders = sorted({path.parent.name for path in slides})
    if any(patients):
        named = some(sorted(set(patients)))
        say(f"note: slides of the same name differ by folder, so folders are used as patients: {named}")
    elif 1 < len(folders) < len(slides):
        say(
            f"note: slides lie in several folders ({some(folders)}), but each slide counts as a separate patient; if "
            "folders are patients, pass --groups with a CSV (columns tile,group)"
        )


def _check_place(path: Path, annotations: Sequence[Annotation], slide: Slide, say: Callable[[str], None]) -> None:
    """Refuse annotations that all lie outside the slide, and report when only some reach beyond it.

    Such annotations belong to another image, or were made at another scale.
    """
    if not annotations:
        say(f"note: {path} holds no regions: no tile is cut from {slide.name}")
        return
    edges = np.array([annotation.geometry.bounds for annotation in annotations]).reshape(-1, 4)
    width, height = slide.size
    beside = (edges[:, 0] >= width) | (edges[:, 1] >= height) | (edges[:, 2] <= 0) | (edges[:, 3] <= 0)
    beyond = (edges[:, :2] < -EDGE_PX).any(axis=1) | (edges[:, 2] > width + EDGE_PX) | (edges[:, 3] > height + EDGE_PX)
    size = f"{slide.name} has {width} x {height} px"
    if beside.all():
        raise TileError(
            f"{path}: no annotation lies on the slide",
            expected=f"regions in pixels of the slide at its full size; {size}",
            found=f"{len(annotations)} regions, the first from {edges[0, :2].tolist()} on",
            next_step="export the annotations of exactly this slide",
        )
    if beyond.any():
        say(f"note: {path}: {beyond.sum()} of {len(annotations)} regions reach beyond the slide ({size})")


def find_annotated(sources: Sequence[AnnotatedSlide], rules: Rules, min_share: float) -> tuple[list[TileSite], int]:
    """Return the tiles with labels on at least `min_share` of their pixels, and the number of tiles on all grids."""
    spots, cells, bare = [], 0, len(rules.labels)
    with progress("looking for annotated tiles", sum(s.grid.rows for s in sources), "rows") as tick:
        for i, source in enumerate(sources):
            shares = source.regions.counts(source.grid, tick)
            cells += shares.shape[0] * shares.shape[1]
            enough = shares[..., :bare].sum(axis=-1) >= max(min_share, 1e-9)
            for row, column in np.argwhere(enough).tolist():
                spots.append(TileSite(i, column, row, shares[row, column]))
    return spots, cells


def choose_tiles(
    spots: list[TileSite], sources: Sequence[AnnotatedSlide], rules: Rules, wanted: CutRequest, sizes: list[int] | None
) -> CutPlan:
    """Choose tiles and assign them to splits; without `sizes` 15/5/10, scaled down when fewer tiles are annotated."""
    slides = np.array([spot.source for spot in spots], dtype=np.int64)
    if not sizes:
        sizes = scaled(USUAL, min(sum(USUAL), wanted.tiles or max(len(spots), len(SPLITS))))
        if not wanted.tiles and wanted.group_by == "slide":
            sizes = largest_sizes(_groups(sources)[slides], sizes, wanted.seed) or sizes
    total = wanted.tiles or sum(sizes)
    if len(spots) < total:
        raise _too_few(len(spots), total, _groups(sources)[slides], wanted, sizes)
    shares = np.stack([label_shares(spot, rules) for spot in spots])
    if wanted.group_by == "tile":
        at = choose_even(shares, slides, total)
        chosen = [spots[i] for i in at]
        ids = [tile_id(spot, sources) for spot in chosen]
        pixels = np.rint(shares[at] * wanted.tile_px**2).astype(np.int64)
        found = balanced_split(ids, [""] * len(ids), pixels, sizes, wanted.seed)
        return CutPlan(chosen, [list(part) for part in found.members])
    return _by_group(spots, sources, shares, slides, total, sizes, wanted)


def _too_few(
    found: int, total: int, groups: npt.NDArray[np.int64], wanted: CutRequest, sizes: Sequence[int]
) -> SpecError:
    fit = scaled(sizes, found) if found >= len(SPLITS) else None
    if wanted.group_by == "slide":
        fit = largest_sizes(groups, sizes, wanted.seed)
    return SpecError(
        f"{total} tiles are requested, but fewer are annotated",
        found=f"{found} tiles of {wanted.tile_px} px at {wanted.mpp:g} um/px that are annotated by "
        f"{100 * wanted.min_share:.0f} % or more",
        next_step=(f"{_way(wanted).format(shown(fit))}, or " if fit else "")
        + "choose a smaller --min-share or --tile-px, or annotate more",
    )


def _way(wanted: CutRequest) -> str:
    return "pass --split {} without --tiles" if wanted.tiles else "pass --split {}"


def _groups(sources: Sequence[AnnotatedSlide]) -> npt.NDArray[np.int64]:
    """Return the number of the group (patient or slide) of each slide: (slide,)."""
    names = sorted({source.group for source in sources})
    return np.array([names.index(source.group) for source in sources])


def _by_group(
    spots: list[TileSite],
    sources: Sequence[AnnotatedSlide],
    shares: npt.NDArray[np.float64],
    slides: npt.NDArray[np.int64],
    total: int,
    sizes: list[int],
    wanted: CutRequest,
) -> CutPlan:
    """Assign whole slides (or patients) to splits, then choose the tiles of each split.

    Chosen tiles beyond the size of a split are spare: they are in no split.
    """
    groups = _groups(sources)[slides]
    spare = total - sum(sizes)
    quotas = [size + spare * size // sum(sizes) for size in sizes]
    quotas[0] += total - sum(quotas)
    chosen: list[TileSite] = []
    splits = []
    dealt = deal_groups(shares, groups, quotas, wanted.seed, _way(wanted))
    for members, quota, size in zip(dealt, quotas, sizes, strict=True):
        at = np.flatnonzero(np.isin(groups, members))
        # the first chosen tiles are the best balanced, so they form the split
        splits.append(list(range(len(chosen), len(chosen) + size)))
        chosen += [spots[at[i]] for i in choose_even(shares[at], slides[at], quota)]
    return CutPlan(chosen, splits)


def label_shares(spot: TileSite, rules: Rules) -> npt.NDArray[np.float64]:
    """Return the share of each label in a tile; unannotated pixels count as the fill label if there is one."""
    shares = spot.shares[: len(rules.labels)].copy()
    if rules.fill != IGNORE:
        shares[rules.fill] += spot.shares[len(rules.labels)]
    return shares


def tile_id(spot: TileSite, sources: Sequence[AnnotatedSlide]) -> str:
    """Return the id of a tile: the name of its slide, and its upper left corner in pixels of level 0."""
    source = sources[spot.source]
    x, y = source.grid.corner(spot.column, spot.row)
    return f"{source.name}_x{x:06d}_y{y:06d}"
