"""The output of a timm model, found by running the model on the meta device, where no values are computed.

A vision transformer gives tokens; some of them (prefix tokens) have no place in the image. Other encoders give a map
with channels first or last. The shapes at two image sizes show which it is, and that its rows are those of the image.
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
"""What timm's models raise for images of a size that they do not accept."""


class Tap(NamedTuple):
    """A place in an encoder where tokens can be taken: side of the area of one token in pixels, and channels."""

    patch: int
    width: int


class Outline(NamedTuple):
    """The facts of a model's output. The first five fields have the same names in a card.

    `taps` are the blocks of a transformer, or the stages of another encoder. `depth` counts only blocks.
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
        When it gives neither one token for each square patch nor a map on the grid of its stride.
    """
    return _of_tokens(model.eval()) or _of_map(name, model)


def check_card(card: Card, model: Any) -> Outline:
    """Return the outline of a model on `META`, after checking the card against it.

    Raises
    ------
    SpecError
        When a field of the card differs; the message names the field.
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
    """Return the number of weights of a module (running statistics do not count)."""
    return sum(parameter.numel() for parameter in module.parameters())


def forward_flop(card: Card, size_px: int) -> int:
    """Return the operations of the forward pass of one view of `size_px`, as torch counts them from shapes.

    Raises
    ------
    SpecError
        When the model does not accept views of this size, and as in `build`.
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
    """Return the error that an encoder does not accept views of `size_px`."""
    return SpecError(
        f"{card.name!r} does not accept views of {size_px} px",
        expected=f"a size that it accepts; as built here, it is made for {card.native_px} px",
        found=found.partition("\n")[0] or "timm gives no reason",
        next_step=f"write `tile_px: {card.native_px}` in the recipe; or use a card with `img_size: {size_px}` in its "
        f"arguments, if timm accepts this; or choose a model that accepts any size, for example a plain vision "
        "transformer, ConvNeXt, ResNet or Swin",
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
        wider = ()  # it accepts only one size, or a few sizes
    axes = _axes(found, wider, model)
    if axes is None:
        raise _no_grid(name, model, f"features {found} at {square} px: the order of the axes is unclear")
    width, side = (found[1], found[2]) if axes == "channels first" else (found[3], found[1])
    if side * stride != square:
        what = f"{side} x {side} at {square} px, where a stride of {stride} px gives {square // stride} x "
        raise _no_grid(name, model, f"{what}{square // stride}: its map does not match the pixels")
    taps = stages if _taps_fit(model, stages, square) else ()
    return Outline(stride, width, 0, 0, count_params(model), axes, taps, native)


def _axes(square: tuple[int, ...], wider: tuple[int, ...], model: Any) -> Axes | None:
    """Return the order of axes, from feature shapes of a square image and of one two tokens wider (empty: refused)."""
    if wider:
        for axes, (channel, row, col) in (("channels first", (1, 2, 3)), ("channels last", (3, 1, 2))):
            alike = square[channel] == wider[channel] and square[row] == square[col] == wider[row]
            if alike and wider[col] == square[col] + 2:
                return axes  # type: ignore[return-value]
        return None
    stated = str(getattr(model, "output_fmt", "NCHW"))
    channel, row, col = (3, 1, 2) if stated == "NHWC" else (1, 2, 3)
    if square[row] != square[col] or square[channel] != getattr(model, "num_features", None):
        return None
    if square[1] == square[3] and not hasattr(model, "output_fmt"):
        return None
    return "channels last" if channel == 3 else "channels first"


def _stages(model: Any) -> tuple[Tap, ...]:
    """Return the stages for which timm gives intermediate features."""
    stated = getattr(model, "feature_info", None) or ()
    return tuple(Tap(int(one["reduction"]), int(one["num_chs"])) for one in getattr(stated, "info", stated))


def _taps_fit(model: Any, stages: tuple[Tap, ...], size_px: int) -> bool:
    """Return whether timm gives each stage as a map with its stride and channels."""
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
    """Return the shape of a model's features of one image (y, x); empty when they are not a tensor."""
    with torch.no_grad():
        features = model.forward_features(torch.empty(1, 3, *size, device=META))
    return tuple(features.shape) if isinstance(features, torch.Tensor) else ()


def _no_grid(name: str, model: Any, found: str) -> SpecError:
    return SpecError(
        f"{name!r} gives no grid of tokens",
        expected="a vision transformer with square patches (one token for each patch, and a known number of prefix "
        "tokens), or a model whose features are a map of the image's pixels",
        found=f"{type(model).__name__}: {found}",
        next_step="choose a plain vision transformer, or a model such as resnet50, convnext_tiny or "
        "swin_tiny_patch4_window7_224",
    )
