"""Names that publishers' own code gives to the weights of vision transformers -> timm's names."""

from __future__ import annotations

import re
from collections.abc import Callable

from fmcache.encoders.hf_names import with_leading_axes, without_cls_position
from fmcache.encoders.peeling import State

CONSTANTS = re.compile(r"mask_token$|.*(?:rope_embed\.periods|attn\.qkv\.bias_mask)$")
"""What DINOv3 stores beside its weights: the token of hidden patches, wave lengths of positions, the mask of biases."""

_MASK = ".attn.qkv.bias_mask"
_DINOV3 = (
    ("storage_tokens", "reg_token"),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
)
_OPEN_CLIP = tuple(
    (re.compile(rf"(?:visual\.)?{pattern}"), new)
    for pattern, new in (
        (r"class_embedding$", "cls_token"),
        (r"positional_embedding$", "pos_embed"),
        (r"conv1\.", "patch_embed.proj."),
        (r"ln_pre\.", "norm_pre."),
        (r"ln_post\.", "norm."),
        (r"transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
        (r"transformer\.resblocks\.(\d+)\.ls_(\d)\.", r"blocks.\1.ls\2."),
    )
)


def below(prefix: str) -> Callable[[State], State]:
    """Return the renaming that takes off a prefix."""

    def rename(state: State) -> State:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    return rename


def from_dinov2(state: State) -> State:
    """Rename DINOv2: registers, SwiGLU (w12, w3), and the position of CLS added to CLS where there are registers."""
    rules = {"register_tokens": "reg_token"}
    renamed = {
        rules.get(name, name).replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in state.items()
    }
    return without_cls_position(renamed)


def from_dinov3(state: State) -> State:
    """Rename DINOv3. Its biases of keys are masked; a file in which they are not keeps them, under a name of no model.

    timm keeps the biases of queries and values apart (class Eva).
    """
    renamed: State = {}
    for name, tensor in state.items():
        block, _, ending = name.partition(".attn.qkv.")
        if ending == "bias":
            mask = state.get(block + _MASK)
            masked = tensor if mask is None or mask.shape != tensor.shape else tensor * (mask != 0)
            for part, values in zip("qkv", masked.chunk(3), strict=False):
                if part != "k" or values.is_meta or bool(values.any()):
                    renamed[f"{block}.attn.{part}_bias"] = values
            continue
        for old, new in _DINOV3:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def from_open_clip(state: State) -> State:
    """Rename the image tower of CLIP as OpenAI and OpenCLIP name it; keys of the text tower keep their names."""
    whole = any(name.startswith("visual.") for name in state)  # then names without it are of the text tower
    renamed: State = {}
    for name, tensor in state.items():
        rules = _OPEN_CLIP if not whole or name.startswith("visual.") else ()
        rule = next(((pattern, new) for pattern, new in rules if pattern.match(name)), None)
        renamed[rule[0].sub(rule[1], name) if rule else name] = tensor
    return renamed | with_leading_axes(renamed)
