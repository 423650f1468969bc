"""The whole way of a tile as one torch module: resize, normalise, encoder, standardise, decoder, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from fmcache.cache.encoding import Store
from fmcache.decoders.decoder import Decoder
from fmcache.decoders.fitted import FittedDecoder
from fmcache.decoders.train import Scale
from fmcache.encoders.load import Encoder
from fmcache.encoders.taps import by_input, check_taps, features_at, grid_at, width_at
from fmcache.encoders.tokens import on_input_grid


class WholeModel(nn.Module):
    """From RGB pixels (tile, colour, y, x) float32 in 0..1 to probabilities (tile, label, y, x) of the covered pixels.

    All arithmetic is float32. Token grids are rounded as a cache stores them, because the decoder was trained and
    tested on such tokens. The code holds no size of a batch, so that a trace of it takes any number of tiles; the size
    of a tile is fixed.

    Parameters
    ----------
    taps
        The taps that the decoder reads, in its order.
    store
        How a cache stores the tokens.
    fitted
        The decoder; it is computed in its direct form, which uses operations of torch only (`Decoder`).

    Raises
    ------
    SpecError
        When the encoder has no such taps, or does not take tiles of this size.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: Encoder, taps: Sequence[str], store: Store, fitted: FittedDecoder) -> None:
        super().__init__()
        self.taps, self.store, self.grid = tuple(taps), store, fitted.decoder.grid
        check_taps(encoder, self.taps, self.grid)
        self.encoder = encoder
        self.module = cast(nn.Module, encoder.module)
        self.fitted = in_direct_form(fitted)
        for name, colours in (("mean", encoder.card.mean), ("std", encoder.card.std)):
            self.register_buffer(name, torch.tensor(colours).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return probabilities (tile, label, y, x)."""
        return self.logits(tiles).softmax(dim=1)

    def logits(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return logits (tile, label, y, x)."""
        logits: torch.Tensor = self.fitted(self.tokens(tiles))
        return logits

    def tokens(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return token grids (tile, channel, row, col); the channels of several taps follow each other."""
        found: dict[str, torch.Tensor] = {}
        for of_input, taps in by_input(self.encoder, self.taps, self.grid).items():
            pixels = (on_input_grid(tiles, of_input) - self.mean) / self.std
            for tap, features in zip(taps, features_at(self.encoder, pixels, taps), strict=True):
                found[tap] = self._on_rows(tap, features)
        return rounded(torch.cat([found[tap] for tap in self.taps], dim=1), self.store)

    def _on_rows(self, tap: str, features: torch.Tensor) -> torch.Tensor:
        side = grid_at(self.encoder, tap, self.grid).side
        by_channel = features.transpose(1, 2) if self.encoder.axes == "tokens" else features
        return by_channel.reshape(-1, width_at(self.encoder, tap), side, side)


def rounded(tokens: torch.Tensor, store: Store) -> torch.Tensor:
    """Return float32 tokens with the values that a cache would hold, as `Store.rounded` computes them.

    Values beyond the range of the stored type, which `fmcache extract` refuses, become its largest value.
    """
    dtype, bits = (torch.float16, torch.int16) if store.dtype == "float16" else (torch.float32, torch.int32)
    largest = torch.finfo(dtype).max
    stored = tokens.clamp(-largest, largest).to(dtype)
    if store.keep_bits:
        dropped = {torch.float16: 10, torch.float32: 23}[dtype] - store.keep_bits
        pattern = stored.view(bits)
        # to nearest, ties to even: half of the smallest kept step, and less by one bit where the kept part is even
        pattern = pattern + ((pattern >> dropped) & 1) + (2 ** (dropped - 1) - 1)
        stored = (pattern & -(2**dropped)).view(dtype)
    return stored.float()


def in_direct_form(fitted: FittedDecoder) -> FittedDecoder:
    """Return the same decoder in its direct form, which equals the fast form up to rounding."""
    decoder = Decoder(fitted.decoder.shape, fitted.decoder.kind, "direct")
    decoder.load_state_dict(fitted.decoder.state_dict())
    scale = Scale(fitted.mean, fitted.std) if fitted.standardised else None
    return FittedDecoder(decoder, fitted.labels, scale).eval().requires_grad_(False)
