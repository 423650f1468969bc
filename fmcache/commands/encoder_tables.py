"""What `fmcache encoders list` and `show` print about the encoders that have a card. This module imports no torch."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from fmcache.encoders.cards import GROUPS, TIMM, Card, card_names, read_card
from fmcache.encoders.hub import local_file
from fmcache.grid import GridGeometry
from fmcache.runtime.sizes import size_text
from fmcache.strict import builtins

TILE_PX = 512
"""The tile size of the paper in pixels. Token grids and bytes are given for it."""


def list_encoders() -> Table:
    """Return a table of the encoders that have a card: those of the study, newer ones, baselines, controls."""
    table = Table(
        caption=f"tokens: channels x rows x columns at {TILE_PX} px; a view: bytes as float16, uncompressed\n"
        "here: weights are on this machine; study: the encoders of --all; baselines: trained on natural images",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("name", "params", "tokens", "a view"):
        table.add_column(column, no_wrap=True, justify="right" if column == "params" else "left")
    for column in ("access", "download", "here", "licence"):
        table.add_column(column)
    cards = [read_card(name) for name in card_names()]
    for group in GROUPS:
        table.add_section()
        table.add_row(Text(group, "italic"))
        for card in (card for card in cards if card.group == group):
            table.add_row(
                card.name, _parameters(card), _grid(card), size_text(view_bytes(card)), _access(card), _download(card),
                _here(card), card.licence,
            )  # fmt: skip
    return table


def describe_encoder(name: str, width: int) -> str:
    """Return all that is known about an encoder as text: facts as comments, then its card.

    The text can be saved to a file and used as a card. `name` is a card name, a card file or ``timm:NAME``. Lines are
    broken between words, so that they have at most `width` letters. Raises as `read_card`.
    """
    if name.startswith(TIMM):
        from fmcache.encoders.load import card_of  # asks timm for the model's shape

        card = card_of(name)
    else:
        card = read_card(name)
    facts = {
        "group": card.group,
        "parameters": _parameters(card),
        f"tokens at {TILE_PX} px": f"{_grid(card)}, {size_text(view_bytes(card))} a view",
        "access": _access(card),
        "download": _download(card),
        "here": _here(card),
    }
    lines = (
        textwrap.fill(f"# {key}: {value}", max(width, 20), subsequent_indent="#   ") for key, value in facts.items()
    )
    return "\n".join(lines) + "\n\n" + _wrapped(builtins(card), width)


def _wrapped(card: dict[str, Any], width: int) -> str:
    """Return a card as YAML. No line is longer than `width`, except where a single word is longer."""
    # PyYAML breaks a line at the first space after a given width. Narrower widths are tried too; the best fit is used.
    texts = [
        yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=narrow, default_flow_style=None).rstrip()
        for narrow in range(max(width, 20), max(width // 2, 10), -2)
    ]
    return min(texts, key=lambda text: sum(max(0, len(line) - width) for line in text.splitlines()))


def view_bytes(card: Card) -> int:
    """Return the uncompressed bytes of the float16 tokens of one view of `TILE_PX`."""
    return 2 * card.width * GridGeometry(TILE_PX, card.patch, "fit").side ** 2


def _grid(card: Card) -> str:
    side = GridGeometry(TILE_PX, card.patch, "fit").side
    return f"{card.width}x{side}x{side}"


def _parameters(card: Card) -> str:
    return f"{card.params / 1e6:.0f} M" if card.params else "–"


def _access(card: Card) -> str:
    if card.kind != "timm":
        return "no weights"
    if card.random_weights:
        return "random weights"
    if card.weights is None or not card.weights.repo:
        return "your file"
    return "gated" if card.gated else "open"


def _download(card: Card) -> str:
    return size_text(card.weights.megabytes * 10**6) if card.weights and card.weights.megabytes else "–"


def _here(card: Card) -> str:
    if card.weights is None or not card.weights.repo:
        return "–"
    return "yes" if local_file(card.weights) else "no"
