"""What `fmcache encoders check` finds out: can this encoder be had, is its file whole, does it load, does it run?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from rich.table import Table

from fmcache.encoders.cards import Card, Weights
from fmcache.encoders.hub import check_access, local_file
from fmcache.encoders.load import Encoder, card_of, load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.encoders.weights import read_lock
from fmcache.errors import EncoderUnavailable, FmcacheError
from fmcache.grid import Grid
from fmcache.manifest import TileEntry
from fmcache.specs import EncoderChoice, Precision
from fmcache.stages import places
from fmcache.stages.catalogue import TILE_PX
from fmcache.stages.devices import pick_device, set_threads
from fmcache.stages.flags import Flags
from fmcache.stages.sizes import size_text
from fmcache.tiles.demo import draw_tile

NOT_TRIED = "–"
TO_FETCH = "to fetch"


class Checked(NamedTuple):
    """What was found of one encoder; `error` is the first thing that failed, None when nothing did."""

    encoder: str
    access: str
    file: str
    sha256: str
    load: str
    tile: str
    error: FmcacheError | None


def check_encoders(
    choices: Sequence[EncoderChoice], flags: Flags, fetch: bool, say: Callable[[str], None] = print
) -> list[Checked]:
    """Check encoders one after another, going on past those that fail.

    Weights that are not on this machine are fetched with `fetch` only; without it the hub is asked for access, and the
    check ends there. `say` gets a line before each encoder, since a large one takes a while.
    """
    set_threads(flags.threads)
    device = pick_device(flags.device)
    found = []
    for choice in choices:
        say(f"{choice.name} ...")
        found.append(_check(choice, device, flags, fetch))
    return found


def table(checked: Sequence[Checked]) -> Table:
    """Return the findings as a table, one row per encoder."""
    shown = Table("encoder", "access", "file", "sha256", "strict load", f"one tile of {TILE_PX} px")
    for one in checked:
        shown.add_row(*one[:-1])
    return shown


def _check(choice: EncoderChoice, device: torch.device, flags: Flags, fetch: bool) -> Checked:
    row = dict.fromkeys(Checked._fields[:-1], NOT_TRIED) | {"encoder": choice.name}
    try:
        card = card_of(choice.name)
        row["encoder"] = card.name
        if not _have_file(card, choice, flags, fetch, row):
            return Checked(**row, error=None)
        encoder = load_encoder(choice, device, offline=flags.offline, lock=places.weights_lock(flags.work))
        row["file"] = "fetched" if row["file"].startswith(TO_FETCH) else row["file"]
        row["sha256"] = encoder.weights_sha256[:12] or NOT_TRIED
        row["load"] = f"{encoder.params:,} parameters" + (" (random weights)" if encoder.random_weights else "")
        row["tile"] = _one_tile(encoder)
    except FmcacheError as error:
        failed = next(key for key in ("access", "file", "load", "tile") if row[key] == NOT_TRIED)
        row[failed] = "FAILED"
        return Checked(**row, error=error)
    return Checked(**row, error=None)


def _have_file(card: Card, choice: EncoderChoice, flags: Flags, fetch: bool, row: dict[str, str]) -> bool:
    """Fill in access and file; return whether to go on to loading."""
    if card.kind != "timm" or card.random_weights or choice.random_weights:
        row["access"] = row["file"] = "not needed"
        return True
    weights = card.weights or Weights()
    if choice.weights or not weights.repo:
        row["access"], row["file"] = "not needed", choice.weights or weights.file or NOT_TRIED
        return True
    held = read_lock(places.weights_lock(flags.work)).get(f"{weights.repo}/{weights.file}")
    if held and not weights.revision:
        weights = msgspec.structs.replace(weights, revision=held.revision)
    here = local_file(weights)
    if flags.offline:
        row["access"] = "not asked"
        if not here:
            raise EncoderUnavailable(
                "the weights are not on this machine",
                next_step="run once without --offline, or pass a file you have with --weights FILE",
            )
    else:
        check_access(card, weights)
        row["access"] = "granted" if card.gated else "open"
    row["file"] = "here" if here else f"{TO_FETCH} ({size_text(weights.megabytes * 10**6)})"
    return bool(here) or fetch


def _one_tile(encoder: Encoder) -> str:
    """Run one drawn tile through the encoder; say the grid, whether tokens are finite, and how long it took."""
    card = encoder.card
    precision: Precision = card.precision if encoder.device.type == "cuda" else "float32"
    image, _ = draw_tile(0, TileEntry(id="check"), TILE_PX)
    start = time.monotonic()
    grids = token_grids(encoder, image[None], Grid(TILE_PX, card.patch, "fit"), precision).cpu().numpy()
    seconds = time.monotonic() - start
    if not np.isfinite(grids).all():
        raise FmcacheError(
            f"{card.name!r} gives tokens that are not finite in {precision}",
            next_step="set `precision: float32` in the recipe, and check the weights file",
        )
    return f"{' x '.join(str(n) for n in grids.shape[1:])}, finite, {seconds:.1f} s"
