"""What commands share: options, and the functions that turn them into recipes and encoder choices, and print."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fmcache.specs import EncoderChoice, Recipe


def _local(work: Path) -> Path:
    from fmcache.remote.copies import local_work

    return local_work(work)


Work = Annotated[
    Path,
    typer.Option(
        "--work",
        callback=_local,
        help="Working folder: caches, results and reports; or a URL: s3://, gs:// or az://BUCKET/PREFIX.",
    ),
]
ManifestFile = Annotated[Path, typer.Option("--manifest", help="The data manifest.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe file; default: the paper's protocol.")]
DatasetNames = Annotated[list[str] | None, typer.Option("--dataset", help="Dataset; may be repeated.")]
EncoderNames = Annotated[
    list[str] | None,
    typer.Option("--encoder", help="Card name, card file (mine.yaml) or timm:NAME; may be repeated."),
]
Taps = Annotated[
    str,
    typer.Option(
        "--tap",
        help="Layers to take tokens from: last, or blocks, for example 6,12,18 or 6+norm; '': as in the recipe.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int,
    typer.Option(min=0, help="CPU threads of torch; 0: all. The number changes rounding and is recorded with results."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes on this machine, each with a GPU of its own; 0: none.")]
Dask = Annotated[
    str,
    typer.Option("--dask", metavar="ADDRESS", help="Use the workers of the Dask scheduler at this address."),
]
Recompute = Annotated[bool, typer.Option("--recompute", help="Replace existing caches or results.")]
Yes = Annotated[bool, typer.Option("--yes", help="Agree to a sweep of more than 200 variants.")]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Run encoders with torch.compile: compiling takes a minute and changes rounding."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never contact the hub: weights must be on this machine.")]

WIDE = 200

DEFAULT_WORK = Path("work")
DEFAULT_MANIFEST = Path("data_manifest.yaml")


def workers_of(workers: int, dask: str) -> int | str:
    """Return what `Flags.workers` holds: a number of processes on this machine, or the address of a scheduler."""
    from fmcache.errors import SpecError

    if workers and dask:
        raise SpecError("--workers and --dask cannot be combined", next_step="leave out one of them")
    return dask or workers


def recipe_of(recipe: Recipe | Path | None, datasets: list[str] | None, taps: str) -> Recipe:
    """Return a recipe, that of a file, or without both the paper's protocol, with the changes that flags make."""
    import msgspec

    from fmcache.errors import SpecError
    from fmcache.specs import Recipe, read_recipe

    study = recipe if isinstance(recipe, Recipe) else read_recipe(recipe) if recipe else Recipe()
    changes = {"datasets": tuple(datasets or ()), "taps": tuple(tap.strip() for tap in taps.split(",") if tap.strip())}
    try:
        return msgspec.structs.replace(study, **{key: value for key, value in changes.items() if value})
    except ValueError as reason:
        raise SpecError(str(reason), next_step="correct the flag") from reason


def choices_of(
    encoder: list[str] | None, *, everything: bool, weights: str, random_weights: bool, alias: str = ""
) -> tuple[EncoderChoice, ...]:
    """Return the encoders that flags ask for; an empty tuple if they ask for none."""
    import msgspec

    from fmcache.encoders.cards import study_encoders
    from fmcache.errors import SpecError
    from fmcache.specs import EncoderChoice

    if encoder and everything:
        raise SpecError("--all and names of encoders cannot be combined", next_step="leave out one of them")
    chosen = study_encoders() if everything else encoder or []
    for flag, given in (("--weights", weights), ("--as", alias)):
        if given and len(chosen) != 1:
            raise SpecError(
                f"{flag} needs exactly one encoder",
                found=", ".join(chosen) or "no encoder in the command",
                next_step="run one encoder at a time, or list each with its weights and name (`as`) in a recipe",
            )
    try:
        return tuple(EncoderChoice(name, weights, random_weights, alias or msgspec.UNSET) for name in chosen)
    except ValueError as reason:
        raise SpecError(str(reason), next_step="correct the flag") from reason


def say(text: str) -> None:
    """Print a line without delay, also into a pipe."""
    _write_what_the_encoding_lacks_as_codes()
    print(text, flush=True)


def show(renderable: object) -> None:
    """Print a table as wide as the terminal. In a pipe or file it gets its full width, so that nothing is cut.

    Text is printed as it is: names may contain what rich would read as markup or as an emoji.
    """
    from rich.console import Group
    from rich.measure import Measurement
    from rich.table import Table

    from fmcache.commands.terminal import PlainConsole

    _write_what_the_encoding_lacks_as_codes()
    parts = renderable.renderables if isinstance(renderable, Group) else [renderable]
    tables = [part for part in parts if isinstance(part, Table)]
    for column in (column for table in tables for column in table.columns if not column.no_wrap):
        column.overflow = "fold"  # a name longer than its column continues in the next line
    console = PlainConsole()
    in_pipe = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    if in_pipe:
        unbounded = console.options.update(width=sys.maxsize)
        console.width = max([WIDE, *(Measurement.get(console, unbounded, table).maximum for table in tables)])
    for part in parts:
        console.print(part, soft_wrap=in_pipe and isinstance(part, str))


def _write_what_the_encoding_lacks_as_codes() -> None:
    """Print characters that the encoding lacks as codes, as standard error does. Such a name must not end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
