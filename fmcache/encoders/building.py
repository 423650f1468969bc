"""From a card to the model that timm builds, without weights or with timm's initial weights."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from torch import nn

from fmcache.encoders.cards import Card, LayoutName
from fmcache.errors import SpecError

CLASSES: dict[str, dict[str, type[nn.Module]]] = {
    "mlp_layer": {"swiglu_packed": timm.layers.SwiGLUPacked},
    "act_layer": {"silu": nn.SiLU, "gelu": nn.GELU, "quick_gelu": timm.layers.QuickGELU},
}
"""Arguments of timm that take classes, and the names of these classes in cards."""

META = torch.device("meta")
CPU = torch.device("cpu")

ANY_SIZE = "dynamic_img_size"
"""Argument of timm that lets a transformer take images of any size; convolutional models do not need it."""

_REASONS = (TypeError, RuntimeError, ValueError, AssertionError)


def build(card: Card, device: torch.device) -> Any:
    """Return the timm model of a card on `device`, as timm initialises it.

    Raises
    ------
    SpecError
        When timm has no such model, or does not accept the card's arguments.
    """
    return create(card.architecture, _with_classes(card), device)


def create(architecture: str, arguments: dict[str, Any], device: torch.device) -> Any:
    """Return a timm model without classifier, on `device`. The caller must protect torch's global generators.

    Raises
    ------
    SpecError
        As in `build`.
    """
    if not timm.is_model(architecture):  # this also refuses hub names, whose configuration timm would download
        close = difflib.get_close_matches(architecture, timm.list_models(), n=4)
        raise SpecError(
            f"timm {timm.__version__} has no model {architecture!r}",
            expected=", ".join(close) or "a name from timm.list_models()",
            next_step="correct the name",
        )
    try:
        with device:
            try:
                return timm.create_model(architecture, num_classes=0, **{ANY_SIZE: True}, **arguments)
            except TypeError as reason:
                if ANY_SIZE not in str(reason):
                    raise
            return timm.create_model(architecture, num_classes=0, **arguments)
    except _REASONS as reason:
        raise SpecError(
            f"timm cannot build {architecture!r} as an encoder",
            expected="a model that accepts the arguments of the card",
            found=str(reason) or type(reason).__name__,
            next_step="correct the arguments, or choose another model",
        ) from reason


def gelu_note(card: Card, layout: LayoutName, model: Any) -> str:
    """Return a note when weights are named like CLIP's and the model computes GELU; otherwise ''.

    OpenAI trained CLIP with another form of GELU (quick-GELU), others did not. A weights file does not show which.
    """
    activation = getattr(getattr(next(iter(getattr(model, "blocks", ())), None), "mlp", None), "act", None)
    if layout not in ("hf-clip", "open-clip") or type(activation) is not nn.GELU:
        return ""
    quick = card.architecture.replace("_clip_", "_clip_quickgelu_")
    known = quick != card.architecture and timm.is_model(quick)
    way = f"`architecture: {quick}` (timm:{quick})" if known else "`act_layer: quick_gelu` in the arguments"
    return (
        f"{card.name} computes GELU, and the keys of the file are named like CLIP's. If the weights are OpenAI's, or "
        f"were trained from them, the activation is quick-GELU (a file does not show this): then write {way} in a card"
    )


def _with_classes(card: Card) -> dict[str, Any]:
    arguments = dict(card.arguments)
    for key, known in CLASSES.items():
        name = arguments.get(key)
        if name is None:
            continue
        if name not in known:
            raise SpecError(
                f"card {card.name!r}: arguments.{key} has no class called {name!r}",
                expected=", ".join(known),
                next_step="write one of these names",
            )
        arguments[key] = known[name]
    return arguments
