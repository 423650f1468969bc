"""From the names in publishers' own code for the weights of vision transformers to timm's names."""

from __future__ import annotations

import re
from collections.abc import Callable

from fmcache.encoders.hf_names import renamed_by, with_leading_axes, without_cls_position
from fmcache.encoders.peeling import State

CONSTANTS = re.compile(r"mask_token$|.*(?:rope_embed\.periods|attn\.qkv\.bias_mask)$")
"""What DINOv3 stores beside its weights: the token for hidden patches, wavelengths of positions, the bias mask."""

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

_TORCHVISION = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"class_token$", "cls_token"),
        (r"conv_proj\.", "patch_embed.proj."),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (r"encoder\.ln\.", "norm."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    )
)
_MMPRETRAIN = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"patch_embed\.projection\.", "patch_embed.proj."),
        (r"(?:ln1|norm1)\.", "norm."),
        (r"layers\.(\d+)\.(?:ln|norm)(\d)\.", r"blocks.\1.norm\2."),
        (r"layers\.(\d+)\.attn\.gamma1\.weight$", r"blocks.\1.ls1.gamma"),
        (r"layers\.(\d+)\.ffn\.gamma2\.weight$", r"blocks.\1.ls2.gamma"),
        (r"layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
        (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
        (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    )
)


def below(prefix: str) -> Callable[[State], State]:
    """Return the renaming that removes a prefix."""

    def rename(state: State) -> State:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    return rename


def from_dinov2(state: State) -> State:
    """Rename DINOv2: registers and SwiGLU (w12, w3). With registers, the position of CLS is added to the CLS token."""
    rules = {"register_tokens": "reg_token"}
    renamed = {
        rules.get(name, name).replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in state.items()
    }
    return without_cls_position(renamed)


def from_dinov3(state: State) -> State:
    """Rename DINOv3. Its attention keys have masked biases. Biases that are not masked get a name that fits no model.

    timm stores the biases of queries and values separately (class Eva).
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
    """Rename the image tower of CLIP in the naming of OpenAI and OpenCLIP; keys of the text tower keep their names."""
    whole = any(name.startswith("visual.") for name in state)  # then names without this prefix are of the text tower
    texts = {name: tensor for name, tensor in state.items() if whole and not name.startswith("visual.")}
    images = renamed_by({name: tensor for name, tensor in state.items() if name not in texts}, _OPEN_CLIP)
    return images | texts | with_leading_axes(images | texts)


def from_torchvision(state: State) -> State:
    """Rename torchvision's VisionTransformer."""
    return renamed_by(state, _TORCHVISION)


def from_mmpretrain(state: State) -> State:
    """Rename the VisionTransformer of MMPretrain and MMSegmentation."""
    return renamed_by(state, _MMPRETRAIN)
