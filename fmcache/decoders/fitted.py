"""A fitted decoder, from the weights that a run stored: standardisation, if the run used it, then the decoder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from fmcache.decoders.decoder import Decoder, form_for
from fmcache.errors import ResultsCorrupt
from fmcache.grid import GridGeometry
from fmcache.scores.records import RunRecord

SCALE = ("mean", "std")


class FittedDecoder(nn.Module):
    """From cached tokens to logits; `labels` are the names of the label axis.

    Parameters
    ----------
    scale
        Mean and standard deviation of the training tokens, both (channel, 1, 1), or None.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, decoder: Decoder, labels: tuple[str, ...], scale: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        super().__init__()
        self.decoder, self.labels, self.standardised = decoder, labels, scale is not None
        mean, std = scale or (torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (view, label, y, x) from tokens (view, channel, row, col) float32."""
        if self.standardised:
            tokens = (tokens - self.mean) / self.std
        logits: torch.Tensor = self.decoder(tokens)
        return logits


def load_decoder(file: Path, record: RunRecord) -> FittedDecoder:
    """Return the decoder whose weights a run stored in `file`, on the CPU, in evaluation mode, with gradients off.

    Raises
    ------
    ResultsCorrupt
        When the file does not hold such a decoder.
    """
    recipe, labels = record.recipe, tuple(name for name, _ in record.labels)
    grid = GridGeometry(recipe["tile_px"], record.encoder.patch, recipe["grid"])
    weights = load_file(file)
    scale = (weights.pop("mean"), weights.pop("std")) if set(SCALE) <= weights.keys() else None
    decoder = Decoder(
        record.encoder.width, recipe["decoder"]["width"], len(labels), grid, form_for(torch.device("cpu"))
    )
    try:
        decoder.load_state_dict(weights)
    except RuntimeError as reason:
        raise ResultsCorrupt(
            f"{file} does not hold the decoder that its record describes",
            found=str(reason).partition("\n")[0],
            next_step="run fmcache fit --recompute",
        ) from None
    return FittedDecoder(decoder, labels, scale).eval().requires_grad_(False)
