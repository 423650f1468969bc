"""What a timm model gives, as the model itself tells it on the meta device, where nothing is computed.

A vision transformer gives tokens, some of which have no place in the image. Other encoders give a map with channels
first or last. Which it is, and that its rows are the image's rows, is told by the shapes at two image sizes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fmcache.encoders.building import META, build
from fmcache.encoders.cards import Card
from fmcache.errors import SpecError

Axes = Literal["tokens", "channels first", "channels last"]
"""(view, token, channel), prefix tokens first; (view, channel, row, col); (view, row, col, channel)."""

REFUSALS = (AssertionError, RuntimeError, ValueError, TypeError, IndexError)
"""What timm's models raise at images of a size that they do not take."""


class Tap(NamedTuple):
    """Where tokens can be taken within an encoder: pixels that one stands for along a side, and its channels."""

    patch: int
    width: int


class Outline(NamedTuple):
    """What a model gives; the first five are what a card says of it, under the same names.

    `taps` are the blocks of a transformer, the stages of another encoder; `depth` counts blocks only.
    """

    patch: int
    width: int
    prefix_tokens: int
    depth: int
    params: int
    axes: Axes
    taps: tuple[Tap, ...]
    native_px: int


CARD_FIELDS = ("patch", "width", "prefix_tokens", "depth", "params")


def outline(name: str, model: Any) -> Outline:
    """Return the outline of a model on the meta device.

    Raises
    ------
    SpecError
        When it gives neither one token for each square patch nor a map on a grid of its stride.
    """
    return _of_tokens(model.eval()) or _of_map(name, model)


def check_card(card: Card, model: Any) -> Outline:
    """Return the outline of a model on `META`, after checking what the card says of it.

    Raises
    ------
    SpecError
        When the card says otherwise; the field is named.
    """
    outlined = outline(card.architecture, model)
    for field in CARD_FIELDS:
        expected, found = getattr(card, field), getattr(outlined, field)
        if expected != found and (expected or field not in ("depth", "params")):
            raise SpecError(
                f"card {card.name!r} contradicts the model that timm builds from it: {field}",
                expected=f"{field}: {expected}",
                found=f"{field}: {found}",
                next_step=f"correct `{field}`, or `architecture` and `arguments`",
            )
    return outlined


def count_params(module: nn.Module) -> int:
    """Return the number of weights of a module (running statistics are none)."""
    return sum(parameter.numel() for parameter in module.parameters())


def forward_flop(card: Card, size_px: int) -> int:
    """Return the operations of one view of `size_px` forward through an encoder, as torch counts them by shapes.

    Raises
    ------
    SpecError
        When the model does not take views of that size; and as `build`.
    """
    model = build(card, META).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            model.forward_features(torch.empty(1, 3, size_px, size_px, device=META))
        except REFUSALS as reason:
            raise wrong_size(card, size_px, str(reason)) from reason
    operations: int = counter.get_total_flops()
    return operations


def taps_of(card: Card) -> tuple[Tap, ...]:
    """Return the blocks or stages where tokens of an encoder can be taken; raises as `build` and `outline`."""
    return outline(card.architecture, build(card, META)).taps


def wrong_size(card: Card, size_px: int, found: str) -> SpecError:
    """Return the error that an encoder does not take views of `size_px`."""
    return SpecError(
        f"{card.name!r} does not take views of {size_px} px",
        expected=f"a size that it can be run at; as built here, it is made for {card.native_px} px",
        found=found.partition("\n")[0] or "timm gives no reason",
        next_step=f"write `tile_px: {card.native_px}` in the recipe; build it for {size_px} px, with a card that has "
        f"`img_size: {size_px}` in its arguments, if timm takes that; or choose a model that takes any size, as plain "
        "vision transformers, ConvNeXt, ResNet and Swin do",
    )


def _of_tokens(model: Any) -> Outline | None:
    """Return the outline of a vision transformer with square patches; None of any other model."""
    embed = getattr(model, "patch_embed", None)
    size, patch = (timm.layers.to_2tuple(getattr(embed, key, None) or 0) for key in ("img_size", "patch_size"))
    if not patch[0] == patch[1] > 0 or not size[0] == size[1] > 0:
        return None
    prefix = getattr(model, "num_prefix_tokens", -1)
    found = _shape(model, size)
    if found != (1, prefix + (size[0] // patch[0]) ** 2, found[-1]):
        return None
    depth = len(getattr(model, "blocks", ()))
    tap = Tap(patch[0], found[-1])
    return Outline(*tap, prefix, depth, count_params(model), "tokens", (tap,) * depth, size[0])


def _of_map(name: str, model: Any) -> Outline:
    stages = _stages(model)
    native = _native_px(model)
    stride = stages[-1].patch if stages else 0
    square = -(-native // stride) * stride if stride else native
    try:
        found = _shape(model, (square, square))
    except REFUSALS as reason:
        raise _no_grid(name, model, f"no features at {square} px: {reason}") from reason
    if len(found) != 4:
        raise _no_grid(name, model, f"features {found or 'of other kinds'} at {square} px: not a map with rows")
    stride = stride or square // max(found[2], 1)
    try:
        wider = _shape(model, (square, square + 2 * stride))
    except REFUSALS:
        wider = ()  # it takes one size only, or few
    axes = _axes(found, wider, model)
    if axes is None:
        raise _no_grid(name, model, f"features {found} at {square} px: which axis is which is not told")
    width, side = (found[1], found[2]) if axes == "channels first" else (found[3], found[1])
    if side * stride != square:
        what = f"{side} x {side} at {square} px, where a stride of {stride} px makes {square // stride} x "
        raise _no_grid(name, model, f"{what}{square // stride}: its map does not lie on the pixels")
    taps = stages if _taps_fit(model, stages, square) else ()
    return Outline(stride, width, 0, 0, count_params(model), axes, taps, native)


def _axes(square: tuple[int, ...], wider: tuple[int, ...], model: Any) -> Axes | None:
    """Return the order of axes of features: of a square image, and of one two tokens wider (empty: not taken)."""
    if wider:
        for axes, (channel, row, col) in (("channels first", (1, 2, 3)), ("channels last", (3, 1, 2))):
            alike = square[channel] == wider[channel] and square[row] == square[col] == wider[row]
            if alike and wider[col] == square[col] + 2:
                return axes  # type: ignore[return-value]
        return None
    told = str(getattr(model, "output_fmt", "NCHW"))
    channel, row, col = (3, 1, 2) if told == "NHWC" else (1, 2, 3)
    if square[row] != square[col] or square[channel] != getattr(model, "num_features", None):
        return None
    if square[1] == square[3] and not hasattr(model, "output_fmt"):
        return None
    return "channels last" if channel == 3 else "channels first"


def _stages(model: Any) -> tuple[Tap, ...]:
    """Return the stages of which timm gives intermediate features."""
    told = getattr(model, "feature_info", None) or ()
    return tuple(Tap(int(one["reduction"]), int(one["num_chs"])) for one in getattr(told, "info", told))


def _taps_fit(model: Any, stages: tuple[Tap, ...], size_px: int) -> bool:
    """Return whether timm gives each stage as a map of its stride and channels."""
    if not stages or not hasattr(model, "forward_intermediates"):
        return False
    expected = [(1, width, size_px // patch, size_px // patch) for patch, width in stages]
    pixels = torch.empty(1, 3, size_px, size_px, device=META)
    try:
        with torch.no_grad():
            outputs = model.forward_intermediates(
                pixels, indices=list(range(len(stages))), output_fmt="NCHW", intermediates_only=True
            )
    except REFUSALS:
        return False
    return [tuple(output.shape) for output in outputs] == expected


def _native_px(model: Any) -> int:
    built = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None)
    return int(timm.layers.to_2tuple(built)[0] if built else model.pretrained_cfg["input_size"][-1])


def _shape(model: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of a model's features of one image (y, x); empty when they are no tensor."""
    with torch.no_grad():
        features = model.forward_features(torch.empty(1, 3, *size, device=META))
    return tuple(features.shape) if isinstance(features, torch.Tensor) else ()


def _no_grid(name: str, model: Any, found: str) -> SpecError:
    return SpecError(
        f"{name!r} gives no grid of tokens",
        expected="a vision transformer with square patches (one token for each, and a known number of others), or a "
        "model whose features are a map on the image's pixels",
        found=f"{type(model).__name__}: {found}",
        next_step="choose a plain vision transformer, or a model such as resnet50, convnext_tiny or "
        "swin_tiny_patch4_window7_224",
    )
