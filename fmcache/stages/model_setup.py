"""How a process loads the model that predicts: the encoder and decoders of runs, or a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmcache.bundles.opening import open_bundle
from fmcache.bundles.same_encoder import load_same_encoder
from fmcache.cache.encoding import store_of
from fmcache.decoders.fitted import load_decoder
from fmcache.encoders.taps import check_taps
from fmcache.grid import GridGeometry
from fmcache.prediction.fitted_model import FittedModel, NoEncoder, Source, TokenSource
from fmcache.prediction.tile_model import TileModel
from fmcache.scores.run_files import WEIGHTS
from fmcache.stages.origins import recorded_choice
from fmcache.stages.run_choice import ChosenRuns, tokens_identities


class ModelSetup(NamedTuple):
    """The runs whose decoders predict, the um/px of their tiles, and where and how the model is loaded; picklable.

    Without `encodes`, the encoder is not loaded: all tokens are cached.
    """

    chosen: ChosenRuns
    mpp: float
    device: str
    threads: int
    offline: bool
    lock: Path
    weights: str = ""
    encodes: bool = True

    @contextmanager
    def open(self) -> Iterator[TileModel]:
        """Load the encoder and the decoders; they are freed when the context is left.

        Raises
        ------
        EncoderUnavailable, SpecError, WeightsMismatch
            When the encoder or its weights are not there, or are not those of the runs; the message names each field.
        """
        torch.set_num_threads(self.threads)
        record, device = self.chosen.records[0], torch.device(self.device)
        stored = tokens_identities(record)
        grid = GridGeometry(stored[0]["tile_px"], stored[0]["encoder"]["patch"], stored[0]["grid"])
        source = self._encoding(stored, grid, device) if self.encodes else NoEncoder()
        decoders = [
            load_decoder(folder / WEIGHTS, one, device)
            for folder, one in zip(self.chosen.folders, self.chosen.records, strict=True)
        ]
        batch = record.recipe["fit"]["batch"]
        yield FittedModel(source, grid, decoders, device, self.chosen.labels, self.mpp, batch)

    def _encoding(self, stored: list[dict[str, Any]], grid: GridGeometry, device: torch.device) -> Source:
        choice = recorded_choice(self.chosen.records[0], self.weights)
        encoder = load_same_encoder(choice, stored[0]["encoder"], device, offline=self.offline, lock=self.lock)
        taps = tuple(one["tap"] for one in stored)
        check_taps(encoder, taps, grid)
        return TokenSource(encoder, grid, stored[0]["precision"], taps, store_of(stored[0]["store"]))


class BundleSetup(NamedTuple):
    """A bundle, and where its model runs; picklable."""

    folder: Path
    device: str
    threads: int
    weights: str = ""

    @contextmanager
    def open(self) -> Iterator[TileModel]:
        """Open the bundle; raises as `open_bundle`."""
        torch.set_num_threads(self.threads)
        yield open_bundle(self.folder, torch.device(self.device), weights=self.weights)
