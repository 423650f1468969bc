"""The tokens of a slide's windows in a cache (FORMAT.md, section 4), for maps by other decoders without the encoder.

A tile of this cache is a row of windows; its views are the windows of the row that are predicted, from left to right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fmcache.cache.encoding import Store, store_of
from fmcache.cache.header import FORMAT_VERSION, Kind
from fmcache.cache.layout import Layout
from fmcache.cache.reader import Cache, open_cache
from fmcache.cache.writer import Writer, is_complete, open_writer, write_shard
from fmcache.decoders.fitted import load_decoder
from fmcache.encoders.tokens import batch_size
from fmcache.identity import canonical_json, fingerprint
from fmcache.prediction.fitted_model import FittedModel, Source
from fmcache.prediction.tile_model import TileModel
from fmcache.prediction.windowing import Windows
from fmcache.runtime.devices import versions
from fmcache.scores.records import RunRecord
from fmcache.scores.run_files import WEIGHTS
from fmcache.slides.canvas import Canvas
from fmcache.stages import places
from fmcache.stages.run_choice import ChosenRuns, tokens_identities

KIND: Kind = "slide_tokens"


class SlideTokens(NamedTuple):
    """The token cache of a slide; picklable.

    Attributes
    ----------
    identity
        JSON of everything that can change a token: slide, windows, encoder, precision, taps, store.
    demand
        (row of windows, number of its windows), from top to bottom.
    item
        Shape of the tokens of a window: (channel, row, col). Channels of several taps follow each other.
    sealed
        The cache is complete: tokens are read, and the encoder is not needed. Otherwise tokens are written.
    """

    path: Path
    identity: bytes
    demand: tuple[tuple[str, int], ...]
    item: tuple[int, int, int]
    store: str
    sealed: bool

    @property
    def bytes(self) -> int:
        """Size of all tokens before compression."""
        windows = sum(views for _, views in self.demand)
        return windows * Layout(1, 1, self.item, store_of(self.store).dtype, 1).view_bytes


def tokens_shape(chosen: ChosenRuns) -> tuple[int, int, int]:
    """Return (channel, row, col) of the tokens that the decoder of runs reads.

    Raises
    ------
    ResultsCorrupt, ResultsMismatch
        When the decoder's file is damaged, or is of an unknown kind.
    """
    shape = load_decoder(chosen.folders[0] / WEIGHTS, chosen.records[0]).decoder.shape
    return sum(shape.channels), shape.grid.side, shape.grid.side


def slide_tokens(
    work: Path, record: RunRecord, item: tuple[int, int, int], canvas: Canvas, windows: Windows, overlap: float
) -> SlideTokens:
    """Return where the tokens of these windows are cached, and whether they are there; reads no token.

    `item` is the `tokens_shape` of the runs.
    """
    stored = tokens_identities(record)
    identity: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "kind": KIND,
        "slide": canvas.key,
        "mpp": canvas.mpp,
        "scale": canvas.scale,
        "overlap": overlap,
        "tiles": _rows(windows),
        "taps": [one["tap"] for one in stored],
    } | {field: stored[0][field] for field in ("encoder", "tile_px", "grid", "precision", "store")}
    demand = tuple((_name(row), int(windows.wanted[row].sum())) for row in _wanted_rows(windows))
    # slides of one name and other windows have other paths; the name is cut, because file systems limit it
    name = f"{canvas.name[:50]}-{fingerprint(identity)[:12]}.zarr"
    path = places.slide_tokens(work, record.encoder.name, name)
    sealed = is_complete(path, KIND, identity, dict(demand))
    return SlideTokens(path, canonical_json(identity), demand, item, stored[0]["store"], sealed)


@contextmanager
def with_cache(model: TileModel, tokens: SlideTokens | None) -> Iterator[TileModel]:
    """Yield a model for one pass over the windows of a slide, whose tokens come from the cache, or go into it.

    The cache is sealed when the context is left without an error. One that was never sealed is written again.

    Raises
    ------
    Busy
        When another process is writing this cache.
    CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
        When a cache that was complete no longer is.
    """
    if tokens is None or not isinstance(model, FittedModel):
        yield model
    elif tokens.sealed:
        cache = open_cache(tokens.path, KIND, msgspec.json.decode(tokens.identity))
        yield model.with_source(_Read(cache, tokens.demand, model.device))
    else:
        with _opened(tokens) as writer:
            writer.begin()
            yield model.with_source(_Written(model.source, writer, store_of(tokens.store)))
            writer.seal()


@contextmanager
def _opened(tokens: SlideTokens) -> Iterator[Writer]:
    store, identity = store_of(tokens.store), msgspec.json.decode(tokens.identity)
    with open_writer(
        tokens.path, KIND, identity, tokens.item, store.dtype, dict(tokens.demand), {"versions": versions("fmcache")},
        recompute=True, compressor=store.compressor,
    ) as writer:  # fmt: skip
        yield writer


class _Read:
    """Tokens of all windows in the order of prediction, from a cache."""

    def __init__(self, cache: Cache, demand: tuple[tuple[str, int], ...], device: torch.device) -> None:
        self._cache, self._device = cache, device
        self._windows = ((row, view) for row, views in demand for view in range(views))

    def tokens(self, tiles: npt.NDArray[np.uint8]) -> Iterable[torch.Tensor]:
        """Yield the tokens of the next ``len(tiles)`` windows, in batches of the encoder: sums round as with it."""
        values = np.empty((len(tiles), *self._cache.item), self._cache.dtype)
        for i in range(len(tiles)):
            row, view = next(self._windows)
            self._cache.read_into(row, view, view + 1, values[i : i + 1])
        for part in torch.split(torch.from_numpy(values), batch_size(self._device)):
            yield part.to(self._device).float()


class _Written:
    """Tokens of all windows in the order of prediction, from an encoder; whole shards are written meanwhile."""

    def __init__(self, source: Source, writer: Writer, store: Store) -> None:
        self._source, self._writer, self._dtype = source, writer, store.dtype
        self._shards = deque(writer.missing())
        self._waiting: list[npt.NDArray[Any]] = []

    def tokens(self, tiles: npt.NDArray[np.uint8]) -> Iterable[torch.Tensor]:
        """Yield the tokens of tiles, as the encoder gives them."""
        for tokens in self._source.tokens(tiles):
            for one in tokens.cpu().numpy().astype(self._dtype):  # exact: they were rounded to this type
                self._add(one)
            yield tokens

    def _add(self, one: npt.NDArray[Any]) -> None:
        self._waiting.append(one)
        if len(self._waiting) == self._shards[0].weight:
            values, self._waiting = np.stack(self._waiting), []
            write_shard(self._writer.path, KIND, self._shards.popleft(), values, self._writer.header.fingerprint)


def _wanted_rows(windows: Windows) -> list[int]:
    return [int(row) for row in np.flatnonzero(windows.wanted.any(axis=1))]


def _name(row: int) -> str:
    return f"row-{row}"


def _rows(windows: Windows) -> dict[str, str]:
    """Return the sha256 of the places of the windows of each row: they follow from overlap, tile and tissue."""
    tops, lefts = windows.rows.starts, windows.columns.starts
    return {
        _name(row): fingerprint({"top": tops[row], "left": [lefts[at] for at in np.flatnonzero(windows.wanted[row])]})
        for row in _wanted_rows(windows)
    }
