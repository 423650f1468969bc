"""fmcache init: write a recipe to start from, with every field, its default and its meaning."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcache.commands.options import (
    DEFAULT_MANIFEST,
    DatasetNames,
    EncoderNames,
    ManifestFile,
    recipe_of,
    say,
)
from fmcache.manifest import Manifest

if TYPE_CHECKING:
    from fmcache.specs import Recipe

DEFAULT_RECIPE = Path("recipe.yaml")
TERMINAL = Path("-")


def init_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe file to write; -: print the recipe.")] = DEFAULT_RECIPE,
    dataset: DatasetNames = None,
    encoder: EncoderNames = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a file of this name.")] = False,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Write a recipe to start from: every field with its default, its meaning and its allowed values.

    Without flags it is the paper's protocol for the manifest's default dataset. List encoders in it before you run it.

    Example: fmcache init study.yaml --dataset demo --encoder raw-pixels --encoder random-vits16
    """
    from fmcache.commands.recipe_text import recipe_text
    from fmcache.identity import whole_file

    if recipe != TERMINAL:
        _check_place(recipe, replace)
    study = _filled(dataset or [], encoder or [], manifest, recipe.parent)
    text = recipe_text(study)
    if recipe == TERMINAL:
        say(text.removesuffix("\n"))
        return
    with whole_file(recipe.resolve()) as file:  # a link stays a link
        file.write(text.encode())
    name = shlex.quote(str(recipe))
    first = "" if study.encoders else "list encoders in it (fmcache encoders list shows their names), then "
    say(f"{recipe}: every field of a recipe, with its default and its meaning")
    say(f"  next: {first}fmcache plan {name} estimates its cost; fmcache run {name} runs it")


def _check_place(recipe: Path, replace: bool) -> None:
    from fmcache.errors import SpecError

    if recipe.is_dir():
        step = f"choose a file in it: fmcache init {shlex.quote(str(recipe / DEFAULT_RECIPE))}"
        raise SpecError(f"{recipe} is a folder", expected="the name of a file", next_step=step)
    if recipe.exists() and not replace:
        raise SpecError(
            f"{recipe} exists already",
            expected="the name of a new file",
            found=f"a file of {recipe.stat().st_size} bytes",
            next_step="choose another name: fmcache init other.yaml, or pass --replace to overwrite this file",
        )


def _filled(datasets: list[str], encoders: list[str], manifest: Path, folder: Path) -> Recipe:
    """Return the default recipe with datasets of the manifest and encoders; card files are relative to `folder`."""
    import msgspec

    from fmcache.encoders.cards import SUFFIXES, TIMM, read_card
    from fmcache.errors import SpecError

    if datasets:
        listed = Manifest(manifest)
        for name in datasets:
            if name not in listed.unfetched:
                listed.dataset(name)  # raises if the manifest has no such dataset
    for name in encoders:
        if not name.startswith(TIMM):
            read_card(name)
    written = tuple(os.path.relpath(name, folder) if name.endswith(SUFFIXES) else name for name in encoders)
    try:
        return msgspec.structs.replace(recipe_of(None, datasets, ""), encoders=written)
    except ValueError as reason:
        raise SpecError(str(reason), next_step="correct the flag") from reason
