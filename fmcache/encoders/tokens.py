"""Views -> token grids: scale, lay onto the encoder's grid, normalise, run, drop prefix tokens, reshape."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fmcache.encoders.load import Encoder
from fmcache.errors import SpecError
from fmcache.grid import Grid
from fmcache.specs import Precision

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def token_grids(
    encoder: Encoder, images: NDArray[np.uint8] | torch.Tensor, grid: Grid, precision: Precision = "float32"
) -> torch.Tensor:
    """Return token grids (view, channel, row, col) float32, on the encoder's device, of RGB images.

    images: (view, y, x, colour) uint8, as large as the grid's tile. In half `precision` the weights stay float32 and
    torch's autocast picks the operations.

    Raises
    ------
    SpecError
        When images and grid, or grid and encoder, do not belong together.
    """
    pixels = input_pixels(encoder, images, grid)
    dtype = AUTOCAST[precision]
    with torch.inference_mode(), torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
        tokens = encoder.module.forward_features(pixels)
    card = encoder.card
    expected = (len(pixels), card.prefix_tokens + grid.side**2, card.width)
    if tokens.shape != expected:
        raise SpecError(
            f"{card.name!r} gave tokens that do not lie on the grid",
            expected=f"(view, token, channel) = {expected}: {card.prefix_tokens} prefix, {grid.side}² patches",
            found=str(tuple(tokens.shape)),
            next_step="correct patch, width and prefix_tokens in the card",
        )
    by_channel = tokens[:, card.prefix_tokens :].transpose(1, 2)
    # A copy made outside inference mode is an ordinary tensor: a decoder can be trained on it directly.
    grids = by_channel.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return grids.reshape(len(pixels), card.width, grid.side, grid.side)


def input_pixels(encoder: Encoder, images: NDArray[np.uint8] | torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return what the encoder sees: (view, colour, y, x) float32, normalised, a whole number of patches each way.

    Raises
    ------
    SpecError
        When the images are not RGB bytes of the grid's tile size, or the grid is not of the encoder's patches.
    """
    card = encoder.card
    images = torch.as_tensor(images)
    shape = (len(images), grid.tile_px, grid.tile_px, 3)
    if images.shape != shape or images.dtype != torch.uint8 or grid.patch != card.patch:
        raise SpecError(
            f"these images cannot go through {card.name!r}",
            expected=f"uint8 (view, y, x, colour) = {shape}, patches of {card.patch} px",
            found=f"{images.dtype} {tuple(images.shape)}, patches of {grid.patch} px",
        )
    scaled = images.to(encoder.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(c, device=encoder.device).view(1, 3, 1, 1) for c in (card.mean, card.std))
    return (_on_grid(scaled, grid) - mean) / std


def _on_grid(pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return 0..1 pixels (view, colour, y, x) resized, reflected or cropped from tile size to input size."""
    if grid.tile_px == grid.input_px:
        return pixels
    if grid.policy == "crop":
        return pixels[..., : grid.input_px, : grid.input_px]
    if grid.policy == "pad":
        index = torch.arange(grid.input_px, device=pixels.device)
        period = max(1, 2 * (grid.tile_px - 1))  # a row of pixels there and back, its ends counted once
        index = torch.minimum(index % period, -index % period)
        return pixels[..., index, :][..., index]
    size = (grid.input_px, grid.input_px)
    resized = functional.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 1)  # bicubic overshoots at edges; images saved as bytes are clamped too
