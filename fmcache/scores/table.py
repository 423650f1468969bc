"""The results table: one part per run, (study, dataset, encoder, fold, seed), that appears whole when the run ends.

A part is a folder ``STUDY/DATASET/ENCODER/seed-000`` (of a fold: ``STUDY/DATASET/ENCODER/fold-0/seed-000``) with

- ``run.json``       a `RunRecord`: what ran, with which recipe, cache, device and versions; flags; times
- ``counts.parquet`` split, tile, label, tp, fp, fn: one row per tile and label of val and test
- ``curve.parquet``  epoch, learning_rate, loss, cross_entropy, dice_loss, val_dice: one row per epoch
- ``decoder.safetensors``  the tested weights

Stage two writes parts, the report reads them; neither knows more of the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from fmcache.errors import ResultsMismatch, ResultsNotFound
from fmcache.identity import differences, fingerprint

COUNTS_SCHEMA = {
    "split": pl.String,
    "tile": pl.String,
    "label": pl.String,
    "tp": pl.Int64,
    "fp": pl.Int64,
    "fn": pl.Int64,
}
_PARTS = ("*/*/seed-*/run.json", "*/*/fold-*/seed-*/run.json")
CURVE_SCHEMA = {
    "epoch": pl.Int64,
    "learning_rate": pl.Float64,
    "loss": pl.Float64,
    "cross_entropy": pl.Float64,
    "dice_loss": pl.Float64,
    "val_dice": pl.Float64,
}


class EncoderInfo(msgspec.Struct, frozen=True):
    """What a report needs to know of an encoder. `params` counts weights (0 for raw pixels)."""

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

    @property
    def display(self) -> str:
        """Title for tables and figures; random weights are always named as such."""
        return f"{self.title} (random weights)" if self.random_weights else self.title


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `identity` is all that can change its counts; `fingerprint` its sha256.

    `collapsed` lists labels that are in the test truth and were never predicted; `still_falling` tells that training
    ended before the loss was flat. `val_dice` is the best validation Dice, reached after `best_epoch` epochs.
    `together` is the number of seeds that were trained at once, this one among them; `threads` and `wall_s` are this
    run's share of theirs.
    """

    format: int = 1
    study: str
    dataset: str
    dataset_title: str
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
    """Pixels of each label, in the order of `labels`, in the untouched tiles of each split: of what the token grid
    covers, so without the rim that a grid of policy ``crop`` leaves out. Empty in results of fmcache 0.1.0."""
    decoder_params: int
    best_epoch: int
    val_dice: float | None
    collapsed: tuple[str, ...]
    still_falling: bool
    device: str
    threads: int
    together: int = 1
    versions: dict[str, str]
    wall_s: float

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)


class Part(msgspec.Struct, frozen=True):
    """A run's record with its counts and curve."""

    record: RunRecord
    counts: pl.DataFrame
    curve: pl.DataFrame


def part_folder(results: Path, study: str, dataset: str, encoder: str, seed: int, fold: int | None = None) -> Path:
    """Return where a run's part lies; `fold` None is the dataset's fixed split."""
    runs = results / study / dataset / encoder
    return (runs if fold is None else runs / f"fold-{fold}") / f"seed-{seed:03d}"


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of `folder` to write into; rename it into place on success, drop it otherwise."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_part(folder: Path, part: Part) -> None:
    """Write the record, counts and curve of a part into an (unfinished) folder."""
    part.counts.select(pl.col(name).cast(kind) for name, kind in COUNTS_SCHEMA.items()).write_parquet(
        folder / "counts.parquet"
    )
    part.curve.select(pl.col(name).cast(kind) for name, kind in CURVE_SCHEMA.items()).write_parquet(
        folder / "curve.parquet"
    )
    text = msgspec.json.format(msgspec.json.encode(part.record, order="deterministic"), indent=1)
    (folder / "run.json").write_bytes(text + b"\n")


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a part, or None when there is no whole part here."""
    try:
        return msgspec.json.decode((folder / "run.json").read_bytes(), type=RunRecord)
    except FileNotFoundError:
        return None


def read_part(folder: Path) -> Part:
    """Return a part.

    Raises
    ------
    ResultsNotFound
        When there is no whole part here.
    """
    record = read_record(folder)
    if record is None:
        raise ResultsNotFound(f"no results in {folder}", next_step="fmcache fit")
    return Part(record, pl.read_parquet(folder / "counts.parquet"), pl.read_parquet(folder / "curve.parquet"))


def find_parts(results: Path, study: str) -> list[Path]:
    """Return the folders of all whole parts of a study, sorted by dataset, encoder, fold and seed."""
    return sorted(path.parent for pattern in _PARTS for path in (results / study).glob(pattern))


def studies(results: Path) -> list[str]:
    """Return the names of the studies that have results."""
    return sorted({p.relative_to(results).parts[0] for pattern in _PARTS for p in results.glob(f"*/{pattern}")})


def check_same_run(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether the run with this identity is already there.

    Raises
    ------
    ResultsMismatch
        When a part of the same name came from another identity; the message names the fields that differ.
    """
    record = read_record(folder)
    if record is None:
        return False
    if record.fingerprint == fingerprint(identity):
        return True
    raise ResultsMismatch(
        f"{folder} holds a run of another recipe or cache:\n    "
        + "\n    ".join(differences(identity, record.identity)),
        next_step="give the recipe another `name:`, or replace the old run with --recompute",
    )
