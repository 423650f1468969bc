"""What predicts tiles: an encoder with its decoders (`fmcache.prediction.fitted_model`), or a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fmcache.manifest import Label

Probabilities = npt.NDArray[np.float32]


class TileModel(Protocol):
    """A model of tiles of one size at one um/px; `labels` are in the order of the label axis.

    It predicts the top left `covered_px` x `covered_px` pixels of a tile of `tile_px` x `tile_px`
    (`fmcache.grid.GridGeometry.covered_px`).
    """

    @property
    def tile_px(self) -> int: ...
    @property
    def covered_px(self) -> int: ...
    @property
    def mpp(self) -> float: ...
    @property
    def labels(self) -> tuple[Label, ...]: ...

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> Iterable[Probabilities]:
        """Return for each seed the softmax probabilities (tile, label, y, x) float32 of RGB tiles (tile, y, x, 3)."""
        ...
