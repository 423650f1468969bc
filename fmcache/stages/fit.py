"""Stage two: cache -> decoder -> counts. Trains (encoder, seed) runs without encoders, images or a hub token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fmcache.cache.reader import Cache, open_cache
from fmcache.decoders.arithmetic import grids_bytes
from fmcache.decoders.batches import steps_per_epoch
from fmcache.decoders.registry import settings, training_settings
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
from fmcache.identity import canonical_json, remove_folder, sweep
from fmcache.locks import locked
from fmcache.manifest import SPLITS, Manifest
from fmcache.remembered import Remembered
from fmcache.runtime import runners
from fmcache.runtime.admission import Sees
from fmcache.runtime.cluster import keeping_workers
from fmcache.runtime.devices import Where, using_threads, where
from fmcache.runtime.progress import progress
from fmcache.runtime.sizes import size_text
from fmcache.scores.dice import check_reduction
from fmcache.scores.missed import WHAT_HELPS
from fmcache.scores.run_files import check_same_run
from fmcache.shortage import naming_shortage
from fmcache.specs import Recipe, variants
from fmcache.stages import at_url, places
from fmcache.stages.encoder_runs import LESS_MEMORY, EncoderRuns, RunTask, fit_runs, loader_of
from fmcache.stages.flags import Failure, Flags, Refused
from fmcache.stages.identities import only_tiles
from fmcache.stages.inputs import open_masks, open_taps
from fmcache.stages.labelled import check_labelled, label_notes, label_pixels, place, split_pixels
from fmcache.stages.origins import check_origin, encoder_info, joined_info, renamed
from fmcache.stages.report_pictures import copy_tile_pictures, has_token_pictures, keep_token_pictures
from fmcache.stages.scale import tolerances_px

MANY_BYTES = 10**8
"""The forecast names the size of predictions when it may be larger than this."""


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
    with using_threads(flags.threads), keeping_workers():
        return _fit(recipe, manifest, flags, say)


def _fit(recipe: Recipe, manifest: Manifest, flags: Flags, say: Callable[[str], None]) -> list[Failure]:
    at = where(flags.device, flags.threads, flags.workers)
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
            at_url.fetch_masks(variant, demand, flags.work)
            found, failed = _runs_of_dataset(variant, demand, at, flags, say_once)
            all_runs += _with_label_pixels(found, say_once)
            failures += _others(failed, failures)
        study = places.results(flags.work) / variant.name
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(at_url.writing_results(study, flags.work))
                held.enter_context(locked(study))
            except Busy as error:
                busy.append(Failure(variant.name, "all encoders", error))
                if len(busy) == len(swept):
                    raise
                say(f"{variant.name}: another process is fitting it; it is left out")
                continue
            sweep(study)
            _keep_tile_pictures(all_runs, flags.work, say_once)
            failures += _others(_train_missing(all_runs, variant.fit.seeds, manifest.path, flags, say), failures)
    return failures + busy


def _others(failed: Sequence[Failure], known: Sequence[Failure]) -> list[Failure]:
    """Return the failures of encoders that have not failed before, in another task or under another variant."""
    return [failure for failure in failed if failure[:2] not in {other[:2] for other in known}]


def _train_missing(
    all_runs: Sequence[EncoderRuns], seeds: int, manifest: Path, flags: Flags, say: Callable[[str], None]
) -> list[Failure]:
    """Train the runs that are missing; return the encoders whose caches cannot be read."""
    if flags.recompute:
        for runs in all_runs:
            for seed in range(seeds):
                remove_folder(runs.folder(seed))
    groups = [(runs, _tasks(runs, seeds, say)) for runs in all_runs]
    todo = [task for _, tasks in groups for task in tasks]
    if all_runs:
        say(_forecast(groups, seeds))
    finished = [runs for runs, tasks in groups if not tasks]
    if isinstance(flags.workers, str):  # this machine may have no GPU
        finished = [runs._replace(device="cpu") for runs in finished]
    _draw_missing_tokens(finished, say)
    if not todo:
        return []
    of_task = {id(task): runs for runs, tasks in groups for task in tasks}
    failures: list[Failure] = []
    epochs = sum(runs.recipe.fit.epochs * seeds for runs in all_runs)
    done = epochs - sum(task.weight for task in todo)
    sees = _sees(groups, manifest, flags)
    with (
        progress("fit", epochs, "epochs", done) as tick,
        contextlib.closing(runners.run(fit_runs, groups, tick, flags.workers, sees)) as ended,
    ):
        poor = 0
        for task, (seed, line, needs_help, refused) in ended:  # from a worker process these are plain tuples
            if refused:
                runs = of_task[id(task)]
                failures += _others([Failure(runs.dataset, runs.encoder.name, Refused(*refused).error())], failures)
                continue
            say(f"{task.of} · seed {seed}: {line}")
            poor += needs_help
    if poor:
        which = f"{poor} run{'s' * (poor > 1)} collapsed, or the loss was still falling at the end"
        say(f"{which}. {WHAT_HELPS}. fmcache plan RECIPE shows the cost of each.")
    return failures


def _sees(groups: Sequence[tuple[EncoderRuns, Sequence[RunTask]]], manifest: Path, flags: Flags) -> Sees:
    """Return what workers on other machines must see."""
    reads = [("manifest", manifest)]
    reads += [("cache", path) for runs, tasks in groups if tasks for path in (runs.mask_cache, *runs.tokens)]
    return Sees(tuple(dict.fromkeys(reads)), (("folder of the results", places.results(flags.work)),))


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
                keep_token_pictures(folder, loader_of(runs)(runs.kept, range(1)), runs.kept)
        except (CacheMismatch, CacheCorrupt) as error:
            say(f"{runs.title_of_runs}: no pictures of token grids: {error.problem}")


def _runs_of_dataset(
    recipe: Recipe, demand: Demand, at: Where, flags: Flags, say: Callable[[str], None] = print
) -> tuple[list[EncoderRuns], list[Failure]]:
    name, dataset = demand.name, demand.dataset
    check_reduction(recipe.dice, dataset.label_names)
    mask_cache = open_masks(recipe, demand, flags.work)
    tolerances = tolerances_px(recipe, demand, mask_cache.header)
    listed = places.encoder_keys(recipe)
    wanted = [
        (key, taps)
        for taps in recipe.taps_of_decoders
        for key in listed or at_url.cached_encoders(flags.work, name, recipe, taps)
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
            at_url.fetch_tokens(recipe, demand, key, taps, flags.work)
            tokens = open_taps(recipe, demand, key, taps, mask_cache, flags.work)
            notes = [check_origin(cache, key, listed.get(key), recipe, lock, remembered.sha256) for cache in tokens]
            for line in dict.fromkeys(line for of_cache in notes for line in of_cache):
                say(f"{name} · {key}: {line}")
            of_folds = [_runs_of_encoder(recipe, demand, fold, tokens, mask_cache, at, flags) for fold in demand.splits]
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
    at: Where,
    flags: Flags,
) -> EncoderRuns:
    dataset, splits = demand.dataset, demand.splits[fold]
    tiles = tiles_of(splits)
    of_tokens = [only_tiles(cache.header.identity, tiles) for cache in tokens]
    identity: dict[str, Any] = {
        "tokens": of_tokens if recipe.decoder.joins_taps else of_tokens[0],
        "view_bank": only_tiles(mask_cache.header.identity, tiles),
        "views": recipe.views.count,
        "splits": {split: list(splits.of(split)) for split in SPLITS},
        "decoder": settings(recipe.decoder),
        "fit": {key: value for key, value in training_settings(recipe.fit).items() if key != "seeds"},
        "dice": recipe.dice,
    }
    if length := recipe.boundary_length:  # absent otherwise: identities of runs without boundaries stay as they were
        identity["boundary"] = list(length)
    infos = [encoder_info(cache) for cache in tokens]
    info = joined_info(infos, recipe.taps) if recipe.decoder.joins_taps else infos[0]
    labels = tuple((label.name, label.colour) for label in dataset.labels)
    groups = tuple((tile.id, tile.group) for tile in dataset.tiles if tile.group and tile.id in splits.test)
    return EncoderRuns(
        recipe, demand.name, dataset.title or demand.name, fold, splits, labels, dataset.mpp,
        tuple(cache.path for cache in tokens), tuple(one.width for one in infos), mask_cache.path,
        canonical_json(identity), info, places.results(flags.work), at.device, at.threads, groups,
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
