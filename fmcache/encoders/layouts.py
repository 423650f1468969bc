"""Names and shapes of a weights file against those of the model it is for: strict, with words for what does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from fmcache.encoders.cards import Card
from fmcache.errors import WeightsMismatch

State = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]

_LAYER_SCALE = re.compile(r"\.(ls\d+\.gamma|gamma_\d+)$")
_BLOCK = re.compile(r"\b(?:blocks|layer|layers)\.(\d+)\.")
_SHOWN = 4


def fit_weights(path: Path, stored: State, card: Card, model: Mapping[str, torch.Tensor]) -> State:
    """Return `stored` as a float32 state dict for the `model` whose names and shapes are given.

    Every key must be used, or match a prefix in the card's ``weights.drop``. The model is built at the size of the
    file's position table (``arguments.img_size``), so that the table is taken as it is; at other image sizes timm
    resamples it once, with antialiased bicubic interpolation.

    Raises
    ------
    WeightsMismatch
        When keys are missing, left over or of another shape, or LayerScale holds one single value.
    """
    drop = card.weights.drop if card.weights else ()
    state = {name: tensor for name, tensor in stored.items() if not name.startswith(drop)}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.items()}
    if shapes != wanted:
        raise _misfit(path, card, shapes, wanted)
    scales = [tensor for name, tensor in state.items() if _LAYER_SCALE.search(name)]
    if scales and all(bool((scale == scales[0].flatten()[0]).all()) for scale in scales):
        raise WeightsMismatch(
            f"{path} does not seem to hold trained LayerScale",
            expected="gammas that differ from each other",
            found=f"{float(scales[0].flatten()[0]):g} in all {len(scales)} gammas: the value they are made with",
            next_step="fetch the trained weights; an untrained model runs with --random-weights",
        )
    # Copied: tensors of a mapped file would change, or vanish, with the file.
    return {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in state.items()}


def _misfit(path: Path, card: Card, found: Shapes, wanted: Shapes) -> WeightsMismatch:
    groups = {
        "missing": [f"{name} {wanted[name]}" for name in wanted.keys() - found.keys()],
        "left over": [f"{name} {found[name]}" for name in found.keys() - wanted.keys()],
        "of another shape": [
            f"{name} {found[name]} instead of {wanted[name]}"
            for name in wanted.keys() & found.keys()
            if found[name] != wanted[name]
        ],
    }
    return WeightsMismatch(
        f"{path} does not fit {card.name!r}",
        expected=f"{len(wanted)} keys: {_looks(wanted)}",
        found=f"{len(found)} keys: {_looks(found)}; "
        + "; ".join(f"{len(keys)} {what}: {some(sorted(keys))}" for what, keys in groups.items() if keys),
        next_step=_position_advice(card, found, wanted)
        or "pass the file of this encoder; what a file may hold beyond it is listed as `weights.drop` in a card",
    )


def _position_advice(card: Card, found: Shapes, wanted: Shapes) -> str:
    name = "pos_embed"
    if {key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)} != {name}:
        return ""
    for unplaced in (card.prefix_tokens, 0):
        built, stored = (shapes[name][1] - unplaced if name in shapes else -1 for shapes in (wanted, found))
        if built > 0 and stored > 0 and math.isqrt(built) ** 2 == built and math.isqrt(stored) ** 2 == stored:
            side = math.isqrt(stored)
            return (
                f"write `img_size: {side * card.patch}` in the card's arguments: its position table is {side} x {side}"
            )
    return ""


def _looks(shapes: Shapes) -> str:
    """Return the outline of a vision transformer: patch size, width and blocks, as the shapes tell them."""
    blocks = {found[1] for name in shapes if (found := _BLOCK.search(name))}
    parts = [f"{len(blocks)} blocks"] if blocks else []
    # The patch embedding is the one kernel over the three colours, whatever it is called.
    for shape in shapes.values():
        if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]:
            parts = [f"patch {shape[2]}", f"width {shape[0]}", *parts]
            break
    return "it looks like " + ", ".join(parts) if parts else "not those of a vision transformer"


def some(items: Iterable[str]) -> str:
    """Return the first few items, and how many more there are."""
    items = list(items)
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
