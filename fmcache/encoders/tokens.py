"""From views to token grids: scale, resize to the encoder's grid, normalise, run, drop prefix tokens, reshape."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fmcache.encoders.load import Encoder
from fmcache.encoders.taps import LAST, by_input, check_taps, features_at, on_rows
from fmcache.errors import NoMemory, SpecError
from fmcache.grid import GridGeometry
from fmcache.shortage import lacks_memory
from fmcache.specs import Precision

FIRST_BATCH = {"cpu": 4, "cuda": 32}
"""Views per batch of an encoder, if memory allows."""

_BATCH_SIZE: dict[torch.device, int] = {}
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def token_grids(
    encoder: Encoder, images: NDArray[np.uint8] | torch.Tensor, grid: GridGeometry, precision: Precision = "float32"
) -> torch.Tensor:
    """Return the token grids (view, channel, row, col) after the final norm; see `tapped_grids`."""
    return tapped_grids(encoder, images, grid, precision, (LAST,))[0]


def tapped_grids(
    encoder: Encoder,
    images: NDArray[np.uint8] | torch.Tensor,
    grid: GridGeometry,
    precision: Precision,
    taps: Sequence[str],
) -> list[torch.Tensor]:
    """Return the token grids (view, channel, row, col) float32, on the encoder's device, of RGB images at each tap.

    images: (view, y, x, colour) uint8, with the size of the grid's tile. In half `precision` the weights stay float32,
    and torch's autocast chooses the operations. All taps come from one forward pass, unless their grids (`grid_at`)
    need inputs of different sizes.

    Raises
    ------
    SpecError
        When images and grid, or grid and encoder, do not match, or there is no such tap.
    """
    check_taps(encoder, taps, grid)
    dtype = AUTOCAST[precision]
    found: dict[str, torch.Tensor] = {}
    for of_input, same_input in by_input(encoder, taps, grid).items():
        pixels = input_pixels(encoder, images, grid, of_input)
        with torch.inference_mode(), torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = features_at(encoder, pixels, same_input)
        found |= {tap: on_rows(encoder, tap, one, grid) for tap, one in zip(same_input, outputs, strict=True)}
    return [found[tap] for tap in taps]


def grids_of_views(
    encoder: Encoder, views: Iterable[NDArray[np.uint8]], grid: GridGeometry, precision: Precision, taps: Sequence[str]
) -> Iterator[list[torch.Tensor]]:
    """Yield `tapped_grids` of views (y, x, colour), in batches as large as the memory of the device allows.

    A batch that does not fit is halved and run again. From then on the process uses the smaller size.

    Raises
    ------
    NoMemory
        When not even one view fits.
    SpecError
        When blocks cannot be compiled (--compile), and as in `tapped_grids`.
    """
    source, device = iter(views), encoder.device
    waiting: deque[NDArray[np.uint8]] = deque()
    while True:
        waiting.extend(islice(source, max(0, batch_size(device) - len(waiting))))
        size = min(batch_size(device), len(waiting))
        if not size:
            return
        try:
            grids = tapped_grids(encoder, np.stack(list(islice(waiting, size))), grid, precision, taps)
        except (RuntimeError, MemoryError) as reason:
            # recognised by module name: importing these error classes would take seconds, also without --compile
            if type(reason).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise SpecError(
                    "torch.compile does not work here",
                    found=str(reason).partition("\n")[0],
                    next_step="run without --compile, or install what it needs (a C++ compiler; for a GPU, Triton)",
                ) from reason
            if not lacks_memory(reason):
                raise
            if size == 1:
                raise NoMemory(
                    f"not enough memory on {device} for one view of {grid.tile_px} px in {encoder.card.name!r}",
                    found=str(reason).partition(". ")[0],
                    next_step="use smaller tiles, another --device, or stop other programs that use its memory",
                ) from reason
            _BATCH_SIZE[device] = size // 2
            continue
        for _ in range(size):
            waiting.popleft()
        yield grids


def batch_size(device: torch.device) -> int:
    """Return the number of views per batch of an encoder in this process."""
    return _BATCH_SIZE.get(device, FIRST_BATCH[device.type])


def input_pixels(
    encoder: Encoder, images: NDArray[np.uint8] | torch.Tensor, grid: GridGeometry, of_tap: GridGeometry | None = None
) -> torch.Tensor:
    """Return the encoder's input: (view, colour, y, x) float32, normalised, a whole number of patches per side.

    `of_tap` is the grid at a tap that has its own patch size.

    Raises
    ------
    SpecError
        When the images are not uint8 RGB of the grid's tile size, or the grid has another patch size than the encoder.
    """
    card = encoder.card
    images = torch.as_tensor(images)
    shape = (len(images), grid.tile_px, grid.tile_px, 3)
    if images.shape != shape or images.dtype != torch.uint8 or grid.patch != card.patch:
        raise SpecError(
            f"these images are not a valid input of {card.name!r}",
            expected=f"uint8 (view, y, x, colour) = {shape}, patches of {card.patch} px",
            found=f"{images.dtype} {tuple(images.shape)}, patches of {grid.patch} px",
        )
    if encoder.device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()  # without pinned memory the host would wait for the copy
    scaled = images.to(encoder.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(c).view(1, 3, 1, 1).to(encoder.device, non_blocking=True) for c in (card.mean, card.std))
    return (on_input_grid(scaled, of_tap or grid) - mean) / std


def on_input_grid(pixels: torch.Tensor, grid: GridGeometry) -> torch.Tensor:
    """Return 0..1 pixels (view, colour, y, x) resized, reflected or cropped from tile size to input size."""
    if grid.tile_px == grid.input_px:
        return pixels
    if grid.policy == "crop":
        return pixels[..., : grid.input_px, : grid.input_px]
    if grid.policy == "pad":
        index = torch.arange(grid.input_px, device=pixels.device)
        period = max(1, 2 * (grid.tile_px - 1))  # a row of pixels forward and back, its ends counted once
        index = torch.minimum(index % period, -index % period)
        return pixels[..., index, :][..., index]
    size = (grid.input_px, grid.input_px)
    resized = functional.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 1)  # bicubic interpolation overshoots at edges; images saved as bytes are clamped too
