"""Stage two: cache -> decoder -> counts. Trains (encoder, seed) runs; no encoder, image or hub token in sight."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import torch
from safetensors.torch import save_file

from fmcache.cache.reader import Cache, open_cache
from fmcache.cache.stores import store_of
from fmcache.cache.writer import locked
from fmcache.decoders.batches import Grids, load_grids, steps_per_epoch
from fmcache.decoders.heads import Decoder
from fmcache.decoders.train import (
    Counts,
    Fitted,
    Scale,
    channel_scale,
    collapsed,
    mean_dice,
    still_falling,
    train,
)
from fmcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound, CacheUnsealed
from fmcache.grid import Grid
from fmcache.identity import canonical_json
from fmcache.manifest import SPLITS, AnyDataset, Manifest, Splits
from fmcache.scores.dice import check_reduction
from fmcache.scores.table import (
    COUNTS_SCHEMA,
    CURVE_SCHEMA,
    EncoderInfo,
    Part,
    RunRecord,
    check_same_run,
    part_folder,
    whole_folder,
    write_part,
)
from fmcache.specs import Recipe, variants
from fmcache.stages import places, runners
from fmcache.stages.caches import size_text
from fmcache.stages.devices import device_name, pick_device, set_threads, versions
from fmcache.stages.flags import Failure, Flags
from fmcache.stages.identities import (
    bank_identity,
    chosen_splits,
    listed_hashes,
    only_tiles,
    tiles_of,
    tokens_identity,
    used_tiles,
)
from fmcache.stages.progress import progress
from fmcache.strict import builtins


class Job(NamedTuple):
    """All runs of one encoder on one dataset and fold (None: its fixed split); picklable.

    `identity` (JSON) is that of its runs, but for the seed.
    """

    recipe: Recipe
    dataset: str
    title: str
    fold: int | None
    splits: Splits
    labels: tuple[tuple[str, str], ...]
    mpp: float | None
    tokens: Path
    bank: Path
    identity: bytes
    encoder: EncoderInfo
    results: Path
    device: str
    threads: int

    @property
    def grid(self) -> Grid:
        """How the tile's pixels lie under the token grid."""
        return Grid(self.recipe.tile_px, self.encoder.patch, self.recipe.grid)

    def run_identity(self, seed: int) -> dict[str, Any]:
        """Return everything that can change the counts of a run."""
        return {**msgspec.json.decode(self.identity), "seed": seed}

    def folder(self, seed: int) -> Path:
        """Return where the part of a run lies."""
        return part_folder(self.results, self.recipe.name, self.dataset, self.encoder.name, seed, self.fold)


class RunTask(NamedTuple):
    """One run: (encoder, seed)."""

    job: Job
    seed: int

    @property
    def weight(self) -> int:
        return self.job.recipe.fit.epochs


class Loaded(NamedTuple):
    """An encoder's grids in memory, read once per process and used by all its seeds."""

    train: Grids
    val: Grids
    test: Grids
    scale: Scale | None


def fit(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None] = print) -> list[Failure]:
    """Train every (dataset, encoder, seed) of `recipe` that has no result yet; return the encoders that could not be.

    Of a recipe with a sweep, every variant is trained.

    Without encoders in the recipe, all that have a cache under it are fitted. Each result appears whole when its run
    ends, so an interrupted sweep goes on where it stopped.

    Raises
    ------
    CacheNotFound
        When nothing was extracted for this recipe.
    ResultsMismatch
        When results under this recipe's name came from another recipe or cache.
    Busy
        When another process is fitting the same study.
    """
    set_threads(flags.threads)
    device = pick_device(flags.device)
    failures: list[Failure] = []
    for variant in variants(recipe):
        jobs = []
        for name in variant.datasets or (manifest.default,):
            found, failed = _jobs(variant, manifest, name, device, flags)
            jobs += found
            failures += [failure for failure in failed if failure[:2] not in {known[:2] for known in failures}]
        with locked(places.results(flags.work) / variant.name):
            _fit_jobs(jobs, variant.fit.seeds, flags, say)
    return failures


def _fit_jobs(jobs: Sequence[Job], seeds: int, flags: Flags, say: Callable[[str], None]) -> None:
    runs = [RunTask(job, seed) for job in jobs for seed in range(seeds)]
    if flags.recompute:
        for run in runs:
            shutil.rmtree(run.job.folder(run.seed), ignore_errors=True)
    todo = [run for run in runs if not check_same_run(run.job.folder(run.seed), run.job.run_identity(run.seed))]
    if jobs:
        say(_forecast(jobs, seeds, len(runs), len(todo)))
    if not todo:
        return
    epochs = sum(run.weight for run in runs)
    done = epochs - sum(run.weight for run in todo)
    with progress("fit", epochs, "epochs", done) as tick:
        for run, line in runners.run(fit_run, todo, tick, flags.workers):
            fold = "" if run.job.fold is None else f"fold {run.job.fold} · "
            say(f"{run.job.dataset} · {run.job.encoder.display} · {fold}seed {run.seed}: {line}")


def fit_run(task: RunTask, tick: runners.Tick) -> str:
    """Train one run and write its part; return a line on how it went."""
    start = time.monotonic()
    job, recipe = task.job, task.job.recipe
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    loaded = _load(job)
    decoder = Decoder(job.encoder.width, recipe.decoder.width, len(job.labels), job.grid)
    fitted = train(
        decoder,
        loaded.train,
        loaded.val,
        loaded.test,
        recipe.fit,
        task.seed,
        recipe.dice,
        device,
        loaded.scale,
        tick,
    )
    parameters = sum(p.numel() for p in decoder.parameters())
    record = _record(task, fitted, parameters, device, time.monotonic() - start)
    weights = fitted.weights | (dict(loaded.scale._asdict()) if loaded.scale else {})
    with whole_folder(job.folder(task.seed)) as folder:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "decoder.safetensors")
        write_part(folder, Part(record, _counts_table(job, fitted), _curve_table(fitted)))
    line = f"test Dice {mean_dice(fitted.test, recipe.dice):.1%}, best validation {fitted.val_dice:.1%}"
    line += f" after {fitted.best_epoch} epochs"
    if record.collapsed:
        line += f" · COLLAPSED: never predicts {', '.join(record.collapsed)}"
    return line + (" · loss still falling at the end" if record.still_falling else "")


def _jobs(
    recipe: Recipe, manifest: Manifest, name: str, device: torch.device, flags: Flags
) -> tuple[list[Job], list[Failure]]:
    dataset = manifest.dataset(name)
    check_reduction(recipe.dice, dataset.label_names)
    bank_path = places.bank_path(flags.work, name, recipe)
    chosen = chosen_splits(recipe, name, dataset)
    used = used_tiles(dataset, chosen.values())
    bank = open_cache(bank_path, "view_bank", bank_identity(recipe, name, dataset, listed_hashes(dataset, used)))
    hashes = only_tiles(bank.header.identity, used)["tiles"]
    listed = [places.encoder_key(choice) for choice in recipe.encoder_choices]
    wanted = [
        (key, tap) for tap in recipe.taps for key in listed or places.cached_encoders(flags.work, name, recipe, tap)
    ]
    if not wanted:
        raise CacheNotFound(
            f"no encoder has been extracted on {name} for recipe {recipe.name!r}",
            next_step=f"fmcache extract --dataset {name} --encoder NAME, with the same recipe and --work folder",
        )
    jobs, failures = [], []
    for key, tap in wanted:
        path = places.tokens_path(flags.work, name, key, recipe, tap)
        try:
            tokens = open_cache(path, "tokens", tokens_identity(recipe, name, hashes, tap))
            jobs += [_job(recipe, name, dataset, at, chosen[at], tokens, bank, device, flags) for at in chosen]
        except (CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt) as error:
            failures.append(Failure(name, key, error))
    return jobs, failures


def _job(
    recipe: Recipe,
    name: str,
    dataset: AnyDataset,
    fold: int | None,
    splits: Splits,
    tokens: Cache,
    bank: Cache,
    device: torch.device,
    flags: Flags,
) -> Job:
    fields = builtins(recipe)
    tiles = tiles_of(splits)
    identity = {
        "tokens": only_tiles(tokens.header.identity, tiles),
        "view_bank": only_tiles(bank.header.identity, tiles),
        "views": recipe.views.count,
        "splits": {split: list(splits.of(split)) for split in SPLITS},
        "decoder": fields["decoder"],
        "fit": {key: value for key, value in fields["fit"].items() if key != "seeds"},
        "dice": recipe.dice,
    }
    info = msgspec.convert(tokens.header.about["encoder"], EncoderInfo)
    labels = tuple((label.name, label.colour) for label in dataset.labels)
    return Job(
        recipe, name, dataset.title or name, fold, splits, labels, dataset.mpp, tokens.path, bank.path,
        canonical_json(identity), info, places.results(flags.work), str(device), torch.get_num_threads(),
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _load(job: Job) -> Loaded:
    expected = msgspec.json.decode(job.identity)
    tokens = open_cache(job.tokens, "tokens", expected["tokens"])
    bank = open_cache(job.bank, "view_bank", expected["view_bank"])
    device = torch.device(job.device)
    views = range(1, job.recipe.views.count + 1)
    grids = load_grids(tokens, bank, job.splits.train, views, device)
    val, test = (load_grids(tokens, bank, tiles, range(1), device) for tiles in (job.splits.val, job.splits.test))
    scale = channel_scale(grids) if job.recipe.fit.standardise == "channel" else None
    return Loaded(grids, val, test, scale)


def _record(task: RunTask, fitted: Fitted, parameters: int, device: torch.device, wall_s: float) -> RunRecord:
    job = task.job
    spec = job.recipe.fit
    losses = [epoch.loss for epoch in fitted.curve]
    return RunRecord(
        study=job.recipe.name,
        dataset=job.dataset,
        dataset_title=job.title,
        encoder=job.encoder,
        seed=task.seed,
        fold=job.fold,
        identity=job.run_identity(task.seed),
        recipe=builtins(job.recipe),
        labels=job.labels,
        mpp=job.mpp,
        tiles={"train": len(job.splits.train), "val": len(job.splits.val), "test": len(job.splits.test)},
        decoder_params=parameters,
        best_epoch=fitted.best_epoch,
        val_dice=fitted.val_dice,
        collapsed=collapsed(fitted.test, [name for name, _ in job.labels]),
        still_falling=still_falling(losses, spec.restart_epochs),
        device=device_name(device),
        threads=job.threads,
        versions=versions("fmcache", "torch", "numpy", "zarr", "polars"),
        wall_s=round(wall_s, 3),
    )


def _counts_table(job: Job, fitted: Fitted) -> pl.DataFrame:
    def rows(split: str, tiles: Sequence[str], counts: Counts) -> list[tuple[object, ...]]:
        return [
            (split, tile, label, *counts[i, j].tolist())
            for i, tile in enumerate(tiles)
            for j, (label, _) in enumerate(job.labels)
        ]

    both = rows("val", job.splits.val, fitted.val) + rows("test", job.splits.test, fitted.test)
    return pl.DataFrame(both, schema=COUNTS_SCHEMA, orient="row")


def _curve_table(fitted: Fitted) -> pl.DataFrame:
    return pl.DataFrame([epoch._asdict() for epoch in fitted.curve], schema=CURVE_SCHEMA)


def _forecast(jobs: Sequence[Job], seeds: int, runs: int, todo: int) -> str:
    job = jobs[0]
    steps = steps_per_epoch(len(job.splits.train), job.recipe.fit) * job.recipe.fit.epochs
    largest = max(_grids_bytes(job) for job in jobs)
    n_folds = len({job.fold for job in jobs})
    folds = f" x {n_folds} folds" if n_folds > 1 else ""
    return (
        f"fit: {len({job.tokens for job in jobs})} caches{folds} x {seeds} seeds; {todo} of {runs} runs to do, "
        f"{steps} steps each ({job.dataset}); "
        f"grids in memory at most {size_text(largest)}"
    )


def _grids_bytes(job: Job) -> int:
    splits = job.splits
    views = len(splits.train) * job.recipe.views.count + len(splits.val) + len(splits.test)
    tokens = job.encoder.width * job.grid.side**2 * store_of(job.recipe.store).itemsize
    return views * (tokens + job.recipe.tile_px**2)
