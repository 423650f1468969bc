"""Open a bundle: check its files, then give its model the form in which slides are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fmcache.bundles import tracing
from fmcache.bundles.contents import DECODER, MODEL, Facts, checked_facts
from fmcache.bundles.same_encoder import load_same_encoder
from fmcache.bundles.whole_model import WholeModel
from fmcache.cache.encoding import store_of
from fmcache.decoders.fitted import decoder_in
from fmcache.decoders.registry import spec_of
from fmcache.encoders.load import card_of
from fmcache.errors import SpecError
from fmcache.manifest import Label
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")
_optimised = torch.jit.optimized_execution  # type: ignore[attr-defined]


class BundleModel:
    """A model in a bundle: uint8 tiles in, softmax probabilities out.

    `tile_px` is the side of its tiles, `covered_px` that of the region with probabilities, from the top left of a tile,
    `mpp` the um per pixel, `labels` the labels in the order of the label axis,
    `facts` everything that the bundle states.
    """

    def __init__(self, facts: Facts, module: torch.nn.Module, device: torch.device) -> None:
        self.facts, self.device, self._module = facts, device, module
        self.tile_px, self.mpp = facts.tile_px, facts.mpp
        self.covered_px = facts.covered_px
        self.labels = tuple(Label(one.name, one.colour) for one in facts.labels)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return probabilities (seed, tile, label, y, x) float32 of RGB tiles (tile, y, x, colour) uint8.

        There is one seed.

        Raises
        ------
        SpecError
            When the tiles have another size or type.
        """
        shape = (len(tiles), self.tile_px, self.tile_px, 3)
        if tiles.dtype != np.uint8 or tiles.shape != shape:
            raise SpecError(
                "these tiles are not a valid input of the bundle",
                expected=f"uint8 (tile, y, x, colour) = {shape}",
                found=f"{tiles.dtype} {tiles.shape}",
            )
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device).permute(0, 3, 1, 2).float() / 255
        # torch would otherwise compile the module again for every new number of tiles
        with torch.inference_mode(), tracing.without_deprecation(), _optimised(False):
            probabilities: npt.NDArray[np.float32] = self._module(pixels)[None].cpu().numpy()
        return probabilities


def open_bundle(folder: Path, device: torch.device = CPU, *, weights: str = "") -> BundleModel:
    """Return the model of a bundle that `fmcache export` wrote, on a device.

    TorchScript is a program that may do anything: open only bundles from people whom you trust. Every file is first
    compared with the list of checksums in the bundle. This finds damaged and half-copied files; it does not protect
    from somebody who changes the list as well.

    A bundle without encoder weights needs the encoder as `fmcache extract` does: from the hub, with access to gated
    weights, or from the file `weights`. Their sha256 must be that of the run.

    Raises
    ------
    BundleNotFound
        When the folder is no bundle.
    BundleCorrupt
        When a file is missing or was changed, or a later fmcache wrote the bundle.
    EncoderUnavailable, WeightsMismatch, SpecError
        When the bundle holds only a decoder, and its encoder is unavailable or another one.
    """
    facts = checked_facts(folder)
    module = tracing.load(folder / MODEL, device) if facts.holds_encoder_weights else _joined(folder, facts, weights)
    return BundleModel(facts, module.to(device), device)


def _joined(folder: Path, facts: Facts, weights: str) -> WholeModel:
    """Return the model of a bundle that holds only a decoder."""
    if not facts.card:
        raise SpecError(
            f"{folder} holds the decoder only, and fmcache has no card of its encoder {facts.encoder.title!r}",
            next_step="ask its authors for the card of the encoder, or for a bundle with the encoder",
        )
    random = facts.encoder.random_weights and not card_of(facts.card).random_weights
    encoder = load_same_encoder(EncoderChoice(facts.card, weights, random), facts.encoder_identity, CPU)
    labels = tuple(label.name for label in facts.labels)
    grid = facts.geometry
    fitted = decoder_in(folder / DECODER, spec_of(facts.decoder), grid, labels, facts.encoder.width)
    return WholeModel(encoder, facts.taps, store_of(facts.store), fitted)
