"""Stage two: cache -> decoder -> counts. Trains (encoder, seed) runs without encoders, images or a hub token."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import torch
from safetensors.torch import save_file

from fmcache.cache.header import read_header
from fmcache.cache.reader import Cache, open_cache
from fmcache.cache.verify import disk_bytes
from fmcache.decoders.arithmetic import grids_bytes, multiply_adds
from fmcache.decoders.batches import JoinedTaps, TokenGrids, load_token_grids, steps_per_epoch
from fmcache.decoders.concurrent_seeds import concurrent_seed_count, threads_of_a_seed, train_concurrently
from fmcache.decoders.decoder import Decoder, form_for
from fmcache.decoders.fitted import weights_metadata
from fmcache.decoders.layers import Shape
from fmcache.decoders.registry import KINDS, settings
from fmcache.decoders.train import Counts, TrainedRun, Training, channel_scale, collapsed, mean_dice, still_falling
from fmcache.demand import Demand, all_tiles, check_sweep, demands, tiles_of
from fmcache.errors import (
    Busy,
    CacheCorrupt,
    CacheMismatch,
    CacheNotFound,
    CacheUnsealed,
    ResultsCorrupt,
    SpecError,
    WeightsMismatch,
)
from fmcache.grid import GridGeometry
from fmcache.identity import canonical_json, remove_folder, sweep
from fmcache.locks import locked
from fmcache.manifest import SPLITS, Manifest, Split, Splits
from fmcache.remembered import Remembered
from fmcache.runtime import runners
from fmcache.runtime.devices import device_name, pick_device, thread_count, using_threads, versions
from fmcache.runtime.progress import progress
from fmcache.runtime.sizes import size_text
from fmcache.scores.boundary import write_boundary
from fmcache.scores.calibration import write_calibration
from fmcache.scores.dice import check_reduction
from fmcache.scores.missed import WHAT_HELPS, missed
from fmcache.scores.predictions import kept_tiles, write_predictions
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, EncoderInfo, Extraction, RunRecord, RunResults
from fmcache.scores.run_files import WEIGHTS, check_same_run, run_folder, whole_folder, write_run
from fmcache.shortage import naming_shortage
from fmcache.specs import Recipe, variants
from fmcache.stages import places
from fmcache.stages.flags import Failure, Flags
from fmcache.stages.identities import only_tiles
from fmcache.stages.inputs import open_masks, open_taps
from fmcache.stages.labelled import check_labelled, label_notes, label_pixels, place, split_pixels
from fmcache.stages.origins import check_origin, encoder_info, joined_info, renamed
from fmcache.stages.report_pictures import copy_tile_pictures, has_token_pictures, keep_token_pictures
from fmcache.stages.scale import tolerances_px
from fmcache.strict import builtins

LESS_MEMORY = (
    "use fewer --workers or --threads (then fewer seeds are trained concurrently), or write a recipe with another name "
    "and a smaller batch or tile_px"
)


MANY_BYTES = 10**8
"""The forecast names the size of predictions when it may be larger than this."""


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
    def open(self) -> Iterator[LoadedRuns]:
        """Load the token grids once for all seeds; they are freed when the context is left."""
        yield LoadedRuns(self, _load(self), _recorded(self))

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
    """A run that ended: its seed, a line on how it went, and whether a change of the recipe may help it."""

    seed: int
    line: str
    needs_help: bool


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


def fit(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None] = print) -> list[Failure]:
    """Train every (dataset, encoder, seed) of `recipe` that has no result yet; return the encoders that failed.

    If the recipe has a sweep, every variant is trained.

    If the recipe lists no encoders, all encoders that have a cache for it are fitted. The results of a run are written
    in one step when the run ends, so an interrupted sweep resumes where it stopped.

    Raises
    ------
    CacheNotFound
        When nothing was extracted for this recipe.
    ManifestError
        When a split has no labelled pixel.
    ResultsMismatch
        When results under this recipe's name came from another recipe or cache.
    Busy
        When another process is fitting the same study or, in a sweep, other processes are fitting all variants. If
        only some variants are busy, the others are trained, and the busy variants are returned as failed.
    """
    with using_threads(flags.threads):
        return _fit(recipe, manifest, flags, say)


def _fit(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None]) -> list[Failure]:
    device = pick_device(flags.device)
    failures: list[Failure] = []
    busy: list[Failure] = []
    said: set[str] = set()

    def say_once(line: str) -> None:  # variants of one recipe have the same splits
        if line not in said:
            said.add(line)
            say(line)

    if line := check_sweep(recipe, manifest, flags.yes):
        say(line)
    swept = variants(recipe)
    for variant in swept:
        all_runs = []
        for demand in demands(variant, manifest):
            found, failed = _runs_of_dataset(variant, demand, device, flags, say_once)
            all_runs += _with_label_pixels(found, say_once)
            failures += [failure for failure in failed if failure[:2] not in {known[:2] for known in failures}]
        study = places.results(flags.work) / variant.name
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(study))
            except Busy as error:
                busy.append(Failure(variant.name, "all encoders", error))
                if len(busy) == len(swept):
                    raise
                say(f"{variant.name}: another process is fitting it; it is left out")
                continue
            sweep(study)
            _keep_tile_pictures(all_runs, flags.work, say_once)
            _train_missing(all_runs, variant.fit.seeds, flags, say)
    return failures + busy


def _train_missing(all_runs: Sequence[EncoderRuns], seeds: int, flags: Flags, say: Callable[[str], None]) -> None:
    if flags.recompute:
        for runs in all_runs:
            for seed in range(seeds):
                remove_folder(runs.folder(seed))
    groups = [(runs, _tasks(runs, seeds, say)) for runs in all_runs]
    todo = [task for _, tasks in groups for task in tasks]
    if all_runs:
        say(_forecast(groups, seeds))
    _draw_missing_tokens([runs for runs, tasks in groups if not tasks], say)
    if not todo:
        return
    epochs = sum(runs.recipe.fit.epochs * seeds for runs in all_runs)
    done = epochs - sum(task.weight for task in todo)
    with (
        progress("fit", epochs, "epochs", done) as tick,
        contextlib.closing(runners.run(fit_runs, groups, tick, flags.workers)) as ended,
    ):
        poor = 0
        for task, (seed, line, needs_help) in ended:  # from a worker process it comes as a plain tuple
            say(f"{task.of} · seed {seed}: {line}")
            poor += needs_help
    if poor:
        say(f"{poor} run{'s' * (poor > 1)} collapsed, or the loss was still falling at the end. {WHAT_HELPS}.")


def _tasks(runs: EncoderRuns, seeds: int, say: Callable[[str], None]) -> list[RunTask]:
    missing = [seed for seed in range(seeds) if not _is_done(runs, seed, say)]
    step = runs.concurrent_seeds
    groups = [tuple(missing[i : i + step]) for i in range(0, len(missing), step)]
    return [RunTask(runs.title_of_runs, group, runs.recipe.fit.epochs) for group in groups]


def _is_done(runs: EncoderRuns, seed: int, say: Callable[[str], None]) -> bool:
    try:
        return check_same_run(runs.folder(seed), runs.run_identity(seed), {"mpp": runs.mpp})
    except ResultsCorrupt as damage:
        say(f"{damage.problem}; this run is trained again")
        return False


def _keep_tile_pictures(all_runs: Sequence[EncoderRuns], work: Path, say: Callable[[str], None]) -> None:
    """Copy the pictures of the kept test tiles of all folds into the results of each dataset."""
    folders: dict[Path, dict[str, Path]] = {}
    for runs in {(runs.dataset, runs.fold): runs for runs in all_runs}.values():
        hashes = msgspec.json.decode(runs.identity)["view_bank"]["tiles"]
        sources = folders.setdefault(runs.results / runs.recipe.name / runs.dataset, {})
        for tile in runs.kept:
            sources[tile] = places.tile_picture(work, runs.dataset, runs.recipe.tile_px, hashes[tile][0])
    for folder, sources in folders.items():
        with naming_shortage(f"{folder.name} · tile pictures", LESS_MEMORY):
            copy_tile_pictures(folder.name, sources, folder, say)


def _draw_missing_tokens(finished: Sequence[EncoderRuns], say: Callable[[str], None]) -> None:
    """Write the token pictures of encoders whose runs are all finished, if an earlier fmcache trained them."""
    for runs in finished:
        folder = runs.folder(0).parent
        if has_token_pictures(folder):
            continue
        try:
            with naming_shortage(runs.title_of_runs, LESS_MEMORY):
                keep_token_pictures(folder, _loader(runs)(runs.kept, range(1)), runs.kept)
        except (CacheMismatch, CacheCorrupt) as error:
            say(f"{runs.title_of_runs}: no pictures of token grids: {error.problem}")


def fit_runs(loaded: LoadedRuns, task: RunTask, tick: runners.Tick) -> Iterator[EndedRun]:
    """Train the seeds of a task concurrently; when a seed ends, write its results and yield it."""
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


def _runs_of_dataset(
    recipe: Recipe, demand: Demand, device: torch.device, flags: Flags, say: Callable[[str], None] = print
) -> tuple[list[EncoderRuns], list[Failure]]:
    name, dataset = demand.name, demand.dataset
    check_reduction(recipe.dice, dataset.label_names)
    mask_cache = open_masks(recipe, demand, flags.work)
    tolerances = tolerances_px(recipe, demand, mask_cache.header)
    listed = places.encoder_keys(recipe)
    wanted = [
        (key, taps)
        for taps in recipe.taps_of_decoders
        for key in listed or places.cached_encoders(flags.work, name, recipe, taps)
    ]
    if not wanted:
        which = f" of each tap ({', '.join(recipe.taps)})" if recipe.decoder.joins_taps else ""
        raise CacheNotFound(
            f"no encoder has a cache{which} on {name} for recipe {recipe.name!r}",
            next_step=f"run fmcache extract --dataset {name} --encoder NAME, with the same recipe and --work folder",
        )
    all_runs, failures = [], []
    remembered, lock = Remembered(places.remembered(flags.work)), places.weights_lock(flags.work)
    for key, taps in wanted:
        path = places.tokens_path(flags.work, name, key, recipe, taps[0])
        try:
            tokens = open_taps(recipe, demand, key, taps, mask_cache, flags.work)
            notes = [check_origin(cache, key, listed.get(key), recipe, lock, remembered.sha256) for cache in tokens]
            for line in dict.fromkeys(line for of_cache in notes for line in of_cache):
                say(f"{name} · {key}: {line}")
            of_folds = [
                _runs_of_encoder(recipe, demand, fold, tokens, mask_cache, device, flags) for fold in demand.splits
            ]
            all_runs += [runs._replace(boundary_px=_of_test(runs, tolerances)) for runs in of_folds]
        except CacheNotFound as error:
            failures.append(Failure(name, key, renamed(path, listed.get(key)) or error))
        except (CacheUnsealed, CacheMismatch, CacheCorrupt, SpecError, WeightsMismatch) as error:
            failures.append(Failure(name, key, error))
    remembered.keep()
    return all_runs, failures


def _of_test(runs: EncoderRuns, tolerances: Mapping[str, float]) -> tuple[float, ...]:
    """Return the tolerances of boundaries of the test tiles, in their order; () when none are counted."""
    return tuple(tolerances[tile] for tile in runs.splits.test) if tolerances else ()


def _runs_of_encoder(
    recipe: Recipe,
    demand: Demand,
    fold: int | None,
    tokens: Sequence[Cache],
    mask_cache: Cache,
    device: torch.device,
    flags: Flags,
) -> EncoderRuns:
    fields, dataset, splits = builtins(recipe), demand.dataset, demand.splits[fold]
    tiles = tiles_of(splits)
    of_tokens = [only_tiles(cache.header.identity, tiles) for cache in tokens]
    identity: dict[str, Any] = {
        "tokens": of_tokens if recipe.decoder.joins_taps else of_tokens[0],
        "view_bank": only_tiles(mask_cache.header.identity, tiles),
        "views": recipe.views.count,
        "splits": {split: list(splits.of(split)) for split in SPLITS},
        "decoder": settings(recipe.decoder),
        "fit": {key: value for key, value in fields["fit"].items() if key != "seeds"},
        "dice": recipe.dice,
    }
    if length := recipe.boundary_length:  # absent otherwise: identities of runs without boundaries stay as they were
        identity["boundary"] = list(length)
    infos = [encoder_info(cache) for cache in tokens]
    info = joined_info(infos, recipe.taps) if recipe.decoder.joins_taps else infos[0]
    labels = tuple((label.name, label.colour) for label in dataset.labels)
    groups = tuple((tile.id, tile.group) for tile in dataset.tiles if tile.group and tile.id in splits.test)
    # processes share the cores, unless the user says how many threads each may use
    threads = thread_count(flags.threads) // (1 if flags.threads else max(flags.workers, 1))
    return EncoderRuns(
        recipe, demand.name, dataset.title or demand.name, fold, splits, labels, dataset.mpp,
        tuple(cache.path for cache in tokens), tuple(one.width for one in infos), mask_cache.path,
        canonical_json(identity), info, places.results(flags.work), str(device), max(threads, 1), groups,
        source=dataset.source, licence=dataset.licence,
    )  # fmt: skip


def _with_label_pixels(all_runs: Sequence[EncoderRuns], say: Callable[[str], None]) -> list[EncoderRuns]:
    """Return a dataset's runs with their label pixels, and report labels that splits lack.

    Raises ManifestError when a split has no labelled pixel.
    """
    if not all_runs:
        return []
    mask_cache, labels = all_runs[0].mask_cache, [name for name, _ in all_runs[0].labels]
    tiles = all_tiles(runs.splits for runs in all_runs)
    sides = {runs.grid.covered_px for runs in all_runs}
    expected = msgspec.json.decode(all_runs[0].identity)["view_bank"]
    counts = label_pixels(open_cache(mask_cache, "view_bank", expected), tiles, len(labels), sides)
    counted = []
    for runs in all_runs:
        side, tile_px = runs.grid.covered_px, runs.recipe.tile_px
        check_labelled(runs.dataset, runs.fold, runs.splits, counts[side])
        where = place(runs.dataset, runs.fold)
        if side < tile_px:
            where += f", in the {side} x {side} px that {runs.encoder.display} covers"
        for line in label_notes(where, runs.splits, counts[side], labels, runs.recipe.dice):
            say(line)
        counted.append(runs._replace(label_pixels=tuple(split_pixels(runs.splits, counts[side]).items())))
    return counted


def _load(runs: EncoderRuns) -> Training:
    device, recipe, load = torch.device(runs.device), runs.recipe, _loader(runs)
    grids = load(runs.splits.train, range(1, recipe.views.count + 1))
    val, test = (load(tiles, range(1)) for tiles in (runs.splits.val, runs.splits.test))
    scale = channel_scale(grids) if recipe.fit.standardise == "channel" else None
    decoder = Decoder(runs.shape, recipe.decoder.kind, form_for(device))
    return Training(decoder, grids, val, test, recipe.fit, recipe.dice, device, scale, runs.boundary_px)


def _loader(runs: EncoderRuns) -> Callable[[Sequence[str], range], TokenGrids]:
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
        recipe=builtins(runs.recipe) | {"decoder": settings(runs.recipe.decoder)},
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


def _forecast(groups: Sequence[tuple[EncoderRuns, Sequence[RunTask]]], seeds: int) -> str:
    all_runs = [runs for runs, _ in groups]
    runs = all_runs[0]
    todo = [sum(len(task.seeds) for task in tasks) for _, tasks in groups]
    steps = steps_per_epoch(len(runs.splits.train), runs.recipe.fit) * runs.recipe.fit.epochs
    largest = max(grids_bytes(runs.recipe, runs.splits, runs.encoder.width, runs.grid) for runs in all_runs)
    n_folds = len({runs.fold for runs in all_runs})
    folds = f" x {n_folds} folds" if n_folds > 1 else ""
    concurrent = max(runs.concurrent_seeds for runs in all_runs)
    how = "one after another" if concurrent == 1 else f"up to {concurrent} concurrently"
    # predictions and truth, one byte a pixel
    kept = sum(n * 2 * len(runs.kept) * runs.grid.covered_px**2 for n, runs in zip(todo, all_runs, strict=True))
    predictions = f"; predictions of test tiles on disk: at most {size_text(kept)}" if kept > MANY_BYTES else ""
    return (
        f"fit: {len({path for runs in all_runs for path in runs.tokens})} caches{folds} x {seeds} seeds; "
        f"{sum(todo)} of {len(all_runs) * seeds} runs to do, {steps} steps each ({runs.dataset}), {how}; "
        f"token grids in memory: at most {size_text(largest)}{predictions}"
    )
