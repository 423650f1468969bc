"""How fast this device does the work of the stages: measured for a few seconds, for a rough forecast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

import torch
from torch.nn import functional

from fmcache.decoders.arithmetic import multiply_adds
from fmcache.decoders.concurrent_seeds import concurrent_seed_count, threads_of_a_seed
from fmcache.decoders.decoder import Decoder, form_for, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.losses import segmentation_loss
from fmcache.encoders.cards import Card
from fmcache.encoders.tokens import AUTOCAST
from fmcache.grid import GridGeometry
from fmcache.planning.costs import Cost
from fmcache.runtime.devices import device_name, using_threads
from fmcache.specs import Precision, Recipe

TOKENS, WIDTH, HEADS = 512, 768, 12
"""One transformer block of this size is measured for all encoders: it is large enough to reach the speed of a whole
encoder."""

FLOP_PER_TRY = {"cpu": 2 * 10**10, "cuda": 4 * 10**12}
SMALL_SIDE = {"cpu": 8, "cuda": 64}
"""Grids up to this side length are measured directly; the work of larger grids grows with their area."""

SECONDS = 0.8


class Speed(NamedTuple):
    """Operations per second measured on a device, counted as in `fmcache.planning.costs`.

    `decoder` is that of all seeds that are trained concurrently. `logit_s` is the time in seconds that their loss takes
    for one logit in training, forward and backward.
    """

    device: str
    encoder: dict[Precision, float]
    decoder: float
    logit_s: float

    def decoder_s(self, cost: Cost) -> float:
        """Return the seconds of all decoders of a cost."""
        return cost.decoder_flop / self.decoder + cost.logits * self.logit_s


def measure_speed(
    recipe: Recipe, card: Card, labels: int, precisions: Iterable[Precision], device: torch.device
) -> Speed:
    """Return the speed of `device` in transformer blocks, and in training the recipe's decoder on a card's grids."""
    blocks = {precision: _block_speed(precision, device) for precision in sorted(set(precisions))}
    return Speed(device_name(device), blocks, *_decoder_speed(recipe, card, labels, device))


def _block_speed(precision: Precision, device: torch.device) -> float:
    """Return the speed of one transformer block in inference."""
    flop = 2 * 12 * WIDTH**2 * TOKENS + 4 * TOKENS**2 * WIDTH
    batch = max(1, FLOP_PER_TRY[device.type] // flop)
    generator = torch.Generator().manual_seed(0)

    def filled(*shape: int) -> torch.Tensor:
        return torch.empty(shape).normal_(0, 0.02, generator=generator).to(device)

    x, qkv, proj = filled(batch, TOKENS, WIDTH), filled(3 * WIDTH, WIDTH), filled(WIDTH, WIDTH)
    wide, narrow = filled(4 * WIDTH, WIDTH), filled(WIDTH, 4 * WIDTH)

    def block() -> None:
        query, key, value = functional.linear(x, qkv).view(batch, TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        functional.linear(functional.gelu(functional.linear(x + functional.linear(mixed, proj), wide)), narrow)

    dtype = AUTOCAST[precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return batch * flop / _seconds(block, device)


def _decoder_speed(recipe: Recipe, card: Card, labels: int, device: torch.device) -> tuple[float, float]:
    """Return the speed of training steps of the recipe's decoder without the loss, and the time of the loss a logit.

    One seed is measured on as many threads as it is trained on, and counted once for each seed that is trained
    concurrently. On all threads instead, a small decoder is far slower, most of all beside other work, because its
    threads wait for each other.
    """
    whole = GridGeometry(recipe.tile_px, card.patch, recipe.grid)
    side = whole.side
    tile_px = recipe.tile_px if side <= SMALL_SIDE[device.type] else SMALL_SIDE[device.type] * card.patch
    grid = GridGeometry(tile_px, card.patch, recipe.grid)
    channels = (card.width,) * len(recipe.taps_of_decoders[0])
    shape, kind = Shape(channels, recipe.decoder.width, labels, grid), recipe.decoder.kind
    a_step = recipe.fit.batch * multiply_adds(shape._replace(grid=whole), kind)
    threads = torch.get_num_threads()
    concurrent = concurrent_seed_count(a_step, recipe.fit.seeds, device, threads)
    flop = 3 * 2 * multiply_adds(shape, kind)
    batch = max(1, min(recipe.fit.batch, FLOP_PER_TRY[device.type] // flop))
    decoder = Decoder(shape, kind, form_for(device), recipe.fit.precision).to(device)
    initialise(decoder, 0)
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=recipe.fit.learning_rate)
    tokens = torch.empty(batch, sum(channels), grid.side, grid.side).normal_(generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(device)
    truth = torch.zeros(batch, grid.covered_px, grid.covered_px, dtype=torch.uint8, device=device)

    logits = torch.zeros(batch, labels, grid.covered_px, grid.covered_px, device=device)

    def step() -> None:
        optimiser.zero_grad()
        decoder(tokens).backward(logits)
        optimiser.step()

    def loss() -> None:
        segmentation_loss(logits, truth, recipe.fit)

    with using_threads(threads_of_a_seed(a_step, device, threads)):
        step_s, loss_s = _seconds(step, device), _seconds(loss, device)
    return concurrent * batch * flop / step_s, loss_s / logits.numel() / concurrent


def _seconds(act: Callable[[], None], device: torch.device) -> float:
    """Return the median seconds of a call of `act`, measured for about `SECONDS` after one warm-up call."""
    times: list[float] = []
    end = float("inf")
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if end == float("inf"):
            end = time.perf_counter() + SECONDS  # the first call was the warm-up
            continue
        times.append(time.perf_counter() - start)
    return median(times)
