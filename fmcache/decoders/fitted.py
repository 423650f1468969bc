"""A fitted decoder, from the weights that a run stored: standardisation, if the run used it, then the decoder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fmcache.decoders.decoder import Decoder, form_for
from fmcache.decoders.layers import Shape
from fmcache.decoders.registry import spec_of
from fmcache.decoders.train import Scale
from fmcache.errors import ResultsCorrupt
from fmcache.grid import GridGeometry
from fmcache.scores.records import RunRecord
from fmcache.specs import DecoderPrecision, DecoderSpec

CPU = torch.device("cpu")


class FittedDecoder(nn.Module):
    """From cached tokens to logits; `labels` are the names of the label axis.

    Parameters
    ----------
    scale
        Standardises the tokens as the run did; None: the run did not.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, decoder: Decoder, labels: tuple[str, ...], scale: Scale | None) -> None:
        super().__init__()
        self.decoder, self.labels, self.standardised = decoder, labels, scale is not None
        mean, std = scale or (torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (view, label, y, x) from tokens (view, channel, row, col) float32."""
        if self.standardised:
            tokens = Scale(self.mean, self.std)(tokens)
        logits: torch.Tensor = self.decoder(tokens)
        return logits


def load_decoder(file: Path, record: RunRecord, device: torch.device = CPU) -> FittedDecoder:
    """Return the decoder whose weights a run stored in `file`, on `device`, in evaluation mode, with gradients off.

    Raises
    ------
    ResultsCorrupt
        When the file does not hold such a decoder, or another kind of decoder.
    ResultsMismatch
        When this fmcache has no such kind of decoder.
    """
    recipe, labels = record.recipe, tuple(name for name, _ in record.labels)
    grid = GridGeometry(recipe["tile_px"], record.encoder.patch, recipe["grid"])
    precision = recipe["fit"].get("precision", "float32")
    return decoder_in(file, spec_of(recipe["decoder"]), grid, labels, record.encoder.width, device, precision)


def decoder_in(
    file: Path,
    spec: DecoderSpec,
    grid: GridGeometry,
    labels: tuple[str, ...],
    width: int,
    device: torch.device = CPU,
    precision: DecoderPrecision = "float32",
) -> FittedDecoder:
    """Return the decoder of a kind whose weights are in `file`; raises ResultsCorrupt as `load_decoder`.

    `width` is the number of channels of the tokens, for files of earlier releases, which do not state it.
    """
    weights, metadata = _read(file)
    kind, channels = metadata.get("decoder", f"paper {width}").split()
    shape = Shape(tuple(map(int, channels.split("+"))), spec.width, len(labels), grid)
    if kind != spec.kind:
        raise ResultsCorrupt(
            f"{file} holds the weights of another kind of decoder",
            expected=f"{spec.kind}, as its record says",
            found=kind,
            next_step="run fmcache fit --recompute",
        )
    scaled = set(Scale._fields) <= weights.keys()
    scale = Scale(*(weights.pop(field) for field in Scale._fields)) if scaled else None
    decoder = Decoder(shape, spec.kind, form_for(device), precision)
    try:
        decoder.load_state_dict(weights)
    except RuntimeError as reason:
        raise ResultsCorrupt(
            f"{file} does not hold the decoder that its record describes",
            found=str(reason).partition("\n")[0],
            next_step="run fmcache fit --recompute",
        ) from None
    return FittedDecoder(decoder, labels, scale).eval().requires_grad_(False).to(device)


def weights_metadata(decoder: Decoder) -> dict[str, str]:
    """Return what a weights file states about its decoder: ``KIND CHANNELS``, with the channels of each tap.

    It is one entry, because safetensors writes several in an order that differs from process to process.
    """
    return {"decoder": f"{decoder.kind} {'+'.join(map(str, decoder.shape.channels))}"}


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of a weights file and what it states; files of earlier releases state nothing."""
    with safe_open(file, framework="pt") as held:
        return load_file(file), held.metadata() or {}
