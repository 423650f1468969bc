"""The runs of one encoder: their shared data, their training, and their results on disk."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import torch
from safetensors.torch import save_file

from fmcache.cache.header import read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import disk_bytes
from fmcache.decoders.arithmetic import multiply_adds
from fmcache.decoders.batches import JoinedTaps, TokenGrids, load_token_grids
from fmcache.decoders.concurrent_seeds import concurrent_seed_count, threads_of_a_seed, train_concurrently
from fmcache.decoders.decoder import Decoder, form_for
from fmcache.decoders.fitted import weights_metadata
from fmcache.decoders.layers import Shape
from fmcache.decoders.registry import KINDS, settings, training_settings
from fmcache.decoders.train import (
    Counts,
    TrainedRun,
    Training,
    channel_scale,
    collapsed,
    mean_dice,
    number_format,
    still_falling,
)
from fmcache.errors import CacheCorrupt, CacheMismatch
from fmcache.grid import GridGeometry
from fmcache.manifest import Split, Splits
from fmcache.runtime import runners
from fmcache.runtime.devices import device_name, versions
from fmcache.scores.boundary import write_boundary
from fmcache.scores.calibration import write_calibration
from fmcache.scores.missed import missed
from fmcache.scores.predictions import kept_tiles, write_predictions
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, EncoderInfo, Extraction, RunRecord, RunResults
from fmcache.scores.run_files import WEIGHTS, run_folder, whole_folder, write_run
from fmcache.specs import Recipe
from fmcache.stages.flags import Refused
from fmcache.stages.report_pictures import keep_token_pictures
from fmcache.strict import builtins

LESS_MEMORY = (
    "use fewer --workers or --threads (then fewer seeds are trained concurrently), or write a recipe with another name "
    "and a smaller batch or tile_px"
)


class EncoderRuns(NamedTuple):
    """All runs of one encoder on one dataset and fold (None: its fixed split); picklable.

    `tokens` and `channels` are the token cache and the channels of each tap that the decoder reads. `identity` (JSON)
    is the identity of these runs without the seed.
    """

    recipe: Recipe
    dataset: str
    title: str
    fold: int | None
    splits: Splits
    labels: tuple[tuple[str, str], ...]
    mpp: float | None
    tokens: tuple[Path, ...]
    channels: tuple[int, ...]
    mask_cache: Path
    identity: bytes
    encoder: EncoderInfo
    results: Path
    device: str
    threads: int
    groups: tuple[tuple[str, str], ...]
    """(tile, group) of the test tiles that have a group; not part of the identity."""
    label_pixels: tuple[tuple[Split, tuple[int, ...]], ...] = ()
    """Pixels of each label in the untouched tiles of each split; not part of the identity."""
    source: str = ""
    licence: str = ""
    """`source` and `licence` of the dataset in the manifest; not part of the identity."""
    boundary_px: tuple[float, ...] = ()
    """The tolerance of boundaries for each test tile, in pixels; empty when none are counted."""

    @property
    def concurrent_seeds(self) -> int:
        """The number of seeds that are trained concurrently."""
        return concurrent_seed_count(self._step, self.recipe.fit.seeds, torch.device(self.device), self.threads)

    @property
    def seed_threads(self) -> int:
        """The number of CPU threads on which one seed is trained."""
        return threads_of_a_seed(self._step, torch.device(self.device), self.threads)

    @property
    def _step(self) -> int:
        return self.recipe.fit.batch * multiply_adds(self.shape, self.recipe.decoder.kind)

    @property
    def shape(self) -> Shape:
        """What the decoder is built for."""
        return Shape(self.channels, self.recipe.decoder.width, len(self.labels), self.grid)

    @property
    def grid(self) -> GridGeometry:
        """The geometry of the token grid on the tile's pixels."""
        return GridGeometry(self.recipe.tile_px, self.encoder.patch, self.recipe.grid)

    @contextlib.contextmanager
    def open(self) -> Iterator[LoadedRuns | Refused]:
        """Load the token grids once for all seeds; they are freed when the context is left.

        A cache that cannot be read is the failure of its encoder alone: then the error is given in place of the grids.
        """
        try:
            loaded: LoadedRuns | Refused = LoadedRuns(self, _load(self), _recorded(self))
        except (CacheMismatch, CacheCorrupt) as error:
            loaded = Refused.of(error)
        yield loaded

    @property
    def title_of_runs(self) -> str:
        """Dataset, encoder and fold, for messages."""
        return f"{self.dataset} · {self.encoder.display}" + ("" if self.fold is None else f" · fold {self.fold}")

    def run_identity(self, seed: int) -> dict[str, Any]:
        """Return the identity of a run: everything that can change its counts."""
        return {**msgspec.json.decode(self.identity), "seed": seed}

    def folder(self, seed: int) -> Path:
        """Return the folder of a run's results."""
        return run_folder(self.results, self.recipe.name, self.dataset, self.encoder.name, seed, self.fold)

    @property
    def kept(self) -> tuple[str, ...]:
        """The test tiles whose predictions and pictures are kept."""
        return kept_tiles(self.splits.test)


class Recorded(NamedTuple):
    """What the token cache records about the encoder, and its size: facts for the records of runs."""

    origin: dict[str, Any]
    extraction: Extraction | None


class LoadedRuns(NamedTuple):
    """The runs of an encoder with the objects that they share: loaded token grids and an untrained decoder."""

    runs: EncoderRuns
    training: Training
    recorded: Recorded


class EndedRun(NamedTuple):
    """A run that ended: its seed, a line on how it went, and whether a change of the recipe may help it.

    With `refused`, none of the runs of its task was trained.
    """

    seed: int
    line: str = ""
    needs_help: bool = False
    refused: Refused | None = None


class RunTask(NamedTuple):
    """Runs of one encoder that are trained concurrently; the results of each run are written when it ends."""

    of: str
    seeds: tuple[int, ...]
    epochs: int
    relief: str = LESS_MEMORY

    @property
    def weight(self) -> int:
        return self.epochs * len(self.seeds)

    @property
    def title(self) -> str:
        return f"{self.of} · seed {', '.join(map(str, self.seeds))}"


def fit_runs(loaded: LoadedRuns | Refused, task: RunTask, tick: runners.Tick) -> Iterator[EndedRun]:
    """Train the seeds of a task concurrently; when a seed ends, write its results and yield it."""
    if isinstance(loaded, Refused):
        yield EndedRun(task.seeds[0], refused=loaded)
        return
    runs, test = loaded.runs, loaded.training.test
    torch.set_num_threads(runs.threads)
    if isinstance(test, TokenGrids):
        keep_token_pictures(runs.folder(0).parent, test, runs.kept)
    start = time.monotonic()
    for seed, fitted in train_concurrently(loaded.training, task.seeds, tick, runs.seed_threads):
        wall_s = (time.monotonic() - start) / len(task.seeds)
        yield _write(loaded, seed, fitted, len(task.seeds), wall_s)


def _write(loaded: LoadedRuns, seed: int, fitted: TrainedRun, together: int, wall_s: float) -> EndedRun:
    runs, scale = loaded.runs, loaded.training.scale
    parameters = sum(p.numel() for p in loaded.training.decoder.parameters())
    record = _record(loaded, seed, fitted, parameters, together, wall_s)
    results = RunResults(record, _counts_table(runs, fitted), _curve_table(fitted))
    weights = fitted.weights | (dict(scale._asdict()) if scale else {})
    with whole_folder(runs.folder(seed)) as folder:
        tensors = {name: value.contiguous() for name, value in weights.items()}
        save_file(tensors, folder / WEIGHTS, weights_metadata(loaded.training.decoder))
        write_predictions(folder, fitted.kept)
        write_calibration(folder, runs.splits.test, fitted.calibration)
        if fitted.boundary is not None:
            write_boundary(folder, runs.splits.test, [name for name, _ in runs.labels], fitted.boundary)
        write_run(folder, results)
    line = f"test Dice {mean_dice(fitted.test, runs.recipe.dice):.1%}, best validation {fitted.val_dice:.1%}"
    line += f" after {fitted.best_epoch} epochs"
    if labels := missed(results):
        line += f" · COLLAPSED: never or almost never predicts {', '.join(labels)}"
    if record.still_falling:
        line += " · loss still falling at the end"
    spilled = isinstance(loaded.training.train, TokenGrids) and loaded.training.train.spilled
    line += " · the token grids do not fit into memory and were read from disk" if spilled else ""
    return EndedRun(seed, line, bool(labels) or record.still_falling)


def _load(runs: EncoderRuns) -> Training:
    device, recipe, load = torch.device(runs.device), runs.recipe, loader_of(runs)
    grids = load(runs.splits.train, range(1, recipe.views.count + 1))
    val, test = (load(tiles, range(1)) for tiles in (runs.splits.val, runs.splits.test))
    scale = channel_scale(grids) if recipe.fit.standardise == "channel" else None
    decoder = Decoder(runs.shape, recipe.decoder.kind, form_for(device), recipe.fit.precision)
    shares = label_shares(dict(runs.label_pixels)["train"]) if recipe.decoder.bias == "label-shares" else ()
    return Training(decoder, grids, val, test, recipe.fit, recipe.dice, device, scale, runs.boundary_px, shares)


def label_shares(pixels: Sequence[int]) -> tuple[float, ...]:
    """Return the share of each label; each label gets one pixel more than it has, so that none has a share of 0."""
    total = sum(pixels) + len(pixels)
    return tuple((n + 1) / total for n in pixels)


def loader_of(runs: EncoderRuns) -> Callable[[Sequence[str], range], TokenGrids]:
    """Open the caches of runs; return the function that loads the grids of tiles and views."""
    expected = msgspec.json.decode(runs.identity)
    identities = expected["tokens"] if runs.recipe.decoder.joins_taps else [expected["tokens"]]
    taps = [open_cache(path, "tokens", one) for path, one in zip(runs.tokens, identities, strict=True)]
    tokens = JoinedTaps(tuple(taps)) if len(taps) > 1 else taps[0]
    mask_cache = open_cache(runs.mask_cache, "view_bank", expected["view_bank"])
    torch.set_num_threads(runs.threads)
    return functools.partial(load_token_grids, tokens, mask_cache, device=torch.device(runs.device), spill=runs.results)


def _recorded(runs: EncoderRuns) -> Recorded:
    headers, size = [read_header(path) for path in runs.tokens], sum(disk_bytes(path) for path in runs.tokens)
    # taps of one pass share its time: each cache records all of it
    costs = [cost for header in headers if (cost := header.about.get("extraction"))]
    cost = max(costs, key=lambda cost: cost["seconds"], default=None)
    extraction = Extraction(**cost, bytes=size, cached_views=sum(headers[0].stored)) if cost else None
    return Recorded(headers[0].about.get("origin", {}), extraction)


def _record(
    loaded: LoadedRuns, seed: int, fitted: TrainedRun, parameters: int, together: int, wall_s: float
) -> RunRecord:
    runs, spec = loaded.runs, loaded.runs.recipe.fit
    losses = [epoch.loss for epoch in fitted.curve]
    return RunRecord(
        study=runs.recipe.name,
        dataset=runs.dataset,
        dataset_title=runs.title,
        dataset_source=runs.source,
        dataset_licence=runs.licence,
        encoder=runs.encoder,
        seed=seed,
        fold=runs.fold,
        identity=runs.run_identity(seed),
        recipe=builtins(runs.recipe) | {"decoder": settings(runs.recipe.decoder), "fit": training_settings(spec)},
        labels=runs.labels,
        mpp=runs.mpp,
        tiles={"train": len(runs.splits.train), "val": len(runs.splits.val), "test": len(runs.splits.test)},
        label_pixels=dict(runs.label_pixels),
        groups=dict(runs.groups),
        origin=loaded.recorded.origin,
        extraction=loaded.recorded.extraction,
        decoder_params=parameters,
        decoder_words=KINDS[runs.recipe.decoder.kind].words(runs.shape),
        best_epoch=fitted.best_epoch,
        val_dice=fitted.val_dice,
        collapsed=collapsed(fitted.test, [name for name, _ in runs.labels]),
        still_falling=still_falling(losses, spec.restart_epochs),
        device=device_name(torch.device(runs.device)),
        number_format=number_format(torch.device(runs.device), spec.precision),
        threads=runs.seed_threads,
        together=together,
        versions=versions("fmcache", "torch", "numpy", "zarr", "polars"),
        wall_s=round(wall_s, 3),
    )


def _counts_table(runs: EncoderRuns, fitted: TrainedRun) -> pl.DataFrame:
    def rows(split: str, tiles: Sequence[str], counts: Counts) -> list[tuple[object, ...]]:
        return [
            (split, tile, label, *counts[i, j].tolist())
            for i, tile in enumerate(tiles)
            for j, (label, _) in enumerate(runs.labels)
        ]

    both = rows("val", runs.splits.val, fitted.val) + rows("test", runs.splits.test, fitted.test)
    return pl.DataFrame(both, schema=COUNTS_SCHEMA, orient="row")


def _curve_table(fitted: TrainedRun) -> pl.DataFrame:
    return pl.DataFrame([epoch._asdict() for epoch in fitted.curve], schema=CURVE_SCHEMA)
