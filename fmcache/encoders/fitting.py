"""Fit weights (timm's names) to their model: every key must be used, otherwise an error says what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from fmcache.encoders.advice import advice
from fmcache.encoders.cards import Card
from fmcache.encoders.peeling import State
from fmcache.encoders.state_shapes import Shapes, looks, shapes_of
from fmcache.errors import WeightsMismatch, some

_LAYER_SCALE = re.compile(r"\.(ls\d+\.gamma|gamma_\d+)$")
_BIAS = re.compile(r".*\.attn\.[qkv]_bias$")


def fit_weights(path: Path, state: State, card: Card, model: Mapping[str, torch.Tensor]) -> State:
    """Return `state` (timm's names) as a state dict for the `model` whose names, shapes and types are given.

    Every key must be used. The model is built at the size of the file's position table, so that the table is loaded
    unchanged; at other image sizes timm resamples it once, with antialiased bicubic interpolation. Attention biases
    that are all zero also fit a model without them, because it computes the same.

    Raises
    ------
    WeightsMismatch
        When keys are missing, left over, or have another shape or type, or when LayerScale holds only one value.
    """
    state = {
        name: tensor
        for name, tensor in state.items()
        if name in model or not _BIAS.match(name) or tensor.is_meta or bool(tensor.any())
    }
    found, wanted = shapes_of(state), shapes_of(model)
    if found != wanted:
        raise _misfit(path, card, state, found, wanted)
    whole = [
        name for name, tensor in state.items() if model[name].is_floating_point() and not tensor.dtype.is_floating_point
    ]
    if whole:
        raise WeightsMismatch(
            f"{path} holds integers instead of weights",
            expected="float32, float16, bfloat16 or float64",
            found=f"{len(whole)} keys: {some(sorted(whole))}",
            next_step="pass the original weights, not quantised and not cast to integers",
        )
    scales = [tensor for name, tensor in state.items() if _LAYER_SCALE.search(name)]
    if scales and all(bool((scale == scales[0].flatten()[0]).all()) for scale in scales):
        raise WeightsMismatch(
            f"{path} does not seem to hold a trained LayerScale",
            expected="gammas that differ from each other",
            found=f"{float(scales[0].flatten()[0]):g} in all {len(scales)} gammas: their initial value",
            next_step="fetch the trained weights, or run an untrained model with --random-weights",
        )
    # Copied, because tensors of a mapped file would change or disappear with the file.
    return {name: tensor.to(model[name].dtype, copy=True).contiguous() for name, tensor in state.items()}


def _misfit(path: Path, card: Card, state: State, found: Shapes, wanted: Shapes) -> WeightsMismatch:
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
        expected=f"{len(wanted)} keys: {looks(wanted)}",
        found=f"{len(found)} keys: {looks(found)}; "
        + "; ".join(f"{len(keys)} {what}: {some(sorted(keys))}" for what, keys in groups.items() if keys),
        next_step=advice(path, card, state, wanted)
        or "pass the file of this encoder; if it holds more, list the rest in `weights.drop` of a card",
    )
