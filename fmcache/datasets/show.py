"""The command `fmcache data show`: sheets of the tiles, of the splits with their label shares, or of a tile's views."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmcache import fonts
from fmcache.datasets.balance import deviations
from fmcache.datasets.split import named_parts
from fmcache.datasets.survey import count_labels, survey
from fmcache.errors import FmcacheError, SpecError
from fmcache.identity import whole_file
from fmcache.manifest import SPLITS, Manifest, TileEntry
from fmcache.specs import Recipe
from fmcache.tiles.images import read_tile, resize_tile
from fmcache.tiles.sheet import Section, SheetPicture, contact_sheet, entry, lettering
from fmcache.tiles.views import render_mask, render_view, view_params

MOST_TILES, MOST_PER_SPLIT, VIEWS = 120, 16, 12


def show(manifest: Manifest, name: str, out: Path) -> Path:
    """Write the contact sheet of a dataset as PNG and return its path; large datasets show evenly chosen tiles.

    Raises
    ------
    ManifestError, TileError
        When a tile cannot be read.
    """
    dataset = manifest.dataset(name)
    split_of = {tile: split for split in SPLITS for tile in dataset.splits.of(split)}
    order = sorted(dataset.tiles, key=lambda e: (*SPLITS, "").index(split_of.get(e.id, "")))
    chosen = _evenly(order, MOST_TILES)
    entries = _entries(manifest, name, chosen, {tile: f" · {split}" for tile, split in split_of.items()}, " · no split")
    return _write(manifest, name, out, [Section("", entries)], _some(len(chosen), len(order)))


def show_splits(manifest: Manifest, name: str, out: Path) -> Path:
    """Write a sheet of the splits as PNG and return its path: label shares of each split, and some of its tiles.

    Folds and subsets get a line each, without tiles. Raises the same errors as `show`.
    """
    dataset = manifest.dataset(name)
    labels = [label.name for label in dataset.labels]
    pixels = count_labels(manifest, name)[:, : len(labels)]
    at = {tile.id: i for i, tile in enumerate(dataset.tiles)}
    sections = [Section(_heading("all tiles", labels, pixels, None), [], _shares(pixels))]
    for title, tiles in named_parts(dataset):
        members = tuple(at[tile] for tile in tiles)
        off = deviations((members,), pixels)[0]
        chosen = _evenly([dataset.tiles[i] for i in members], MOST_PER_SPLIT) if title in SPLITS else []
        shown = _some(len(chosen), len(members)) if chosen else ""
        part = pixels[list(members)]
        heading = _heading(f"{title}{shown}", labels, part, off)
        sections.append(Section(heading, _entries(manifest, name, chosen, {}, ""), _shares(part)))
    return _write(manifest, name, out, sections, " · label shares in percent (points off all tiles)")


def show_views(manifest: Manifest, name: str, recipe: Recipe, tile_id: str, out: Path) -> Path:
    """Write a sheet of a tile's first views under a recipe, each with its mask, as PNG; return its path.

    Only the unchanged tile has a scale bar, because views are zoomed. Raises the same errors as `show`, and SpecError
    for an unknown tile.
    """
    dataset = manifest.dataset(name)
    listed = {tile.id: tile for tile in dataset.tiles}
    if tile_id not in listed:
        raise SpecError(
            f"dataset {name!r} has no tile {tile_id!r}",
            expected=", ".join(list(listed)[:8]) + (", ..." if len(listed) > 8 else ""),
            next_step="name one of its tiles with --views",
        )
    whole = read_tile(dataset, listed[tile_id], manifest.folder)
    mpp = dataset.mpp * max(whole.mask.shape) / recipe.tile_px if dataset.mpp else None
    tile = resize_tile(whole, recipe.tile_px)
    entries = []
    for view in range(min(VIEWS, recipe.views.count + 1)):
        image = render_view(recipe.views, name, tile_id, view, tile.image)
        mask = render_mask(recipe.views, name, tile_id, view, tile.mask)
        p = view_params(recipe.views, name, tile_id, view)
        how = f"turned {p.rotate_deg:.0f}°, x {p.scale:.2f}" + (", mirrored" if p.flip else "") if view else "untouched"
        entries.append(entry(image, mask, f"view {view}: {how}", None if view else mpp))
    count = recipe.views.count + 1
    suffix = f" · views of {tile_id} under recipe {recipe.name} at {recipe.tile_px} px{_some(len(entries), count)}"
    return _write(manifest, name, out, [Section("", entries)], suffix)


def _entries(
    manifest: Manifest, name: str, tiles: Sequence[TileEntry], captions: dict[str, str], otherwise: str
) -> list[SheetPicture]:
    mpp = manifest.dataset(name).mpp
    shown = []
    small = survey(manifest, name, f"drawing {name}", lambda tile: entry(tile.image, tile.mask, tile.id, mpp), tiles)
    for listed, found in small:
        if isinstance(found, FmcacheError):
            raise found
        shown.append(found._replace(caption=listed.id + captions.get(listed.id, otherwise)))
    return shown


def _write(manifest: Manifest, name: str, out: Path, sections: Sequence[Section], suffix: str) -> Path:
    dataset = manifest.dataset(name)
    title = f"{name}: {dataset.title}".rstrip(": ") + suffix
    sheet = contact_sheet(title, sections, dataset.labels)
    with whole_file(out) as file:
        sheet.save(file, format="PNG")
    if note := fonts.hint(lettering(title, sections, dataset.labels).lacking):
        print(note, file=sys.stderr)
    return out


def _evenly(tiles: Sequence[TileEntry], most: int) -> list[TileEntry]:
    if len(tiles) <= most:
        return list(tiles)
    return [tiles[i] for i in np.linspace(0, len(tiles) - 1, most).round().astype(int)]


def _some(shown: int, total: int) -> str:
    return f" · {shown} of {total} shown" if shown < total else ""


def _shares(pixels: npt.NDArray[np.int64]) -> list[float]:
    shares: list[float] = (pixels.sum(axis=0) / max(pixels.sum(), 1)).tolist()
    return shares


def _heading(
    title: str, labels: Sequence[str], pixels: npt.NDArray[np.int64], off: npt.NDArray[np.float64] | None
) -> str:
    shares = [f"{label} {100 * share:.1f}" for label, share in zip(labels, _shares(pixels), strict=True)]
    if off is not None:
        shares = [f"{text} ({100 * d:+.1f})" for text, d in zip(shares, off, strict=True)]
    return f"{title} · {len(pixels)} tiles · " + ", ".join(shares)
