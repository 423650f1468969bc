"""The command line: parse, call one stage, print. Known errors become a few lines of text and exit code 1.

Large packages are imported only when a command's body runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcache.commands import caches, data, encoders, init, predicting
from fmcache.commands.options import (
    DEFAULT_MANIFEST,
    DEFAULT_WORK,
    Compile,
    Dask,
    DatasetNames,
    Device,
    EncoderNames,
    ManifestFile,
    Offline,
    RecipeFile,
    Recompute,
    Taps,
    Threads,
    Work,
    Workers,
    Yes,
    choices_of,
    recipe_of,
    say,
    show,
    workers_of,
)
from fmcache.commands.system_errors import system_error_text
from fmcache.errors import FmcacheError, ResultsNotFound, SpecError
from fmcache.manifest import Manifest
from fmcache.shortage import KEPT
from fmcache.stages.flags import Failure, Flags

if TYPE_CHECKING:
    from fmcache.specs import Recipe
    from fmcache.stages.report import StudyReport

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Which pathology foundation model should I build my segmentation on, and how sure can I be?\n\n"
    "extract runs each frozen encoder once over all views of the tiles; fit trains light decoders from the cached\n"
    "tokens, with many seeds; report compares the results. run does all three for a recipe; screen finds which\n"
    "of the extracted encoders are worth a full study.\n\n"
    "Example: fmcache run pipelines/quickstart.yaml",
)
app.add_typer(data.app, name="data")
app.add_typer(caches.app, name="cache")
app.add_typer(encoders.app, name="encoders")
app.command("init")(init.init_command)
app.command("predict")(predicting.predict_command)


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    dask: Dask = "",
    recompute: Recompute = False,
    offline: Offline = False,
    yes: Yes = False,
) -> None:
    """Extract, fit and report everything in a recipe.

    Finished work is not repeated: an interrupted run resumes where it stopped.

    Example: fmcache run pipelines/quickstart.yaml
    """
    from fmcache.specs import read_recipe

    study, listed = read_recipe(recipe), Manifest(manifest)
    if not study.encoders:
        step = f"list encoders below `encoders:` in {recipe}; fmcache encoders list shows their names"
        raise SpecError(f"recipe {study.name!r} names no encoder", next_step=step)
    processes = workers_of(workers, dask)
    flags = Flags(work, device, threads, processes, recompute=recompute, offline=offline, yes=yes)
    from fmcache.runtime.cluster import keeping_workers
    from fmcache.stages.extract import extract
    from fmcache.stages.fit import fit

    with keeping_workers():
        failures = extract(study, listed, flags, say)
        failures += [f for f in fit(study, listed, flags, say) if not _failed_before(f, failures)]
    _print_report(work, study.name)
    _end(failures)


@app.command("plan")
def plan_command(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe; default: the paper's protocol.")] = None,
    measure: Annotated[bool, typer.Option(help="Estimate times: measure this device for a few seconds.")] = True,
    gpus: Annotated[
        int, typer.Option(min=0, help="Plan for this many GPUs, from published numbers; 0: for this machine.")
    ] = 0,
    gpu: Annotated[str, typer.Option(help="The GPU of --gpus: l4, a10, l40s, a100, h100 or h200.")] = "h100",
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Estimate the cost of a recipe before it runs: views, disk, memory, operations, time, and cheaper variants.

    It needs neither weights nor tiles.

    Example: fmcache plan pipelines/quickstart.yaml
    """
    study, listed = recipe_of(recipe, None, ""), Manifest(manifest)
    from fmcache.commands.plan_table import shown
    from fmcache.planning.gpus import fleet_of
    from fmcache.planning.plan import plan

    fleet = fleet_of(gpu, gpus) if gpus else None
    show(shown(plan(study, listed, Flags(work, device, threads), measure, fleet), work))


@app.command("extract")
def extract_command(
    encoder: EncoderNames = None,
    everything: Annotated[bool, typer.Option("--all", help="All 15 encoders of the study.")] = False,
    dataset: DatasetNames = None,
    tap: Taps = "",
    weights: Annotated[str, typer.Option(help="Weights file or folder, for a single --encoder.")] = "",
    alias: Annotated[str, typer.Option("--as", help="Name of that encoder in folders, tables and figures.")] = "",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Dry run: random weights, labelled as such everywhere.")
    ] = False,
    recipe: RecipeFile = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    dask: Dask = "",
    recompute: Recompute = False,
    offline: Offline = False,
    compiled: Compile = False,
    yes: Yes = False,
) -> None:
    """Stage one: run frozen encoders over all views and cache their token grids.

    Example: fmcache extract --encoder virchow2
    """
    import msgspec

    study, listed = recipe_of(recipe, dataset, tap), Manifest(manifest)
    if choices := choices_of(
        encoder, everything=everything, weights=weights, random_weights=random_weights, alias=alias
    ):
        study = msgspec.structs.replace(study, encoders=choices)
    if not study.encoders:
        raise SpecError("no encoder to extract", next_step="pass --encoder NAME; fmcache encoders list shows the names")
    from fmcache.stages.extract import extract

    flags = Flags(
        work, device, threads, workers_of(workers, dask), recompute=recompute, offline=offline, compiled=compiled,
        yes=yes,
    )  # fmt: skip
    _end(extract(study, listed, flags, say))


@app.command("fit")
def fit_command(
    seeds: Annotated[int, typer.Option(min=0, help="Number of seeds; 0: as in the recipe (the paper: 10).")] = 0,
    encoder: EncoderNames = None,
    dataset: DatasetNames = None,
    tap: Taps = "",
    recipe: RecipeFile = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    dask: Dask = "",
    recompute: Recompute = False,
    yes: Yes = False,
) -> None:
    """Stage two: train decoders from the cached grids, for every extracted encoder and seed.

    Example: fmcache fit --seeds 10
    """
    study, listed = _chosen(recipe_of(recipe, dataset, tap), seeds, encoder), Manifest(manifest)
    from fmcache.stages.fit import fit

    processes = workers_of(workers, dask)
    _end(fit(study, listed, Flags(work, device, threads, processes, recompute=recompute, yes=yes), say))


@app.command("screen")
def screen_command(
    seeds: Annotated[int, typer.Option(min=0, help="Number of seeds; 0: 10.")] = 0,
    encoder: EncoderNames = None,
    dataset: DatasetNames = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    dask: Dask = "",
    recompute: Recompute = False,
) -> None:
    """Find the encoders that are worth a full study: a linear probe on every cached encoder, and who may be best.

    It trains from the caches of the paper's protocol (fmcache extract), reports the study `screen`, and prints the
    command that fits the paper's decoder for the encoders that may still be best.

    Example: fmcache screen --dataset demo
    """
    from fmcache.commands.screen import remaining, screening

    study, listed = _chosen(recipe_of(screening(), dataset, ""), seeds, encoder), Manifest(manifest)
    from fmcache.demand import demands
    from fmcache.stages.fit import fit

    flags = Flags(work, device, threads, workers_of(workers, dask), recompute=recompute)
    failures = fit(study, listed, flags, say)
    try:
        written = _print_reports(work, study.name)
    except ResultsNotFound:  # its message would hide why nothing could be trained
        _end(failures)
        raise
    of_study = written[0].leaders  # the studies of a sweep of this name come after it
    leaders = {demand.name: of_study.get(demand.name, ()) for demand in demands(study, listed)}
    for line in remaining(leaders, study.datasets, manifest, flags):
        show(line)
    _end_damaged(written)
    _end(failures)


@app.command("report")
def report_command(
    study: Annotated[str, typer.Argument(help="Name of a study (`name` in its recipe); default: all studies.")] = "",
    work: Work = DEFAULT_WORK,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Show what moved between two written reports (folders), and write none."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="With --compare: also write this Markdown file; -: print only Markdown.")
    ] = None,
) -> None:
    """Stage three: make tables and figures from the results, for each study and dataset.

    Example: fmcache report
    """
    if not compare:
        if markdown:
            raise SpecError(
                "--markdown goes with --compare", next_step="add --compare OLD NEW, or leave out --markdown"
            )
        _print_report(work, study)
        return
    from fmcache.commands.comparison import print_comparison

    print_comparison(*compare, study, markdown)


@app.command("export")
def export_command(
    study: Annotated[str, typer.Option(help="Name of a study (`name` in its recipe).")],
    encoder: Annotated[str, typer.Option(help="Encoder, as tables and folders name it.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")],
    to: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    dataset: Annotated[str, typer.Option(help="Dataset; default: the only one of the study.")] = "",
    fold: Annotated[int | None, typer.Option(min=0, help="Fold; default: the fixed split.")] = None,
    mpp: Annotated[
        float | None, typer.Option(min=0.001, help="um per pixel of a tile, if the results lack it.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Weights file or folder, if it is not where it was.")] = "",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Write weights whose licence restricts passing them on.")
    ] = False,
    decoder_only: Annotated[bool, typer.Option("--decoder-only", help="Leave out the encoder's weights.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx (pip install 'fmcache[onnx]').")] = False,
    work: Work = DEFAULT_WORK,
    offline: Offline = False,
) -> None:
    """Write one run as a folder that works without fmcache: TorchScript of encoder and decoder, and its description.

    Example: fmcache export --study quickstart --encoder random-vits16 --seed 0 --to bundle
    """
    from fmcache.stages.export import export
    from fmcache.stages.exported_run import Wanted

    wanted = Wanted(
        study, encoder, seed, dataset, fold, mpp, weights,
        accept_licence=accept_licence, decoder_only=decoder_only, onnx=onnx, offline=offline,
    )  # fmt: skip
    export(wanted, work, to, say)


class Interrupted(BaseException):
    """Ctrl-C or a request to end; not a KeyboardInterrupt, because the command-line library would catch that."""


def main() -> None:
    """Run the command line. Known errors are printed without a traceback; FMCACHE_DEBUG=1 shows it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # threads of torch that wait for each other sleep instead of spinning: beside other work, spinning took 2.5 times
    # the processor time. OpenMP reads this once, when torch is imported; workers inherit it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # workers are killed on purpose; Python then removes their semaphores and would print a warning
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        app()
    except FmcacheError as error:
        _fail(error, str(error))
    except OSError as error:
        _fail(error, system_error_text(error))
    except MemoryError as error:
        _fail(error, f"out of memory: {KEPT}")
    except Interrupted as request:
        if os.environ.get("FMCACHE_DEBUG"):
            traceback.print_exception(request)
        print("\ninterrupted: finished work is kept; the same command continues from there", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + request.args[0])  # skips the clean-up of torch, which takes a second


def _interrupt(number: int, _frame: object) -> None:
    for either in (signal.SIGINT, signal.SIGTERM):
        signal.signal(either, _end_at_once)
    raise Interrupted(number)


def _end_at_once(number: int, _frame: object) -> None:
    """End at a second request, while the first is still being handled: our worker processes end with this one."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # shows the cursor, which a progress bar hides
    os._exit(128 + number)


def _fail(error: BaseException, text: str) -> None:
    if os.environ.get("FMCACHE_DEBUG"):
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def _end(failures: list[Failure]) -> None:
    for failure in failures:
        print(f"error: {failure.dataset} · {failure.encoder}: {failure.error}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def _failed_before(failure: Failure, earlier: list[Failure]) -> bool:
    return any(failure[:2] == other[:2] for other in earlier)


def _chosen(study: Recipe, seeds: int, encoder: list[str] | None) -> Recipe:
    """Return a recipe with the number of seeds (0: as it is) and the encoders (None: as they are) of flags."""
    import msgspec

    if seeds:
        study = msgspec.structs.replace(study, fit=msgspec.structs.replace(study.fit, seeds=seeds))
    return msgspec.structs.replace(study, encoders=tuple(encoder)) if encoder else study


def _print_report(work: Path, study: str) -> None:
    _end_damaged(_print_reports(work, study))


def _print_reports(work: Path, study: str) -> list[StudyReport]:
    """Write the reports of one study or, without a name, of all studies; print and return them."""
    from fmcache.stages import at_url, places
    from fmcache.stages.report import report

    at_url.fetch_results(work)
    written = report(places.results(work), places.reports(work), study)
    for result in written:
        for table in result.tables:
            show(table)
        say(f"report: {result.path}")
        if result.page:
            say(f"open in a browser: {result.page}")
    return written


def _end_damaged(written: Iterable[StudyReport]) -> None:
    damaged = [error for result in written for error in result.damaged]
    for error in damaged:
        print(f"error: {error}", file=sys.stderr)
    if damaged:
        raise typer.Exit(1)
