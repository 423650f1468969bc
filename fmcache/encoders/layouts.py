"""Weights files against the models they are for: renaming from each published layout, then a strict fit.

What does not fit is told in words: what a file looks like, which keys are missing or left over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from fmcache.encoders.cards import Card, LayoutName
from fmcache.errors import WeightsMismatch

State = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]

_LAYER_SCALE = re.compile(r"\.(ls\d+\.gamma|gamma_\d+)$")
_BLOCK = re.compile(r"\b(?:blocks|layer|layers)\.(\d+)\.")
_SHOWN = 4


class Layout(NamedTuple):
    """A published naming of keys: how it is told from others (a key that no other layout has), how it is renamed."""

    marker: re.Pattern[str]
    rename: Callable[[State], State]


def published(state: State) -> LayoutName:
    """Return the layout whose marker is among the keys; ``timm`` when none is."""
    return next((name for name, layout in LAYOUTS.items() if any(map(layout.marker.match, state))), "timm")


def to_timm(path: Path, stored: State, card: Card) -> State:
    """Return the state dict in a file under timm's names, without the keys that the card lists as to be dropped.

    A prefix that all keys share (``module.``, ``backbone.``, ``vit.``) is taken off first.

    Raises
    ------
    WeightsMismatch
        When the file's layout is none of the card's.
    """
    drop, layouts = (card.weights.drop, card.weights.layouts) if card.weights else ((), ("timm",))
    state = _unprefixed(stored)
    layout = published(state)
    if layout not in layouts:
        raise WeightsMismatch(
            f"{path} does not fit {card.name!r}: its keys are named in another way",
            expected=f"layout {' or '.join(layouts)}",
            found=f"layout {layout}: {_looks({name: tuple(tensor.shape) for name, tensor in state.items()})}",
            next_step="pass the file of this encoder, or list the layout in the card (`weights.layouts`)",
        )
    state = {name: tensor for name, tensor in state.items() if not name.startswith(drop)}
    return LAYOUTS[layout].rename(state) if layout in LAYOUTS else state


def table_px(state: Mapping[str, torch.Tensor], card: Card) -> int:
    """Return the image size in pixels for which a state dict (timm's names) holds its position table; 0 if unclear."""
    if "pos_embed" not in state:
        return 0
    entries = state["pos_embed"].shape[1]
    for unplaced in (card.prefix_tokens, 0, 1):  # the table may cover prefix tokens, or CLS only, or none
        side = math.isqrt(max(0, entries - unplaced))
        if side and side**2 == entries - unplaced:
            return side * card.patch
    return 0


def fit_weights(path: Path, state: State, card: Card, model: Mapping[str, torch.Tensor]) -> State:
    """Return `state` (timm's names) as a float32 state dict for the `model` whose names and shapes are given.

    Every key must be used. The model is built at the size of the file's position table, so that the table is taken as
    it is; at other image sizes timm resamples it once, with antialiased bicubic interpolation.

    Raises
    ------
    WeightsMismatch
        When keys are missing, left over or of another shape, or LayerScale holds one single value.
    """
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
    size = table_px({name: torch.empty(found[name], device="meta")}, card) if name in found else 0
    if not size:
        return ""
    side = size // card.patch
    return f"write `img_size: {size}` in the card's arguments: its position table is {side} x {side}"


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


def _unprefixed(state: State) -> State:
    for prefix in ("module.", "backbone.", "vit."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _below(prefix: str) -> Callable[[State], State]:
    def rename(state: State) -> State:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    return rename


_HUGGING_FACE = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"embeddings\.cls_token$", "cls_token"),
        (r"embeddings\.register_tokens$", "reg_token"),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
        (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
        (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
        (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.", r"blocks.\1.mlp.fc2."),
        (r"layernorm\.", "norm."),
    )
)
_QUERY_KEY_VALUE = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def _from_hugging_face(state: State) -> State:
    """Rename ViT, Dinov2 and Dinov2-with-registers of the transformers library.

    Queries, keys and values become one matrix. Both libraries gate with the first half of SwiGLU's input weights, so
    these are taken as they are. Where there are registers, timm's position table has no entry for CLS: the entry is
    added to the CLS token, which is the same sum.
    """
    renamed: State = {}
    parts: dict[str, State] = {}
    for name, tensor in state.items():
        if found := _QUERY_KEY_VALUE.match(name):
            parts.setdefault(f"blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = tensor
            continue
        rule = next(((pattern, new) for pattern, new in _HUGGING_FACE if pattern.match(name)), None)
        renamed[rule[0].sub(rule[1], name) if rule else name] = tensor
    for name, thirds in parts.items():
        if len(thirds) == 3:
            renamed[name] = torch.cat([thirds[part] for part in ("query", "key", "value")])
    return _without_cls_position(renamed)


def _from_dinov2(state: State) -> State:
    """Rename the publisher's DINOv2: registers, SwiGLU (w12, w3), and CLS folded as in `_from_hugging_face`."""
    rules = {"register_tokens": "reg_token"}
    renamed = {
        rules.get(name, name).replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in state.items()
    }
    return _without_cls_position(renamed)


def _without_cls_position(state: State) -> State:
    if {"reg_token", "cls_token", "pos_embed"} <= state.keys():
        table = state["pos_embed"].float()
        state = state | {"cls_token": state["cls_token"].float() + table[:, :1], "pos_embed": table[:, 1:]}
    return state


LAYOUTS: dict[LayoutName, Layout] = {
    "hf-dinov2-registers": Layout(re.compile(r"embeddings\.register_tokens$"), _from_hugging_face),
    "hf-dinov2": Layout(re.compile(r"encoder\.layer\.\d+\.layer_scale1\."), _from_hugging_face),
    "hf-vit": Layout(re.compile(r"encoder\.layer\.\d+\.layernorm_before\."), _from_hugging_face),
    "conch": Layout(re.compile(r"visual\.trunk\."), _below("visual.trunk.")),
    "conchv1.5": Layout(re.compile(r"trunk\."), _below("trunk.")),
    "dinov2": Layout(re.compile(r"(register_tokens|mask_token)$"), _from_dinov2),
}
"""Every layout but timm's own; the first whose marker is found is that of a file."""
