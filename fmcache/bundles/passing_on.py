"""Whether the licence of an encoder's weights lets a user pass them on to others."""

from __future__ import annotations

from fmcache.encoders.cards import Card

FREE = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0")
"""Licences (SPDX) under which weights may be passed on to everybody."""


def restriction(card: Card, *, random_weights: bool) -> str:
    """Return why a bundle may not hold the weights of an encoder without a decision of the user; '' if it may.

    Only licences that certainly allow it are taken for free: an unknown licence is a restriction, and so are terms that
    everybody who gets the weights must accept (gated weights), whatever the licence is called.
    """
    if card.kind != "timm" or random_weights:
        return ""
    licence = card.licence or "not stated in its card"
    if card.gated:
        return f"{licence}; the publisher gives the weights only to users who accept the terms"
    return "" if card.licence in FREE else licence
