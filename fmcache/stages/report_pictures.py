"""What fit keeps in the results so that the report can draw test tiles: their pictures, and token grids as colours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fmcache.decoders.batches import TokenGrids
from fmcache.scores.kept_pictures import TOKENS, tile_pictures, write_tile_pictures, write_token_pictures
from fmcache.stages.principal_components import token_colours


def copy_tile_pictures(where: str, sources: Mapping[str, Path], folder: Path, say: Callable[[str], None]) -> None:
    """Copy the pictures that extract wrote into the results of a dataset; report tiles whose picture is missing.

    The file in the results is written again only when its content changes. A picture that it holds already stays when
    extract's file is missing.

    Parameters
    ----------
    where
        The name of the dataset, for messages.
    sources
        The path of each tile's picture, by tile id.
    folder
        The folder of the dataset's results.
    """
    held, pictures = tile_pictures(folder), dict[str, bytes]()
    for tile, path in sources.items():
        with contextlib.suppress(FileNotFoundError):
            pictures[tile] = path.read_bytes()
        if tile not in pictures and tile in held:
            pictures[tile] = held[tile]
    if lacking := len(sources) - len(pictures):
        say(
            f"{where}: pictures of {lacking} of {len(sources)} test tiles are missing, so the report cannot show them; "
            "the same fmcache extract writes them"
        )
    if pictures != held:
        write_tile_pictures(folder, pictures)


def has_token_pictures(folder: Path) -> bool:
    """Return whether token pictures lie beside the runs in `folder`; without runs, they may be of other tokens."""
    return (folder / TOKENS).exists() and any(folder.glob("seed-*"))


def keep_token_pictures(folder: Path, grids: TokenGrids, tiles: Sequence[str]) -> None:
    """Write the token grids of `tiles` as colours beside the runs of an encoder (and fold), if they are missing."""
    if not has_token_pictures(folder):
        write_token_pictures(folder, token_colours(grids, tiles))
