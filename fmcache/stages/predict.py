"""From runs or a bundle to maps of slides: finds slides, forecasts, skips complete maps, and runs one task a slide."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fmcache.bundles.contents import CHECKSUMS, checked_facts
from fmcache.encoders.tokens import batch_size
from fmcache.errors import ExtraMissing, ManifestError, ResultsMismatch, SpecError, TileError, some
from fmcache.grid import GridGeometry
from fmcache.identity import canonical_json, sha256_file, sweep
from fmcache.locks import locked
from fmcache.manifest import Label, Manifest
from fmcache.prediction.lattice import Coverage, everywhere
from fmcache.prediction.windowing import Windows, memory_bytes, tiles_at_a_time, windows_over
from fmcache.runtime import runners
from fmcache.runtime.admission import Sees
from fmcache.runtime.devices import Where, using_threads, where
from fmcache.runtime.progress import progress
from fmcache.runtime.sizes import size_text
from fmcache.scores.run_files import WEIGHTS
from fmcache.slides.canvas import Canvas, open_canvas
from fmcache.slides.tissue import region_cells, tissue_cells
from fmcache.stages import places
from fmcache.stages.flags import Failure, Flags, Refused
from fmcache.stages.model_setup import BundleSetup, ModelSetup
from fmcache.stages.predict_request import PredictRequest
from fmcache.stages.run_choice import ChosenRuns, choose_runs, tile_mpp
from fmcache.stages.slide_maps import SUFFIX, SlideTask, is_mapped, map_slide
from fmcache.stages.slide_tokens import slide_tokens, tokens_shape

SUFFIXES = frozenset(
    ".svs .ndpi .mrxs .scn .vms .vmu .bif .svslide .tif .tiff .dcm .png .jpg .jpeg .bmp".split()  # noqa: SIM905
)
"""Ends of the names of files that are taken for slides in a folder."""
CELLS_PER_TILE = 4
"""Tissue is searched in cells of a quarter of a tile's side; the edge of a map follows these cells."""
REGION_CELLS_PER_TILE = 32
"""The edges of regions that a user drew are followed more closely."""


class _Model(NamedTuple):
    """What is known of the model before it is loaded."""

    setup: ModelSetup | BundleSetup
    title: str
    tile_px: int
    covered_px: int
    mpp: float
    labels: tuple[Label, ...]
    seeds: int
    identity: dict[str, Any]
    folder: Path
    item: tuple[int, int, int] | None = None
    """Shape of the tokens of a tile, if they are cached."""


def predict(request: PredictRequest, flags: Flags, say: Callable[[str], None] = print) -> tuple[Path, list[Failure]]:
    """Write the maps of a slide or of a folder of slides; return their folder, and the slides that failed.

    A map that is complete and was made from the same runs, slide and settings is kept. Labels and colours are those
    that were trained, whatever the manifest says now.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch, BundleNotFound, BundleCorrupt
        When there are no such runs or no such bundle, or their files are damaged.
    SpecError
        When the um/px of the study's tiles is unknown; for a mistake in the request.
    EncoderUnavailable, WeightsMismatch
        When the encoder is not there, or is not the one that the runs were trained on.
    NoRoom, NoMemory, Busy
        When the disk or memory is full, or another process writes into the same folder.
    """
    with using_threads(flags.threads) as threads:
        model = _model(request, flags)
        slides = _slides(request)
        model.folder.mkdir(parents=True, exist_ok=True)
        with locked(model.folder):
            sweep(model.folder)
            with tempfile.TemporaryFile(dir=model.folder):
                pass  # a folder that cannot be written is an error now, not after the first slide
            return model.folder, _predict(request, flags, say, model, slides, threads)


def _predict(
    request: PredictRequest,
    flags: Flags,
    say: Callable[[str], None],
    model: _Model,
    slides: Sequence[Path],
    threads: int,
) -> list[Failure]:
    say(f"{model.title}")
    say(f"labels, as they were trained: {', '.join(label.name for label in model.labels)}")
    if line := _changed_labels(request, model):
        say(line)
    tasks, failures, complete = [], [], 0
    for path in slides:
        try:
            task = _task(request, flags, say, model, path, threads)
        except (TileError, SpecError, ExtraMissing, ResultsMismatch) as error:
            failures.append(Failure(path.name, "not predicted", error.bare()))
            continue
        if task:
            tasks.append(task)
        else:
            complete += 1
    say(_forecast(model, tasks, complete, len(slides)))
    total = sum(task.weight for task in tasks)
    with (
        progress("predict", total, "tiles") as tick,
        contextlib.closing(
            runners.run(map_slide, _groups(model, tasks), tick, flags.workers, _sees(request, flags, tasks))
        ) as ended,
    ):
        for task, (line, refused) in ended:  # from a worker process, `refused` comes as a plain tuple
            if refused:
                failures.append(Failure(task.name, "not predicted", Refused(*refused).error()))
            else:
                say(line)
    return failures


def _groups(model: _Model, tasks: Sequence[SlideTask]) -> list[tuple[runners.Setup[Any], list[SlideTask]]]:
    """Return tasks by their setup: slides whose tokens are cached do not need the encoder."""
    cached = [task for task in tasks if task.tokens and task.tokens.sealed]
    if not (cached and isinstance(model.setup, ModelSetup)):
        return [(model.setup, list(tasks))]
    others = [task for task in tasks if not (task.tokens and task.tokens.sealed)]
    groups: list[tuple[runners.Setup[Any], list[SlideTask]]] = [(model.setup._replace(encodes=False), cached)]
    return groups + ([(model.setup, others)] if others else [])


def _sees(request: PredictRequest, flags: Flags, tasks: Sequence[SlideTask]) -> Sees:
    """Return what workers on other machines must see."""
    reads = [("slide", task.path) for task in tasks]
    reads += [("bundle", request.bundle)] if request.bundle else [("results", places.results(flags.work))]
    writes = [("folder of the maps", task.folder) for task in tasks[:1]]
    writes += [("folder of the slides' tokens", task.tokens.path.parent) for task in tasks[:1] if task.tokens]
    return Sees(tuple(reads), tuple(writes))


def _model(request: PredictRequest, flags: Flags) -> _Model:
    at = where(flags.device, flags.threads, flags.workers)
    if request.runs is None:
        return _of_bundle(request, flags, at)
    results = places.results(flags.work)
    chosen = choose_runs(results, request.runs)
    record = chosen.records[0]
    mpp = tile_mpp(results / record.study / record.dataset, record, request.mpp)
    grid = GridGeometry(int(record.recipe["tile_px"]), record.encoder.patch, record.recipe["grid"])
    title = f"{record.encoder.display} on {record.dataset_title}, {chosen.reason}"
    lock = places.weights_lock(flags.work)
    setup = ModelSetup(chosen, mpp, at.device, at.threads, flags.offline, lock, request.weights)
    folder = request.into or places.maps(
        flags.work, record.study, record.dataset, record.encoder.name, chosen.folder_name
    )
    return _Model(
        setup, title, grid.tile_px, grid.covered_px, mpp, chosen.labels, len(chosen.records), _identity(chosen), folder,
        tokens_shape(chosen) if request.cache_tokens else None,
    )  # fmt: skip


def _of_bundle(request: PredictRequest, flags: Flags, at: Where) -> _Model:
    if request.bundle is None:
        raise SpecError("nothing to predict with", next_step="pass --study and --encoder, or --bundle")
    if request.cache_tokens:
        raise SpecError(
            "--cache-tokens and --bundle cannot be combined: the model of a bundle gives no tokens",
            next_step="leave out --cache-tokens, or pass --study and --encoder in place of --bundle",
        )
    facts = checked_facts(request.bundle)
    setup = BundleSetup(request.bundle, at.device, at.threads, request.weights)
    return _Model(
        setup, facts.title, facts.tile_px, facts.covered_px, facts.mpp,
        tuple(Label(one.name, one.colour) for one in facts.labels), 1,
        {"bundle": sha256_file(request.bundle / CHECKSUMS)},
        request.into or places.maps(flags.work, request.bundle.resolve().name),
    )  # fmt: skip


def _changed_labels(request: PredictRequest, model: _Model) -> str:
    """Return a line on labels or colours that the manifest states differently now; '' when they are the same.

    A manifest that is not there, or cannot be read, is no error: predict does not need it.
    """
    try:
        dataset = Manifest(request.manifest).dataset(model.identity.get("dataset", ""))
    except (ManifestError, OSError):
        return ""
    now = [(label.name, label.colour) for label in dataset.labels]
    if now == [(label.name, label.colour) for label in model.labels]:
        return ""
    said = ", ".join(f"{name} {colour}" for name, colour in now)
    return f"{request.manifest} has other labels or colours now ({said}); maps have those that were trained"


def _identity(chosen: ChosenRuns) -> dict[str, Any]:
    """Return what the maps depend on beside the slide and the settings; labels and colours are those of the records."""
    first = chosen.records[0]
    runs = [
        {
            "fold": record.fold,
            "seed": record.seed,
            "identity": record.fingerprint,
            "decoder": sha256_file(folder / WEIGHTS),
        }
        for record, folder in zip(chosen.records, chosen.folders, strict=True)
    ]
    return {
        "study": first.study,
        "dataset": first.dataset,
        "encoder": first.encoder.name,
        "encoder_weights": first.encoder.weights_sha256,
        "runs": runs,
    }


def _slides(request: PredictRequest) -> list[Path]:
    """Return the slides in name order.

    Raises
    ------
    SpecError
        When there is none, two have the same name, or one file of regions is given for several slides.
    """
    path = request.slides
    if not path.exists():
        raise SpecError(f"there is no slide or folder {path}", next_step="check the path")
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))
    if not found:
        raise SpecError(
            f"{path} holds no slide",
            expected=f"files that end in {', '.join(sorted(SUFFIXES))}",
            found=some(one.name for one in sorted(path.iterdir())) or "an empty folder",
            next_step="check the path, or pass a slide",
        )
    names = [_name(one) for one in found]
    if twice := [one.name for one in found if names.count(_name(one)) > 1]:
        raise SpecError(
            f"slides of {path} would have maps of the same name",
            found=some(twice),
            next_step="rename one of them, or predict them into different folders (--into)",
        )
    if request.regions and len(found) > 1:
        raise SpecError(
            "--regions holds the regions of one slide",
            found=f"{len(found)} slides in {path}",
            next_step="pass one slide",
        )
    return found


def _name(path: Path) -> str:
    return path.stem.removesuffix(".ome")


def _task(
    request: PredictRequest, flags: Flags, say: Callable[[str], None], model: _Model, path: Path, threads: int
) -> SlideTask | None:
    """Return what must be done for a slide, after finding its tissue; None when its map is complete.

    Raises the errors of a slide that cannot be read, or whose map was made in another way.
    """
    with open_canvas(path, model.mpp, request.mpp_of_slide) as canvas:
        identity = model.identity | {
            "labels": [[label.name, label.colour] for label in model.labels],
            "slide": canvas.key,
            "mpp": model.mpp,
            "scale": canvas.scale,
            "overlap": request.overlap,
            "tissue": sha256_file(request.regions) if request.regions else request.tissue,
            "outputs": request.outputs._asdict(),
        }
        if flags.recompute:
            (model.folder / f"{canvas.name}{SUFFIX}").unlink(missing_ok=True)
        elif is_mapped(model.folder, canvas.name, identity):
            return None
        coverage = _coverage(request, model, canvas)
        windows = windows_over(canvas, model.tile_px, model.covered_px, request.overlap, coverage)
        batch = request.batch or batch_size(torch.device(model.setup.device))
        tokens = None
        if model.item and isinstance(model.setup, ModelSetup) and windows.tiles:
            record = model.setup.chosen.records[0]
            tokens = slide_tokens(flags.work, record, model.item, canvas, windows, request.overlap)
            tokens.path.parent.mkdir(parents=True, exist_ok=True)
        say(_line(canvas, windows, model, batch))
        return SlideTask(
            path, canvas.name, canonical_json(identity), model.folder, request.mpp_of_slide, request.overlap, coverage,
            windows.tiles, batch, max(2, threads), model.seeds, request.outputs, tokens,
        )  # fmt: skip


def _coverage(request: PredictRequest, model: _Model, canvas: Canvas) -> Coverage:
    if request.regions:
        cell_px = max(1, model.tile_px // REGION_CELLS_PER_TILE)
        return Coverage(cell_px, region_cells(canvas, cell_px, request.regions))
    if request.tissue == "off":
        return everywhere(canvas.height, canvas.width)
    cell_px = max(1, model.tile_px // CELLS_PER_TILE)
    return Coverage(cell_px, tissue_cells(canvas, cell_px, lambda _: None))


def _line(canvas: Canvas, windows: Windows, model: _Model, batch: int) -> str:
    mm2 = canvas.height * canvas.width * (canvas.true_mpp / 1000) ** 2
    share = float(np.mean(windows.coverage.cells))
    n_labels = len(model.labels)
    at_a_time = tiles_at_a_time(batch, model.seeds, n_labels, model.covered_px)
    memory = memory_bytes(windows.columns, n_labels, model.seeds, at_a_time)
    maps = canvas.height * canvas.width * (1 + (n_labels + 1) * (model.seeds > 1))
    return (
        f"{canvas.name}: {canvas.width} x {canvas.height} px at {canvas.true_mpp:.4g} um/px, {mm2:.3g} mm2, of which "
        f"{share:.0%} are predicted; {windows.tiles:,} tiles; about {size_text(memory)} of memory beside the model; "
        f"maps of {size_text(maps)} before compression, which leaves a small part"
    )


def _forecast(model: _Model, tasks: Sequence[SlideTask], complete: int, slides: int) -> str:
    todo = f"predict: {len(tasks)} of {slides} slides to do" + (f" ({complete} complete)" if complete else "")
    if not tasks:
        return todo
    return f"{todo}, {sum(task.tiles for task in tasks):,} tiles; into {model.folder}{_forecast_of_tokens(tasks)}"


def _forecast_of_tokens(tasks: Sequence[SlideTask]) -> str:
    tokens = [task.tokens for task in tasks if task.tokens]
    if not tokens:
        return ""
    new = [one for one in tokens if not one.sealed]
    said = f"; tokens of {len(tokens) - len(new)} slides are read from their cache"
    if not new:
        return f"{said}, the encoder is not loaded"
    free = shutil.disk_usage(new[0].path.parent).free
    size = size_text(sum(one.bytes for one in new))
    return f"{said}, those of {len(new)} are written: at most {size}, {size_text(free)} free on disk"
