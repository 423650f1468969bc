"""What `fmcache encoders check` checks: is an encoder available, is its file intact, does it load, does it run?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from fmcache.commands.encoder_tables import TILE_PX
from fmcache.encoders.cards import Card, Weights
from fmcache.encoders.hub import check_access, local_file, must_not_ask
from fmcache.encoders.hub_words import not_here, unreachable
from fmcache.encoders.load import Encoder, card_of, load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.encoders.weights import pinned_weights
from fmcache.errors import FmcacheError, HubUnreachable
from fmcache.grid import GridGeometry
from fmcache.manifest import TileEntry
from fmcache.runtime.devices import pick_device, using_threads
from fmcache.runtime.sizes import size_text
from fmcache.specs import EncoderChoice, Precision
from fmcache.stages import places
from fmcache.stages.flags import Flags
from fmcache.tiles.demo import draw_tile

NOT_TRIED = "–"
NOT_ASKED = "not asked"
TO_FETCH = "to fetch"


class Checked(NamedTuple):
    """The findings for one encoder; `error` is the first failure, None when nothing failed."""

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
    """Check encoders one after another. An encoder that fails does not stop the check of the others.

    Weights that are not on this machine are fetched only with `fetch`. Without it the hub is asked for access, and the
    check of this encoder ends there. If the hub may not be asked, or gives no answer, it is not asked again. Weights
    that are on this machine are checked in any case. `say` gets a line before each encoder, because a large encoder
    takes a while.
    """
    device = pick_device(flags.device)
    hub = Hub(must_not_ask(flags.offline))
    found = []
    with using_threads(flags.threads):
        for choice in choices:
            say(f"{choice.name} ...")
            found.append(_check(choice, device, flags, fetch, hub))
    return found


class Hub:
    """Whether the hub may be asked, and the error from when it did not answer."""

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self.silent: HubUnreachable | None = None


def table(checked: Sequence[Checked]) -> Table:
    """Return the findings as a table, one row per encoder."""
    shown = Table("encoder", "access", "file", "sha256", "strict load", f"one tile of {TILE_PX} px")
    for one in checked:
        shown.add_row(*(Text(cell) for cell in one[:-1]))  # a file name is not markup
    return shown


def _check(choice: EncoderChoice, device: torch.device, flags: Flags, fetch: bool, hub: Hub) -> Checked:
    row = dict.fromkeys(Checked._fields[:-1], NOT_TRIED) | {"encoder": choice.name}
    error: FmcacheError | None = None
    try:
        _fill(row, choice, device, flags, fetch, hub)
    except FmcacheError as reason:
        error = reason
    except (OSError, RuntimeError, MemoryError) as reason:  # an unreadable file, a device without free memory
        error = FmcacheError(
            f"{row['encoder']} cannot be read or run",
            found=(str(reason) or type(reason).__name__).partition("\n")[0],
            next_step="check the file, its permissions, and the free memory of the device",
        )
    if error:
        row[next(key for key in ("access", "file", "load", "tile") if row[key] == NOT_TRIED)] = "FAILED"
    return Checked(**row, error=error)


def _fill(
    row: dict[str, str], choice: EncoderChoice, device: torch.device, flags: Flags, fetch: bool, hub: Hub
) -> None:
    card = card_of(choice.name)
    row["encoder"] = card.name
    if not _have_file(card, choice, flags, fetch, hub, row):
        return
    offline = hub.offline or hub.silent is not None
    encoder = load_encoder(choice, device, offline=offline, lock=places.weights_lock(flags.work))
    row["file"] = "fetched" if row["file"].startswith(TO_FETCH) else row["file"]
    row["sha256"] = encoder.weights_sha256[:12] or NOT_TRIED
    row["load"] = f"{encoder.params:,} parameters" + (" (random weights)" if encoder.random_weights else "")
    row["tile"] = _one_tile(encoder)


def _have_file(card: Card, choice: EncoderChoice, flags: Flags, fetch: bool, hub: Hub, row: dict[str, str]) -> bool:
    """Fill in access and file; return whether to continue with loading."""
    if card.kind != "timm" or card.random_weights or choice.random_weights:
        row["access"] = row["file"] = "not needed"
        return True
    weights = card.weights or Weights()
    if choice.weights or not weights.repo:
        row["access"], row["file"] = "not needed", choice.weights or weights.file or NOT_TRIED
        return True
    held = pinned_weights(places.weights_lock(flags.work)).read().get(f"{weights.repo}/{weights.file}")
    if held and not weights.revision:
        weights = msgspec.structs.replace(weights, revision=held.revision)
    here = local_file(weights)
    _ask(card, weights, bool(here), hub, row)
    row["file"] = "here" if here else f"{TO_FETCH} ({size_text(weights.megabytes * 10**6)})"
    return bool(here) or fetch


def _ask(card: Card, weights: Weights, here: bool, hub: Hub, row: dict[str, str]) -> None:
    """Fill in access; raises as `check_access` if the file is not on this machine."""
    if hub.offline:
        row["access"] = NOT_ASKED
        if not here:
            raise not_here(card, weights)
        return
    try:
        if hub.silent:
            raise unreachable(card, weights, hub.silent.found)
        check_access(card, weights)
        row["access"] = "granted" if card.gated else "open"
    except HubUnreachable as silent:
        hub.silent = silent
        row["access"] = f"{NOT_ASKED}: no network"
        if not here:
            raise


def _one_tile(encoder: Encoder) -> str:
    """Run one drawn tile through the encoder; return the grid, that tokens are finite, and the time, as text."""
    card = encoder.card
    precision: Precision = card.precision if encoder.device.type == "cuda" else "float32"
    image, _ = draw_tile(0, TileEntry(id="check"), TILE_PX)
    start = time.monotonic()
    grids = token_grids(encoder, image[None], GridGeometry(TILE_PX, card.patch, "fit"), precision).cpu().numpy()
    seconds = time.monotonic() - start
    if not np.isfinite(grids).all():
        raise FmcacheError(
            f"{card.name!r} gives tokens in {precision} that are not finite",
            next_step="set `precision: float32` in the recipe, and check the weights file",
        )
    return f"{' x '.join(str(n) for n in grids.shape[1:])}, finite, {seconds:.1f} s"
