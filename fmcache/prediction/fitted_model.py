"""The model of a study: a frozen encoder and the decoders that were fitted on its token grids.

Tiles go the way of the untouched view in `fmcache extract` and `fmcache fit`: the same preprocessing and precision,
tokens rounded as the cache stores them, the run's standardisation, its decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fmcache.cache.encoding import Store, all_finite
from fmcache.decoders.fitted import FittedDecoder
from fmcache.decoders.train import reproducible
from fmcache.encoders.load import Encoder
from fmcache.encoders.tokens import grids_of_views
from fmcache.errors import TokensOverflow
from fmcache.grid import GridGeometry
from fmcache.manifest import Label
from fmcache.prediction.tile_model import Probabilities
from fmcache.specs import Precision


class Source(Protocol):
    """Where the tokens of tiles come from: an encoder, or a cache of the tokens of a slide."""

    def tokens(self, tiles: npt.NDArray[np.uint8]) -> Iterable[torch.Tensor]:
        """Yield tokens (tile, channel, row, col) float32 of RGB tiles (tile, y, x, 3), on the model's device."""
        ...


class NoEncoder:
    """The source of a model that is loaded without its encoder, because all its tokens are cached."""

    def tokens(self, tiles: npt.NDArray[np.uint8]) -> Iterable[torch.Tensor]:
        """Never called: `FittedModel.with_source` replaces it.

        Raises
        ------
        RuntimeError
            Always.
        """
        raise RuntimeError(f"no encoder is loaded for {len(tiles)} tiles")


class TokenSource(NamedTuple):
    """From tiles to the tokens that `fit` reads from a cache: an encoder, and how tokens are computed and stored."""

    encoder: Encoder
    grid: GridGeometry
    precision: Precision
    taps: tuple[str, ...]
    store: Store

    def tokens(self, tiles: npt.NDArray[np.uint8]) -> Iterable[torch.Tensor]:
        """Yield tokens (tile, channel, row, col) float32, on the encoder's device, in batches that fit its memory.

        Channels of several taps follow each other.

        Raises
        ------
        TokensOverflow
            When a value is inf or NaN in the stored type.
        """
        for grids in grids_of_views(self.encoder, tiles, self.grid, self.precision, self.taps):
            yield torch.cat([self._stored(grid) for grid in grids], dim=1)

    def _stored(self, grids: torch.Tensor) -> torch.Tensor:
        values = grids.to(getattr(torch, self.store.dtype)).cpu().numpy()
        rounded = self.store.rounded(values)
        if not all_finite(rounded):
            raise TokensOverflow(
                f"tokens of {self.encoder.card.name!r} are inf or NaN as {self.store.dtype}",
                next_step="fit with a wider `store` in the recipe, for example store: float32",
            )
        return torch.from_numpy(rounded).to(self.encoder.device).float()


class FittedModel:
    """A `fmcache.prediction.tile_model.TileModel` of a study; one decoder for each seed.

    Parameters
    ----------
    grid
        The geometry of the tiles.
    device
        Where the decoders are.
    batch
        The number of tiles that a decoder gets at a time: that of the recipe, whose memory has sufficed in training.
    """

    def __init__(
        self,
        source: Source,
        grid: GridGeometry,
        decoders: Sequence[FittedDecoder],
        device: torch.device,
        labels: tuple[Label, ...],
        mpp: float,
        batch: int,
    ) -> None:
        self.source, self.device, self.labels, self.mpp = source, device, labels, mpp
        self._grid, self._decoders, self._batch = grid, decoders, batch

    def with_source(self, source: Source) -> FittedModel:
        """Return this model with tokens from another source."""
        return FittedModel(source, self._grid, self._decoders, self.device, self.labels, self.mpp, self._batch)

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return self._grid.tile_px

    @property
    def covered_px(self) -> int:
        """Side of the predicted part of a tile in pixels."""
        return self._grid.covered_px

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> Iterable[Probabilities]:
        """Return probabilities (seed, tile, label, y, x) float32 of RGB tiles (tile, y, x, 3) uint8.

        Raises
        ------
        NoMemory
            When not even one tile fits.
        TokensOverflow
            When tokens are inf or NaN in the stored type.
        """
        side = self.covered_px
        found = np.empty((len(self._decoders), len(tiles), len(self.labels), side, side), np.float32)
        at = 0
        with torch.inference_mode():
            for tokens in self.source.tokens(tiles):
                for part in torch.split(tokens, self._batch):
                    for seed, decoder in enumerate(self._decoders):
                        # as fit tested its tiles; the encoder runs with the settings of extract
                        with reproducible(self.device, decoder.decoder.precision):
                            shares = torch.softmax(decoder(part), dim=1)
                        torch.from_numpy(found[seed, at : at + len(part)]).copy_(shares)
                    at += len(part)
        return found
