"""The layouts in which weights files are published: how each is recognised, and how it is renamed to timm's names.

The renaming itself is in `hf_names` and `publisher_names`. `peeling` removes what home-made checkpoints add. `fitting`
fits the result to a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from fmcache.encoders import hf_names, publisher_names
from fmcache.encoders.cards import Card, LayoutName, Weights
from fmcache.encoders.peeling import Drop, State, inside, unchunked, without_infixes
from fmcache.encoders.state_shapes import looks, shapes_of
from fmcache.errors import WeightsMismatch, some

_STORED = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}
_NEVER = re.compile(r"(?!)")


class WeightLayout(NamedTuple):
    """A published naming of keys: its marker (a key that no other layout has), and its renaming.

    `unused` matches keys of the layout that no token depends on.
    """

    marker: re.Pattern[str]
    rename: Callable[[State], State]
    unused: re.Pattern[str] = _NEVER


LAYOUTS: dict[LayoutName, WeightLayout] = {
    "hf-dinov3": WeightLayout(
        re.compile(r"embeddings\.patch_embeddings\.weight$|(?:model\.)?layer\.\d+\.layer_scale1\."),
        hf_names.from_dinov3,
        hf_names.MASK_TOKEN,
    ),
    "hf-dinov2-registers": WeightLayout(
        re.compile(r"embeddings\.register_tokens$"), hf_names.from_vit, hf_names.MASK_TOKEN
    ),
    "hf-dinov2": WeightLayout(
        re.compile(r"encoder\.layers?\.\d+\.layer_scale1\."), hf_names.from_vit, hf_names.MASK_TOKEN
    ),
    "hf-vit": WeightLayout(
        re.compile(r"(?:encoder\.)?layers?\.\d+\.layernorm_before\."), hf_names.from_vit, hf_names.MASK_TOKEN
    ),
    "hf-clip": WeightLayout(
        re.compile(r"(?:vision_model\.)?embeddings\.class_embedding$"),
        hf_names.from_clip,
        re.compile(r"(?:vision_model\.)?embeddings\.position_ids$"),
    ),
    "conch": WeightLayout(re.compile(r"visual\.trunk\."), publisher_names.below("visual.trunk.")),
    "conchv1.5": WeightLayout(re.compile(r"trunk\."), publisher_names.below("trunk.")),
    "open-clip": WeightLayout(re.compile(r"(?:visual\.)?class_embedding$"), publisher_names.from_open_clip),
    "torchvision": WeightLayout(re.compile(r"encoder\.layers\.encoder_layer_\d+\."), publisher_names.from_torchvision),
    "mmpretrain": WeightLayout(re.compile(r"layers\.\d+\.ffn\.layers\."), publisher_names.from_mmpretrain),
    "dinov3": WeightLayout(re.compile(r"storage_tokens$"), publisher_names.from_dinov3, publisher_names.CONSTANTS),
    "dinov2": WeightLayout(
        re.compile(r"(register_tokens|mask_token)$"), publisher_names.from_dinov2, re.compile(r"mask_token$")
    ),
}
"""Every layout except timm's own. A file has the first layout whose marker is found."""


def published(names: Iterable[str]) -> LayoutName:
    """Return the layout whose marker is among the keys; ``timm`` when there is no marker."""
    names = tuple(names)
    return next((name for name, layout in LAYOUTS.items() if any(map(layout.marker.match, names))), "timm")


class Renamed(NamedTuple):
    """A state dict with timm's names, the layout of its file, and notes on which weights were chosen."""

    state: State
    layout: LayoutName
    notes: tuple[str, ...]


def to_timm(path: Path, stored: State, card: Card) -> Renamed:
    """Return the state dict in a file with timm's names, without the keys in the card's `weights.drop`.

    First keys are dropped. Then a prefix that all remaining keys share (``module.``, ``teacher.backbone.``) is removed.
    This repeats until the encoder's own names begin. Chunks of blocks get continuous numbers.

    Raises
    ------
    WeightsMismatch
        When the file has none of the card's layouts, when it is unclear which of several state dicts to use, or when
        values are quantised, infinite or NaN.
    """
    weights = card.weights or Weights()
    accepted = weights.layouts or ("timm", *LAYOUTS)
    drop = Drop(weights.drop)
    state, notes = without_infixes(stored), []
    while True:
        state = drop(state)
        layout = published(state)
        level = None if layout != "timm" and layout in accepted else inside(state, weights.under.split("."), str(path))
        if level is None:
            break
        state = level.state
        notes += [level.note] if level.note else []
    if layout not in accepted:
        raise _other_layout(path, card, state, layout)
    rename, unused = (LAYOUTS[layout].rename, LAYOUTS[layout].unused) if layout in LAYOUTS else (unchunked, _NEVER)
    _check_values(path, {name: tensor for name, tensor in state.items() if not unused.match(name)})
    renamed = {name: tensor for name, tensor in rename(state).items() if not unused.match(name)}
    return Renamed(drop(renamed), layout, tuple(notes))


def _other_layout(path: Path, card: Card, state: State, layout: LayoutName) -> WeightsMismatch:
    weights = card.weights or Weights()
    return WeightsMismatch(
        f"{path} does not fit {card.name!r}: its keys have another layout",
        expected=f"layout {' or '.join(weights.layouts)}",
        found=f"layout {layout}: {looks(shapes_of(state))}",
        next_step="pass the file of this encoder, or list the layout in the card "
        f"(`weights.layouts: [{', '.join([*weights.layouts, layout])}]`)",
    )


def _check_values(path: Path, state: State) -> None:
    quantised = [name for name, tensor in state.items() if tensor.dtype not in _STORED]
    if quantised:
        kinds = sorted({str(state[name].dtype).removeprefix("torch.") for name in quantised})
        raise WeightsMismatch(
            f"{path} holds quantised weights",
            expected="float32, float16, bfloat16 or float64",
            found=f"{', '.join(kinds)} in {len(quantised)} of {len(state)} keys: {some(sorted(quantised))}",
            next_step="pass the original weights, not quantised: fmcache does not know the scales",
        )
    broken = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.is_meta and (count := int((~tensor.isfinite()).sum())):
            broken[name] = count
    if broken:
        raise WeightsMismatch(
            f"{path} holds values that are NaN or infinite",
            expected="finite weights",
            found=f"{sum(broken.values())} values in {len(broken)} keys: "
            + some(f"{name} ({count} of {state[name].numel()})" for name, count in broken.items()),
            next_step="fetch the file again, or use a checkpoint from before the training diverged",
        )
