"""What names and shapes in a weights file show: patch size, width and blocks as text, size of its position table.

For a model that is built, see `outlines`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch

from fmcache.encoders.cards import Card

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"\b(?:blocks|layer|layers|resblocks)\.(\d+)\.")


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def looks(shapes: Shapes) -> str:
    """Return a text for messages on what shapes show of an encoder: patch size or first kernel, width and blocks."""
    blocks = {found[1] for name in shapes if (found := _BLOCK.search(name))}
    parts = [f"{len(blocks)} blocks"] if blocks else []
    # The patch embedding is the only kernel over the three colours, whatever its name.
    for shape in shapes.values():
        if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]:
            parts = [f"{'patch' if blocks else 'first kernel'} {shape[2]}", f"width {shape[0]}", *parts]
            break
    return "it looks like " + ", ".join(parts) if parts else "not those of a vision transformer"


def table_px(state: Mapping[str, torch.Tensor], card: Card) -> int:
    """Return the image size in pixels for which a state dict (timm's names) holds its position table; 0 if unclear."""
    return px_of_table(tuple(state["pos_embed"].shape), card) if "pos_embed" in state else 0


def px_of_table(shape: tuple[int, ...], card: Card) -> int:
    """Return the image size in pixels of a position table (1, entries, d) of the card's encoder; 0 if unclear."""
    entries = shape[1] if len(shape) > 1 else 0
    for unplaced in (card.prefix_tokens, 0, 1):  # the table may cover all prefix tokens, none, or only CLS
        side = math.isqrt(max(0, entries - unplaced))
        if side and side**2 == entries - unplaced:
            return side * card.patch
    return 0
