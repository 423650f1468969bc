"""Taps: where tokens are taken in an encoder (blocks or stages), on which grid, and how they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fmcache.encoders.building import ANY_SIZE, META, build
from fmcache.encoders.load import Encoder
from fmcache.encoders.outlines import REFUSALS, wrong_size
from fmcache.errors import SpecError
from fmcache.grid import GridGeometry
from fmcache.identity import canonical_json

LAST, NORM = "last", "+norm"

_CHECKED: set[tuple[str, bytes, tuple[str, ...], GridGeometry]] = set()


def grid_at(encoder: Encoder, tap: str, grid: GridGeometry) -> GridGeometry:
    """Return the grid at a tap; `grid` is that of the encoder. A stage may have its own patch size (stride)."""
    return grid if tap == LAST else grid._replace(patch=encoder.taps[_block(tap) - 1].patch)


def width_at(encoder: Encoder, tap: str) -> int:
    """Return the number of channels at a tap."""
    return encoder.card.width if tap == LAST else encoder.taps[_block(tap) - 1].width


def check_taps(encoder: Encoder, taps: Sequence[str], grid: GridGeometry) -> None:
    """Check that the encoder has the requested blocks or stages, and accepts views of the grid's size.

    Raises
    ------
    SpecError
        When it has fewer or none of them, when a stage is requested with +norm, or when it does not accept this size.
    """
    count, kind = len(encoder.taps), "block" if encoder.axes == "tokens" else "stage"
    for tap in taps:
        if tap == LAST or (_block(tap) <= count and not (kind == "stage" and NORM in tap)):
            continue
        strides = f", {', '.join(str(one.patch) for one in encoder.taps)} px a token" if kind == "stage" else ""
        normed = " without +norm: the final norm is made for the last stage" if _block(tap) <= count else ""
        raise SpecError(
            f"{encoder.card.name!r} has no {kind} {tap if normed else _block(tap)} to tap",
            expected=f"last, or a {kind} from 1 to {count}{strides}{normed}" if count else f"last: it has no {kind}s",
            found=f"tap {tap}",
            next_step="choose another --tap, or extract this encoder separately",
        )
    _check_size(encoder, taps, grid)


def _check_size(encoder: Encoder, taps: Sequence[str], grid: GridGeometry) -> None:
    """Run a view through a copy of the model on the meta device, if its size could be refused; once per process."""
    card = encoder.card
    if card.kind != "timm" or (encoder.axes == "tokens" and getattr(encoder.module, ANY_SIZE, False)):
        return  # a vision transformer that accepts any multiple of its patch size
    key = (card.architecture, canonical_json(card.arguments), tuple(taps), grid)
    if key in _CHECKED:
        return
    meta_copy = encoder._replace(module=build(card, META).eval(), device=META)
    for of_input, same_input in by_input(encoder, taps, grid).items():
        pixels = torch.empty(1, 3, of_input.input_px, of_input.input_px, device=META)
        try:
            with torch.no_grad():
                outputs = features_at(meta_copy, pixels, same_input)
        except REFUSALS as reason:
            raise wrong_size(card, of_input.input_px, str(reason)) from reason
        for tap, output in zip(same_input, outputs, strict=True):
            on_rows(meta_copy, tap, output, grid)
    _CHECKED.add(key)


def by_input(encoder: Encoder, taps: Sequence[str], grid: GridGeometry) -> dict[GridGeometry, list[str]]:
    """Return the taps grouped by encoder input: the keys are grids, each with the input size of its taps."""
    by_size: dict[int, tuple[GridGeometry, list[str]]] = {}
    for tap in taps:
        at = grid_at(encoder, tap, grid)
        by_size.setdefault(at.input_px, (at, []))[1].append(tap)
    return dict(by_size.values())


def _block(tap: str) -> int:
    return int(tap.removesuffix(NORM))


def features_at(encoder: Encoder, pixels: torch.Tensor, taps: Sequence[str]) -> list[torch.Tensor]:
    """Return the features at each tap: patch tokens (view, token, channel), or maps (view, channel, row, col)."""
    module: Any = encoder.module  # a timm model if blocks are requested
    blocks = sorted({_block(tap) for tap in taps if tap != LAST})
    if not blocks:
        return [_without_prefix(encoder, module.forward_features(pixels))]
    final, outputs = module.forward_intermediates(
        pixels,
        indices=[block - 1 for block in blocks],
        output_fmt="NLC" if encoder.axes == "tokens" else "NCHW",
        stop_early=LAST not in taps,
    )
    after = dict(zip(blocks, outputs, strict=True))  # timm has removed the prefix tokens
    return [
        _without_prefix(encoder, final) if tap == LAST else module.norm(after[_block(tap)]) if NORM in tap
        else after[_block(tap)]
        for tap in taps
    ]  # fmt: skip


def _without_prefix(encoder: Encoder, features: torch.Tensor) -> torch.Tensor:
    if encoder.axes == "tokens":
        return features[:, encoder.card.prefix_tokens :]
    return features if encoder.axes == "channels first" else features.permute(0, 3, 1, 2)


def on_rows(encoder: Encoder, tap: str, features: torch.Tensor, grid: GridGeometry) -> torch.Tensor:
    """Return (view, channel, row, col) from patch tokens (view, token, channel) or from a map."""
    side, width, card = grid_at(encoder, tap, grid).side, width_at(encoder, tap), encoder.card
    tokens = encoder.axes == "tokens"
    expected = (len(features), side**2, width) if tokens else (len(features), width, side, side)
    if features.shape != expected:
        named = f"(view, token, channel) = {expected} after {card.prefix_tokens} prefix tokens"
        raise SpecError(
            f"{card.name!r} gave tokens that do not match the grid",
            expected=named if tokens else f"(view, channel, row, col) = {expected}",
            found=str(tuple(features.shape)),
            next_step="correct patch, width and prefix_tokens in the card"
            if tokens
            else f"choose another tile_px: a multiple of {card.patch} is most likely to work",
        )
    by_channel = features.transpose(1, 2) if tokens else features
    # A copy made outside inference mode is an ordinary tensor, on which a decoder can be trained directly.
    grids = by_channel.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return grids.reshape(len(features), width, side, side)
