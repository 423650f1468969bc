"""Token grids as colours: the first three principal components of the test tiles' tokens, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fmcache.decoders.batches import TokenGrids

MOST_TOKENS = 8192
"""The covariance is computed from at most this many tokens, evenly spaced over the tokens of all tiles: with 1536
channels it then takes about a second on one core, however many tiles there are."""

LOW, HIGH = 2, 98
"""Percentiles of a component, over the tokens of all tiles, that become 0 and 255."""


def token_colours(grids: TokenGrids, tiles: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the token grid of the first view of each of `tiles` as RGB, (row, col, 3) uint8, by tile id.

    Red, green and blue are the first three principal components of the tokens of all these tiles: projections onto the
    eigenvectors of the channel covariance with the largest eigenvalues. The sign of each is chosen so that its largest
    absolute loading is positive. An encoder with fewer than three channels has 0 in the other colours.

    One tile at a time is converted to float64, so grids that are mapped from a file are never in memory as a whole.
    """
    chosen = [grids.tokens[grids.tiles.index(tile), 0] for tile in tiles]  # (channel, row, col) each, not copied
    mean, components = _components(chosen)
    # (3, row, col) each
    projected = [
        torch.tensordot(components, one.double() - mean[:, None, None], dims=1).cpu().numpy() for one in chosen
    ]
    low, high = np.percentile(np.concatenate([one.reshape(3, -1) for one in projected], axis=1), (LOW, HIGH), axis=1)
    span = np.where(high > low, high - low, 1.0)
    return {
        tile: np.round(255 * ((np.moveaxis(one, 0, -1) - low) / span).clip(0, 1)).astype(np.uint8)
        for tile, one in zip(tiles, projected, strict=True)
    }


def _components(grids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean token, (channel,), and the first three components, (3, channel), both float64."""
    step = -(-sum(grid[0].numel() for grid in grids) // MOST_TOKENS)
    while math.gcd(step, grids[0].shape[2]) > 1:  # otherwise only some columns of the grids would be sampled
        step += 1
    channels, passed = len(grids[0]), 0
    total = torch.zeros(channels, dtype=torch.float64, device=grids[0].device)
    products = torch.zeros(channels, channels, dtype=torch.float64, device=grids[0].device)
    n = 0
    for grid in grids:
        tokens = grid.flatten(1)[:, -passed % step :: step].double()  # every step-th token, counted over all grids
        passed += grid[0].numel()
        total += tokens.sum(dim=1)
        products += tokens @ tokens.T
        n += tokens.shape[1]
    mean = total / n
    _, vectors = torch.linalg.eigh(products / n - torch.outer(mean, mean))
    leading = vectors.T.flip(0)[:3]
    largest = leading.gather(1, leading.abs().argmax(dim=1, keepdim=True))
    return mean, torch.cat([leading * largest.sign(), leading.new_zeros(3 - len(leading), channels)])
