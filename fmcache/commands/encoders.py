"""fmcache encoders: list encoders, show what is known about them, check whether they are available."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fmcache.commands.options import DEFAULT_WORK, Device, Offline, Threads, Work, choices_of, say
from fmcache.commands.whole import show_whole
from fmcache.stages.flags import Flags

app = typer.Typer(no_args_is_help=True, help="Encoders that have a card.\n\nExample: fmcache encoders list")


@app.command("list")
def encoders_list() -> None:
    """List the encoders that have a card.

    Example: fmcache encoders list
    """
    from fmcache.commands.encoder_tables import list_encoders

    show_whole(list_encoders())


@app.command("show")
def encoders_show(name: Annotated[str, typer.Argument(help="Card name, card file or timm:NAME.")]) -> None:
    """Print what is known about an encoder: its token grid, the source of its weights, its card.

    The output is a card: save it to a file, change it, and pass the file as an encoder.

    Example: fmcache encoders show virchow2
    """
    from shutil import get_terminal_size

    from fmcache.commands.encoder_tables import describe_encoder

    say(describe_encoder(name, get_terminal_size((100, 24)).columns))


@app.command("check")
def encoders_check(
    name: Annotated[list[str] | None, typer.Argument(help="Card names, card files or timm:NAME.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All 15 encoders of the study.")] = False,
    weights: Annotated[str, typer.Option(help="Weights file or folder, for a single encoder.")] = "",
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Dry run: no weights are needed.")] = False,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="Download missing weights; without it, only check access."),
    ] = False,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    offline: Offline = False,
) -> None:
    """Check each encoder: access, weights file, strict loading, and the tokens of one tile.

    Exit code 1 if a check fails.

    Example: fmcache encoders check virchow2
    """
    from fmcache.errors import SpecError

    choices = choices_of(name, everything=everything, weights=weights, random_weights=random_weights)
    if not choices:
        raise SpecError("no encoder to check", next_step="pass a name, or --all; fmcache encoders list shows the names")
    from fmcache.commands import encoder_check

    checked = encoder_check.check_encoders(choices, Flags(work, device, threads, offline=offline), fetch, say)
    show_whole(encoder_check.table(checked))
    failed: dict[str, list[str]] = {}
    for one in checked:
        if one.error:
            failed.setdefault(str(one.error), []).append(one.encoder)
    for error, encoders in failed.items():
        print(f"\n{', '.join(encoders)}: {error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
