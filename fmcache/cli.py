"""The command line: parse, call one stage, print. Known errors become a few lines of text and exit code 1.

Nothing heavy is imported before a command's body runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcache.errors import FmcacheError

if TYPE_CHECKING:
    from fmcache.manifest import Manifest
    from fmcache.specs import EncoderChoice, Recipe
    from fmcache.stages.flags import Failure, Flags

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Which pathology foundation model should I build my segmentation on, and how sure can I be?\n\n"
    "extract runs each frozen encoder once over all views of the tiles; fit trains light decoders from the cached\n"
    "tokens, many seeds; report compares. run does all three for a recipe.\n\n"
    "Example: fmcache run pipelines/quickstart.yaml",
)
data = typer.Typer(no_args_is_help=True, help="Datasets: add, check and show tiles.\n\nExample: fmcache data check")
cache = typer.Typer(no_args_is_help=True, help="Caches: list, inspect, verify, remove.\n\nExample: fmcache cache ls")
encoders = typer.Typer(no_args_is_help=True, help="Encoders that have a card.\n\nExample: fmcache encoders list")
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")
app.add_typer(encoders, name="encoders")

Work = Annotated[Path, typer.Option("--work", help="Working folder: caches, results and reports.")]
ManifestFile = Annotated[Path, typer.Option("--manifest", help="The data manifest.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe; without it the paper's protocol.")]
DatasetNames = Annotated[list[str] | None, typer.Option("--dataset", help="Dataset; may be repeated.")]
EncoderNames = Annotated[
    list[str] | None,
    typer.Option("--encoder", help="Card name, card file (mine.yaml) or timm:NAME; may be repeated."),
]
Taps = Annotated[
    str,
    typer.Option("--tap", help="Where tokens are taken: last, or blocks such as 6,12,18 or 6+norm; '': the recipe's."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: all. Moves the last bits, is recorded.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes of a local Dask cluster; 0: run here.")]
Recompute = Annotated[bool, typer.Option("--recompute", help="Replace what is there instead of adding to it.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub: weights must be here.")]

DEFAULT_WORK = Path("work")
DEFAULT_MANIFEST = Path("data_manifest.yaml")


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    recompute: Recompute = False,
    offline: Offline = False,
) -> None:
    """Extract, fit and report everything in a recipe.

    What is done is not done again: an interrupted run goes on where it stopped.

    Example: fmcache run pipelines/quickstart.yaml
    """
    from fmcache.specs import read_recipe

    study, listed = read_recipe(recipe), _manifest(manifest)
    flags = _flags(work, device, threads, workers, recompute, offline)
    from fmcache.stages.extract import extract
    from fmcache.stages.fit import fit

    failures = extract(study, listed, flags, _say)
    failures += [f for f in fit(study, listed, flags, _say) if not _failed_before(f, failures)]
    _print_report(work, study.name)
    _end(failures)


@app.command("extract")
def extract_command(
    encoder: EncoderNames = None,
    everything: Annotated[bool, typer.Option("--all", help="All 15 encoders of the study.")] = False,
    dataset: DatasetNames = None,
    tap: Taps = "",
    weights: Annotated[str, typer.Option(help="Weights file or folder, for a single --encoder.")] = "",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Dry run: random weights, labelled as such everywhere.")
    ] = False,
    recipe: RecipeFile = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    recompute: Recompute = False,
    offline: Offline = False,
) -> None:
    """Stage one: run frozen encoders over all views and cache their token grids.

    Example: fmcache extract --encoder virchow2
    """
    import msgspec

    from fmcache.errors import SpecError

    study, listed = _recipe(recipe, dataset, tap), _manifest(manifest)
    if choices := _choices(encoder, everything, weights, random_weights):
        study = msgspec.structs.replace(study, encoders=choices)
    if not study.encoders:
        raise SpecError("no encoder to extract", next_step="pass --encoder NAME; fmcache encoders list shows the names")
    from fmcache.stages.extract import extract

    _end(extract(study, listed, _flags(work, device, threads, workers, recompute, offline), _say))


@app.command("fit")
def fit_command(
    seeds: Annotated[int, typer.Option(min=0, help="Number of seeds; 0: as the recipe says (10 in the paper's).")] = 0,
    encoder: EncoderNames = None,
    dataset: DatasetNames = None,
    tap: Taps = "",
    recipe: RecipeFile = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    recompute: Recompute = False,
) -> None:
    """Stage two: train decoders from the cached grids, for every extracted encoder and seed.

    Example: fmcache fit --seeds 10
    """
    import msgspec

    study, listed = _recipe(recipe, dataset, tap), _manifest(manifest)
    if seeds:
        study = msgspec.structs.replace(study, fit=msgspec.structs.replace(study.fit, seeds=seeds))
    if encoder:
        study = msgspec.structs.replace(study, encoders=tuple(encoder))
    from fmcache.stages.fit import fit

    _end(fit(study, listed, _flags(work, device, threads, workers, recompute, False), _say))


@app.command("report")
def report_command(
    study: Annotated[str, typer.Argument(help="Name of a study (of its recipe); without it, all.")] = "",
    work: Work = DEFAULT_WORK,
) -> None:
    """Stage three: tables and figures from the results, per study and dataset.

    Example: fmcache report
    """
    _print_report(work, study)


@data.command("add")
def data_add(
    name: Annotated[str, typer.Argument(help="Name of the new dataset.")],
    images: Annotated[Path, typer.Option(help="Folder of images (PNG, TIFF, JPEG).")],
    masks: Annotated[Path, typer.Option(help="Folder of masks of the same names.")],
    labels: Annotated[str, typer.Option(help="Labels and mask values: 'other=0,tumour=1|2' or 'tumour=#ff0000,...'.")],
    ignore: Annotated[str, typer.Option(help="Mask values without truth, joined with '|'.")] = "255",
    mpp: Annotated[float | None, typer.Option(help="um per pixel of the images.")] = None,
    groups: Annotated[
        str, typer.Option(help="Patient or slide of a tile: a regex on its name with one (group), or a CSV tile,group.")
    ] = "",
    split: Annotated[str, typer.Option(help="Tiles to train/validate/test.")] = "15/5/10",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a dataset of this name.")] = False,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Add a folder of images and masks to the manifest, hashed, with a split balanced by label share.

    Example: fmcache data add mine --images tiles/images --masks tiles/masks --labels other=0,tumour=1 --mpp 0.5
    """
    from fmcache.stages.data import add

    _say(add(manifest, name, images, masks, labels, ignore, mpp, groups, split, seed, replace))


@data.command("check")
def data_check(
    dataset: Annotated[list[str] | None, typer.Argument(help="Datasets; without one, all.")] = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Verify every listed file and print sizes, label shares and problems; exit code 1 when there are problems.

    Example: fmcache data check
    """
    from fmcache.stages.data import check

    listed = _manifest(manifest)
    problems = 0
    for name in dataset or listed.datasets:
        result = check(listed, name)
        _print(result.table())
        problems += len(result.problems)
    if problems:
        raise typer.Exit(1)


@data.command("show")
def data_show(
    dataset: Annotated[str, typer.Argument(help="Dataset; without one, the manifest's default.")] = "",
    out: Annotated[Path | None, typer.Option(help="The PNG to write; default: WORK/sheets/DATASET.png.")] = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
) -> None:
    """Write a contact sheet: every tile beside its mask, with legend and scale bar.

    Example: fmcache data show demo
    """
    from fmcache.stages.data import show

    listed = _manifest(manifest)
    name = dataset or listed.default
    _say(str(show(listed, name, out or work / "sheets" / f"{name}.png")))


@cache.command("ls")
def cache_ls(work: Work = DEFAULT_WORK) -> None:
    """List all caches with state, views and size on disk.

    Example: fmcache cache ls
    """
    from fmcache.stages.caches import list_caches

    _print(list_caches(work))


@cache.command("info")
def cache_info(path: Annotated[Path, typer.Argument(help="A cache (a folder NAME.zarr).")]) -> None:
    """Print what a cache was made from, as JSON.

    Example: fmcache cache info work/cache/demo/raw-pixels/128px.zarr
    """
    from fmcache.stages.caches import describe_cache

    _say(describe_cache(path))


@cache.command("verify")
def cache_verify(
    path: Annotated[
        list[Path] | None, typer.Argument(help="Caches; without one, all below the working folder.")
    ] = None,
    work: Work = DEFAULT_WORK,
) -> None:
    """Re-read every chunk against its checksum; exit code 1 when something is wrong.

    Example: fmcache cache verify
    """
    from fmcache.stages.caches import verify_caches

    if verify_caches(path or [], work, _say):
        raise typer.Exit(1)


@cache.command("rm")
def cache_rm(
    path: Annotated[list[Path], typer.Argument(help="Caches to remove.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove caches.

    Example: fmcache cache rm work/cache/demo/raw-pixels/128px.zarr
    """
    from fmcache.cache.verify import remove_cache
    from fmcache.stages.caches import size_text

    for folder in path:
        if yes or typer.confirm(f"remove {folder}?"):
            _say(f"{folder}: removed, {size_text(remove_cache(folder))} set free")


@encoders.command("list")
def encoders_list() -> None:
    """List the encoders that have a card.

    Example: fmcache encoders list
    """
    from fmcache.stages.catalogue import list_encoders

    _print(list_encoders())


@encoders.command("show")
def encoders_show(name: Annotated[str, typer.Argument(help="Card name or card file.")]) -> None:
    """Print all that is known of an encoder: its card, its token grid, where its weights come from.

    Example: fmcache encoders show virchow2
    """
    from fmcache.stages.catalogue import describe_encoder

    _say(describe_encoder(name))


@encoders.command("check")
def encoders_check(
    name: Annotated[list[str] | None, typer.Argument(help="Card names, card files or timm:NAME.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All 15 encoders of the study.")] = False,
    weights: Annotated[str, typer.Option(help="Weights file or folder, for a single encoder.")] = "",
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Dry run: no weights are needed.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch weights that are not here; otherwise only ask.")
    ] = False,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    offline: Offline = False,
) -> None:
    """Tell of each encoder whether it can be had, whether its file loads strictly, and what one tile gives.

    Exit code 1 when one fails.

    Example: fmcache encoders check virchow2
    """
    from fmcache.errors import SpecError

    choices = _choices(name, everything, weights, random_weights)
    if not choices:
        raise SpecError("no encoder to check", next_step="pass a name, or --all; fmcache encoders list shows the names")
    from fmcache.stages import access

    checked = access.check_encoders(choices, _flags(work, device, threads, 0, False, offline), fetch, _say)
    _print(access.table(checked))
    failed = [one for one in checked if one.error]
    for one in failed:
        print(f"\n{one.encoder}: {one.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


class Interrupted(BaseException):
    """Ctrl-C or a request to end; not KeyboardInterrupt, which the command-line library would answer itself."""


def main() -> None:
    """Run the command line. Known errors are printed without a traceback; FMCACHE_DEBUG=1 brings it back."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except FmcacheError as error:
        _fail(error, str(error))
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        _fail(error, f"the system refused{name}: {error.strerror or error}\n  next: {_SYSTEM_HINT}")
    except Interrupted as request:
        print("\ninterrupted: what was finished is kept; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + request.args[0])


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)


_SYSTEM_HINT = (
    "check free disk space and write permission of the working folder (--work); what was finished is kept, and the "
    "same command goes on from there"
)


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


def _recipe(path: Path | None, datasets: list[str] | None, taps: str) -> Recipe:
    import msgspec

    from fmcache.errors import SpecError
    from fmcache.specs import Recipe, read_recipe

    recipe = read_recipe(path) if path else Recipe()
    changes = {"datasets": tuple(datasets or ()), "taps": tuple(tap.strip() for tap in taps.split(",") if tap.strip())}
    try:
        return msgspec.structs.replace(recipe, **{key: value for key, value in changes.items() if value})
    except ValueError as reason:
        raise SpecError(str(reason), next_step="correct the flag") from reason


def _choices(
    encoder: list[str] | None, everything: bool, weights: str, random_weights: bool
) -> tuple[EncoderChoice, ...]:
    from fmcache.errors import SpecError
    from fmcache.specs import EncoderChoice
    from fmcache.stages.catalogue import study_encoders

    if encoder and everything:
        raise SpecError("--all and names of encoders exclude each other", next_step="leave out one of them")
    chosen = study_encoders() if everything else encoder or []
    if weights and len(chosen) > 1:
        raise SpecError(
            "--weights goes with a single encoder",
            found=", ".join(chosen),
            next_step="take them one by one, or list each with its weights in a recipe",
        )
    return tuple(EncoderChoice(name, weights, random_weights) for name in chosen)


def _manifest(path: Path) -> Manifest:
    from fmcache.manifest import Manifest

    return Manifest(path)


def _flags(work: Path, device: str, threads: int, workers: int, recompute: bool, offline: bool) -> Flags:
    from fmcache.stages.flags import Flags

    return Flags(work, device, threads, workers, recompute, offline)


def _say(text: str) -> None:
    print(text, flush=True)


def _print(renderable: object) -> None:
    from rich.console import Console

    Console().print(renderable)


def _print_report(work: Path, study: str) -> None:
    from fmcache.stages import places
    from fmcache.stages.report import report

    for result in report(places.results(work), places.reports(work), study):
        for table in result.tables:
            _print(table)
        _say(f"report: {result.path}")
