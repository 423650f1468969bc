"""Pictures of test tiles, for reports: extract writes them beside the caches, and fit copies them into the results."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from fmcache.errors import Busy
from fmcache.identity import sweep, whole_file
from fmcache.locks import locked
from fmcache.manifest import TileEntry
from fmcache.runtime.prefetch import pool_of, prefetch
from fmcache.scores.predictions import kept_tiles
from fmcache.shortage import naming_shortage
from fmcache.stages import places
from fmcache.stages.extract_request import ExtractRequest
from fmcache.tiles.images import read_tile, resize_tile
from fmcache.tiles.views import opencv_on_one_thread

QUALITY = 90
THREADS = 4
WAIT_S = 60
"""Seconds to wait for another process that writes pictures of the same dataset."""


def write_tile_pictures(asked: ExtractRequest) -> None:
    """Write the missing pictures of the test tiles of which results keep predictions; only their images are read.

    A picture is the untouched view as JPEG. Its comment, ``side_px N``, is the side of the tile's image before it was
    resized: with the um/px of the image, the report draws a scale bar. Its name is the sha256 of the tile's image, so a
    picture that exists is that of the tile.
    """
    missing, folder = _missing(asked), _folder(asked)
    if not missing and not _has_leftovers(folder):
        return
    title = f"{asked.demand.name} · tile pictures"
    with naming_shortage(title, "use a smaller tile_px in a recipe of another name"):
        try:
            with locked(folder, WAIT_S if missing else 0):
                sweep(folder)
                _write(asked, _missing(asked))
        except Busy:
            if missing:
                asked.say(f"{title}: another process is writing them; left out")
            return
    if missing:
        asked.say(f"{title}: {len(missing)} written")


def _folder(asked: ExtractRequest) -> Path:
    return places.tile_picture(asked.flags.work, asked.demand.name, asked.recipe.tile_px, "").parent


def _has_leftovers(folder: Path) -> bool:
    """Return whether a killed process left something that the next holder of the lock removes, or one is at work."""
    beside = folder.parent.glob(f".{folder.name}.*")
    return any(folder.glob("*.partial")) or any(not one.name.endswith(".lock") for one in beside)


def _missing(asked: ExtractRequest) -> dict[Path, TileEntry]:
    """Return the entries of the tiles without a picture, by the path of the picture."""
    demand, px = asked.demand, asked.recipe.tile_px
    shown = set[str]().union(*(kept_tiles(splits.test) for splits in demand.splits.values()))
    paths = {
        places.tile_picture(asked.flags.work, demand.name, px, asked.hashes[entry.id][0]): entry
        for entry in demand.entries
        if entry.id in shown
    }
    return {path: entry for path, entry in paths.items() if asked.flags.recompute or not path.is_file()}


def _write(asked: ExtractRequest, missing: dict[Path, TileEntry]) -> None:
    def write(picture: tuple[Path, TileEntry]) -> None:
        path, entry = picture
        whole = read_tile(asked.demand.dataset, entry, asked.folder)
        tile = resize_tile(whole, asked.recipe.tile_px)
        with whole_file(path) as file:
            comment = f"side_px {len(whole.image)}"
            Image.fromarray(tile.image).save(file, "JPEG", quality=QUALITY, comment=comment.encode())

    threads = min(THREADS, os.cpu_count() or 1)
    with opencv_on_one_thread(), pool_of(threads, "pictures") as pool:
        for _ in prefetch(pool, write, missing.items(), 2 * threads):
            pass
