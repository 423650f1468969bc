"""The results of a run (study, dataset, encoder, fold, seed): its record, and the columns of its tables.

`fmcache.scores.run_files` stores them on disk. Stage two writes them and the report reads them; the two stages share
nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from fmcache.identity import fingerprint
from fmcache.strict import decodable

COUNTS_SCHEMA = {
    "split": pl.String,
    "tile": pl.String,
    "label": pl.String,
    "tp": pl.Int64,
    "fp": pl.Int64,
    "fn": pl.Int64,
}
CURVE_SCHEMA = {
    "epoch": pl.Int64,
    "learning_rate": pl.Float64,
    "loss": pl.Float64,
    "cross_entropy": pl.Float64,
    "dice_loss": pl.Float64,
    "val_dice": pl.Float64,
}


@decodable
class EncoderInfo(msgspec.Struct, frozen=True):
    """The facts of an encoder that a report needs. `params` counts weights (0 for raw pixels).

    `weights` is the name of the weights file when the encoder ran; '' if there was no file, and in older caches.
    """

    name: str
    title: str
    params: int
    width: int
    patch: int
    control: bool
    random_weights: bool
    weights_sha256: str
    licence: str = ""
    citation: str = ""
    weights: str = ""

    @property
    def display(self) -> str:
        """Title for tables and figures; it always states random weights."""
        return f"{self.title} (random weights)" if self.random_weights else self.title


@decodable
class Extraction(msgspec.Struct, frozen=True):
    """What stage one cost for an encoder on a dataset, summed over interrupted and resumed commands.

    `seconds` is the wall time in which `views` views were read, encoded and written; `bytes` is the size of the whole
    token cache on disk, with `cached_views` views.
    """

    seconds: float
    views: int
    bytes: int
    cached_views: int
    device: str


@decodable
class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `identity` holds everything that can change its counts; `fingerprint` is its sha256.

    `collapsed` lists labels that occur in the test truth but were never predicted. `still_falling` states that training
    ended before the loss was flat. `val_dice` is the best validation Dice, reached after `best_epoch` epochs.
    `together` is the number of seeds that were trained concurrently, including this one. `threads` and `wall_s` are
    this run's share of theirs.
    """

    study: str
    dataset: str
    dataset_title: str
    dataset_source: str = ""
    """Where the tiles come from, as the manifest states it; '' in results written before this field existed."""
    dataset_licence: str = ""
    encoder: EncoderInfo
    seed: int
    fold: int | None = None
    """Position in the dataset's folds; None for its fixed split."""
    identity: dict[str, Any]
    recipe: dict[str, Any]
    labels: tuple[tuple[str, str], ...]
    """(name, colour) by label id."""
    mpp: float | None
    tiles: dict[str, int]
    """Number of tiles per split."""
    label_pixels: dict[str, tuple[int, ...]] = {}
    """Pixels of each label, in the order of `labels`, in the unchanged tiles of each split. Only pixels that the token
    grid covers are counted: policy ``crop`` leaves out the bottom and right rim. Empty in results of fmcache 0.1.0."""
    groups: dict[str, str] = {}
    """Group (patient, slide) of each test tile that has one. Empty in results written before this field existed."""
    origin: dict[str, Any] = {}
    """Where the weights of the encoder came from, as its cache records it (`fmcache.stages.origins.Origin`)."""
    extraction: Extraction | None = None
    """None: the cache does not record it."""
    decoder_params: int
    decoder_words: str = ""
    """What the decoder does, as part of a sentence; '' in results written before this field existed: the paper's."""
    best_epoch: int
    val_dice: float | None
    collapsed: tuple[str, ...]
    still_falling: bool
    device: str
    number_format: str = ""
    """The number format of the decoder's operations, in words; '' in results written before this field existed."""
    threads: int
    together: int = 1
    versions: dict[str, str]
    wall_s: float

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)


class RunResults(msgspec.Struct, frozen=True):
    """A run's record with its counts and curve; `folder` is where it was read from."""

    record: RunRecord
    counts: pl.DataFrame
    curve: pl.DataFrame
    folder: Path | None = None
