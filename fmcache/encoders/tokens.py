"""Views -> token grids: scale, lay onto the encoder's grid, normalise, run, drop prefix tokens, reshape."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fmcache.encoders.cards import Card
from fmcache.encoders.load import Encoder
from fmcache.errors import NoRoom, SpecError
from fmcache.grid import Grid
from fmcache.specs import Precision

LAST, NORM = "last", "+norm"
FIRST_BATCH = {"cpu": 4, "cuda": 32}
"""Views that go through an encoder at once, as long as memory allows."""

_BATCH_SIZE: dict[torch.device, int] = {}
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def token_grids(
    encoder: Encoder, images: NDArray[np.uint8] | torch.Tensor, grid: Grid, precision: Precision = "float32"
) -> torch.Tensor:
    """Return the token grids (view, channel, row, col) after the final norm; as `tapped_grids`."""
    return tapped_grids(encoder, images, grid, precision, (LAST,))[0]


def tapped_grids(
    encoder: Encoder,
    images: NDArray[np.uint8] | torch.Tensor,
    grid: Grid,
    precision: Precision,
    taps: Sequence[str],
) -> list[torch.Tensor]:
    """Return the token grids (view, channel, row, col) float32, on the encoder's device, of RGB images at each tap.

    images: (view, y, x, colour) uint8, as large as the grid's tile. In half `precision` the weights stay float32 and
    torch's autocast picks the operations. All taps come from one forward pass.

    Raises
    ------
    SpecError
        When images and grid, or grid and encoder, do not belong together, or there is no such tap.
    """
    check_taps(encoder, taps)
    pixels = input_pixels(encoder, images, grid)
    dtype = AUTOCAST[precision]
    with torch.inference_mode(), torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
        at = _forward(encoder, pixels, taps)
    return [_on_rows(encoder.card, tokens, grid) for tokens in at]


def grids_of_views(
    encoder: Encoder, views: Iterable[NDArray[np.uint8]], grid: Grid, precision: Precision, taps: Sequence[str]
) -> Iterator[list[torch.Tensor]]:
    """Yield `tapped_grids` of views (y, x, colour), in batches as large as the device's memory allows.

    A batch that does not fit is halved and run again; the process keeps to the smaller size from then on.

    Raises
    ------
    NoRoom
        When not even a single view fits.
    SpecError
        When blocks are to be compiled and cannot be; and as `tapped_grids`.
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
        except torch.OutOfMemoryError as reason:
            if size == 1:
                raise NoRoom(
                    f"one view of {grid.tile_px} px does not fit through {encoder.card.name!r} on {device}",
                    found=str(reason).partition(". ")[0],
                    next_step="use smaller tiles, another --device, or stop what else uses this device's memory",
                ) from reason
            _BATCH_SIZE[device] = size // 2
            continue
        except RuntimeError as reason:
            # known by where they are defined: to import that takes seconds, for those who do not compile too
            if not type(reason).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise SpecError(
                "torch.compile does not work here",
                found=str(reason).partition("\n")[0],
                next_step="run without --compile, or install what it asks for (a C++ compiler; for a GPU, Triton)",
            ) from reason
        for _ in range(size):
            waiting.popleft()
        yield grids


def batch_size(device: torch.device) -> int:
    """Return how many views go through an encoder at once in this process."""
    return _BATCH_SIZE.get(device, FIRST_BATCH[device.type])


def check_taps(encoder: Encoder, taps: Sequence[str]) -> None:
    """Check that the encoder has the blocks that are to be tapped.

    Raises
    ------
    SpecError
        When it has fewer blocks, or none.
    """
    blocks = len(getattr(encoder.module, "blocks", ()))
    for tap in taps:
        if tap != LAST and _block(tap) > blocks:
            raise SpecError(
                f"{encoder.card.name!r} has no block {_block(tap)} to tap",
                expected=f"last, or a block from 1 to {blocks}" if blocks else "last: it has no blocks",
                found=f"tap {tap}",
                next_step="choose another --tap, or extract this encoder alone",
            )


def _block(tap: str) -> int:
    return int(tap.removesuffix(NORM))


def _forward(encoder: Encoder, pixels: torch.Tensor, taps: Sequence[str]) -> list[torch.Tensor]:
    """Return the patch tokens (view, token, channel) at each tap."""
    module: Any = encoder.module  # of timm where blocks are asked for
    prefix = encoder.card.prefix_tokens
    blocks = sorted({_block(tap) for tap in taps if tap != LAST})
    if not blocks:
        return [module.forward_features(pixels)[:, prefix:]]
    final, outputs = module.forward_intermediates(
        pixels, indices=[block - 1 for block in blocks], output_fmt="NLC", stop_early=LAST not in taps
    )
    after = dict(zip(blocks, outputs, strict=True))  # without prefix tokens: timm takes them off
    return [
        final[:, prefix:] if tap == LAST else module.norm(after[_block(tap)]) if NORM in tap else after[_block(tap)]
        for tap in taps
    ]


def _on_rows(card: Card, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return (view, channel, row, col) of patch tokens (view, token, channel)."""
    expected = (len(tokens), grid.side**2, card.width)
    if tokens.shape != expected:
        raise SpecError(
            f"{card.name!r} gave tokens that do not lie on the grid",
            expected=f"(view, token, channel) = {expected} after {card.prefix_tokens} prefix tokens",
            found=str(tuple(tokens.shape)),
            next_step="correct patch, width and prefix_tokens in the card",
        )
    by_channel = tokens.transpose(1, 2)
    # A copy made outside inference mode is an ordinary tensor: a decoder can be trained on it directly.
    grids = by_channel.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return grids.reshape(len(tokens), card.width, grid.side, grid.side)


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
    if encoder.device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()  # what is not pinned is copied while the host waits
    scaled = images.to(encoder.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(c).view(1, 3, 1, 1).to(encoder.device, non_blocking=True) for c in (card.mean, card.std))
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
