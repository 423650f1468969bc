"""What `fmcache encoders` shows."""

from __future__ import annotations

from rich.table import Table

from fmcache.encoders.cards import Card, names, read_card


def list_encoders() -> Table:
    """Return a table of the encoders that have a card."""
    table = Table("name", "title", "patch", "width", "parameters", "weights", "licence")
    for name in names():
        card = read_card(name)
        params = f"{card.params / 1e6:.1f} M" if card.params else "–"
        table.add_row(card.name, card.title, str(card.patch), str(card.width), params, _weights(card), card.licence)
    return table


def _weights(card: Card) -> str:
    if card.kind == "pixels":
        return "none (control)"
    if card.random_weights:
        return "random (control)"
    if card.weights is None:
        return "your own"
    return card.weights.repo + (" (gated)" if card.gated else "")
