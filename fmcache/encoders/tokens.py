"""Pixels -> token grids: grid policy, normalisation, forward pass, prefix tokens dropped, rows and columns restored."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fmcache.encoders.load import Encoder
from fmcache.errors import EncoderUnavailable
from fmcache.grid import Grid
from fmcache.specs import Precision

AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def token_grids(encoder: Encoder, views: npt.NDArray[np.uint8], grid: Grid, precision: Precision) -> torch.Tensor:
    """Return the token grids of views, (view, channel, row, col) float32, on the encoder's device.

    Parameters
    ----------
    views
        (view, y, x, colour) uint8, RGB, square, `grid.tile_px` pixels.
    precision
        Of the forward pass: float32, or autocast to float16 or bfloat16.

    Raises
    ------
    EncoderUnavailable
        When the module returns another number of tokens than the grid has.

    References
    ----------
    Paper, eqs. 2 and 3: patch tokens, row by row, reshaped to d x h x w.
    """
    with torch.inference_mode():
        pixels = prepare(encoder, views, grid)
        if encoder.module is None:
            return functional.pixel_unshuffle(pixels, grid.patch)
        cast = AUTOCAST.get(precision)
        with torch.autocast(encoder.device.type, cast) if cast else contextlib.nullcontext():
            tokens = encoder.module.forward_features(pixels)  # type: ignore[operator]
        return to_grid(tokens.float(), encoder.card.prefix_tokens, grid)


def prepare(encoder: Encoder, views: npt.NDArray[np.uint8], grid: Grid) -> torch.Tensor:
    """Return what the encoder sees: (view, colour, y, x) float32 of `grid.input_px` pixels, normalised by its card.

    The policy is applied to pixels between 0 and 1, before mean and std, so that a padded rim is made of tissue and not
    of a value no image has.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(views)).to(encoder.device, non_blocking=True)
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    size = grid.input_px
    if size != grid.tile_px:
        if grid.policy == "fit":
            pixels = functional.interpolate(
                pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
        elif grid.policy == "pad":
            rim = size - grid.tile_px
            pixels = functional.pad(pixels, (0, rim, 0, rim), mode="reflect")
        else:
            pixels = pixels[..., :size, :size]
    mean, std = (
        torch.tensor(values, device=encoder.device)[:, None, None] for values in (encoder.card.mean, encoder.card.std)
    )
    return (pixels - mean) / std


def to_grid(tokens: torch.Tensor, prefix_tokens: int, grid: Grid) -> torch.Tensor:
    """Return (view, channel, row, col) of tokens (view, token, channel): prefix dropped, row by row."""
    expected = prefix_tokens + grid.side**2
    if tokens.ndim != 3 or tokens.shape[1] != expected:
        raise EncoderUnavailable(
            "the encoder's tokens do not fit the grid",
            expected=f"{expected} tokens ({prefix_tokens} prefix, {grid.side} x {grid.side} patches)",
            found=f"shape {tuple(tokens.shape)}",
            next_step="check prefix_tokens and patch of the card",
        )
    patches = tokens[:, prefix_tokens:]
    return patches.transpose(1, 2).reshape(len(tokens), -1, grid.side, grid.side).contiguous()
