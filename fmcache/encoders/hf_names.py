"""From the names of the transformers library for the weights of vision transformers to timm's names.

From its version 5 on, names in files and names in memory differ, and users save both. Both are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from fmcache.encoders.peeling import State

Rules = Sequence[tuple[re.Pattern[str], str]]

_BLOCK = r"(?:encoder\.layers?|layers?|model\.layer)\.(\d+)\."
MASK_TOKEN = re.compile(r"(?:embeddings\.)?mask_token$")
"""Replaces hidden patches during training of an encoder; no token depends on it."""


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern.replace("BLOCK", _BLOCK)), new) for pattern, new in pairs)


_EMBEDDINGS = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.register_tokens$", "reg_token"),
)
_VIT = _rules(
    *_EMBEDDINGS,
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"BLOCK(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"BLOCK(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"BLOCKattention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (r"BLOCKlayer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"BLOCK(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
    (r"BLOCK(?:output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)
_DINOV3 = _rules(
    *_EMBEDDINGS,
    (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"BLOCKnorm(\d)\.", r"blocks.\1.norm\2."),
    (r"BLOCKattention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"BLOCKlayer_scale(\d)\.lambda1$", r"blocks.\1.gamma_\2"),
    (r"BLOCKmlp\.down_proj\.", r"blocks.\1.mlp.fc2."),
)
_CLIP = _rules(
    (r"(?:vision_model\.)?embeddings\.class_embedding$", "cls_token"),
    (r"(?:vision_model\.)?embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"(?:vision_model\.)?embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"(?:vision_model\.)?pre_layrnorm\.", "norm_pre."),  # the library spells it this way
    (r"(?:vision_model\.)?post_layernorm\.", "norm."),
    (r"(?:vision_model\.)?BLOCKlayer_norm(\d)\.", r"blocks.\1.norm\2."),
    (r"(?:vision_model\.)?BLOCKself_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"(?:vision_model\.)?BLOCKmlp\.(fc\d)\.", r"blocks.\1.mlp.\2."),
)
_QUERY_KEY_VALUE = re.compile(
    rf"(?:vision_model\.)?{_BLOCK}(?:attention\.attention\.(query|key|value)|(?:attention|self_attn)\.([qkv])_proj)"
    r"\.(weight|bias)$"
)
_GATE_UP = re.compile(rf"{_BLOCK}mlp\.(gate|up)_proj\.(weight|bias)$")


def from_vit(state: State) -> State:
    """Rename ViT, Dinov2 and Dinov2-with-registers.

    Queries, keys and values are joined into one matrix. Gate and input of SwiGLU are joined too; both libraries gate
    with the first half. With registers, timm's position table has no entry for CLS: the entry is added to the CLS
    token, which gives the same sum.
    """
    state, gated = _joined(state, _GATE_UP, ("gate", "up"), "blocks.{}.mlp.fc1.{}")
    state, attention = _joined(state, _QUERY_KEY_VALUE, ("q", "k", "v"), "blocks.{}.attn.qkv.{}")
    return without_cls_position(renamed_by(state, _VIT) | gated | attention)


def from_dinov3(state: State) -> State:
    """Rename DINOv3. Its attention keys have no bias: timm stores the biases of queries and values separately (Eva)."""
    biases: State = {}
    rest: State = {}
    gated = any(".mlp.gate_proj." in name for name in state)
    inputs = {"gate": "fc1_g", "up": "fc1_x" if gated else "fc1"}
    for name, tensor in state.items():
        if (found := _QUERY_KEY_VALUE.match(name)) and found[4] == "bias":
            biases[f"blocks.{found[1]}.attn.{found[3]}_bias"] = tensor
        elif found := _GATE_UP.match(name):
            rest[f"blocks.{found[1]}.mlp.{inputs[found[2]]}.{found[3]}"] = tensor
        else:
            rest[name] = tensor
    rest, attention = _joined(rest, _QUERY_KEY_VALUE, ("q", "k", "v"), "blocks.{}.attn.qkv.{}")
    return renamed_by(rest, _DINOV3) | attention | biases


def from_clip(state: State) -> State:
    """Rename the image tower of CLIP; keys of the text tower keep their names."""
    state, attention = _joined(state, _QUERY_KEY_VALUE, ("q", "k", "v"), "blocks.{}.attn.qkv.{}")
    renamed = renamed_by(state, _CLIP) | attention
    return renamed | with_leading_axes(renamed)


def with_leading_axes(state: State) -> State:
    """Return CLS token and position table of CLIP with the axes that timm gives them: (1, 1, d) and (1, entries, d)."""
    return {
        name: state[name].reshape(1, -1, state[name].shape[-1])
        for name in ("cls_token", "pos_embed")
        if name in state and state[name].ndim
    }


def without_cls_position(state: State) -> State:
    """Return a state dict with registers, its CLS position added to the CLS token."""
    if {"reg_token", "cls_token", "pos_embed"} <= state.keys():
        table = state["pos_embed"].float()
        return state | {"cls_token": state["cls_token"].float() + table[:, :1], "pos_embed": table[:, 1:]}
    return state


def renamed_by(state: State, rules: Rules) -> State:
    """Return a state dict in which each name is rewritten by the first rule whose pattern it begins with."""

    def name_of(name: str) -> str:
        rule = next(((pattern, new) for pattern, new in rules if pattern.match(name)), None)
        return rule[0].sub(rule[1], name) if rule else name

    return {name_of(name): tensor for name, tensor in state.items()}


def _joined(state: State, pattern: re.Pattern[str], order: Sequence[str], name: str) -> tuple[State, State]:
    """Return the keys that do not match, and the joined matching parts; incomplete parts keep their names."""
    parts: dict[str, dict[str, str]] = {}
    for key in state:
        if found := pattern.match(key):
            block, *which, kind = found.groups()
            part = next(text for text in which if text)
            parts.setdefault(name.format(block, kind), {})[part if part in order else part[0]] = key
    whole = {key: found for key, found in parts.items() if len(found) == len(order)}
    joined = {key: torch.cat([state[found[part]] for part in order]) for key, found in whole.items()}
    used = {key for found in whole.values() for key in found.values()}
    return {key: tensor for key, tensor in state.items() if key not in used}, joined
