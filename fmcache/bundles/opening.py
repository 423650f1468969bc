"""Open a bundle: check its files, then give its model the form in which slides are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fmcache.bundles import tracing
from fmcache.bundles.contents import DECODER, MODEL, BundleLabel, Facts, checked_facts
from fmcache.errors import SpecError
from fmcache.manifest import Label

CPU = torch.device("cpu")
_optimised = torch.jit.optimized_execution  # type: ignore[attr-defined]


class BundleModel:
    """A model in a bundle: uint8 tiles in, softmax probabilities out.

    `tile_px` is the side of its tiles, `mpp` their um per pixel, `labels` the labels in the order of the label axis,
    `facts` everything that the bundle states.
    """

    def __init__(self, facts: Facts, module: torch.nn.Module, device: torch.device) -> None:
        self.facts, self.device, self._module = facts, device, module
        self.tile_px, self.mpp = facts.tile_px, facts.mpp
        self.labels = tuple(_label(one) for one in facts.labels)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return probabilities (seed, tile, label, y, x) float32 of RGB tiles (tile, y, x, colour) uint8.

        There is one seed. y and x cover the `covered_px` of the bundle, from the top left of the tile.

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


def _label(one: BundleLabel) -> Label:
    return Label(one.name, one.colour)


def open_bundle(folder: Path, device: torch.device = CPU) -> BundleModel:
    """Return the model of a bundle that `fmcache export` wrote, on a device.

    TorchScript is a program that may do anything: open only bundles from people whom you trust. Every file is first
    compared with the list of checksums in the bundle. This finds damaged and half-copied files; it does not protect
    from somebody who changes the list as well.

    Raises
    ------
    BundleNotFound
        When the folder is no bundle.
    BundleCorrupt
        When a file is missing or was changed, or a later fmcache wrote the bundle.
    SpecError
        When the bundle holds only a decoder.
    """
    facts = checked_facts(folder)
    if not facts.holds_encoder_weights:
        raise SpecError(
            f"{folder} holds the decoder only ({DECODER})",
            expected=f"a bundle with {MODEL}",
            next_step="export it without --decoder-only",
        )
    return BundleModel(facts, tracing.load(folder / MODEL, device), device)
