"""fmcache data: list, check and show tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcache.commands.options import (
    DEFAULT_MANIFEST,
    DEFAULT_WORK,
    ManifestFile,
    RecipeFile,
    Work,
    read_listed,
    recipe_of,
    say,
    show,
)

app = typer.Typer(no_args_is_help=True, help="Datasets: add, check and show tiles.\n\nExample: fmcache data check")


@app.command("add")
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

    say(add(manifest, name, images, masks, labels, ignore, mpp, groups, split, seed, replace))


@app.command("split")
def data_split(
    dataset: Annotated[str, typer.Argument(help="Dataset in the manifest.")],
    split: Annotated[str, typer.Option(help="New fixed split, train/val/test tiles; '': the listed one stays.")] = "",
    folds: Annotated[int, typer.Option(min=0, help="Rotating folds over all tiles; 0: none.")] = 0,
    subsets: Annotated[str, typer.Option(help="Nested training subsets of these sizes, such as 5,10,15.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Write a dataset's splits, folds and learning-curve subsets into the manifest, balanced, groups kept whole.

    Caches are not touched: the next extract adds the views of tiles that now train for the first time.

    Example: fmcache data split demo --split 15/5/10 --folds 5 --subsets 5,10,15
    """
    from fmcache.stages.split import split as write_splits

    show(write_splits(manifest, dataset, split, folds, subsets, seed))


@app.command("check")
def data_check(
    dataset: Annotated[list[str] | None, typer.Argument(help="Datasets; without one, all.")] = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Verify every listed file; print sizes, label shares, unlabelled shares, look-alikes across splits, problems.

    Exit code 1 when there are problems; notes are worth reading, and stop nothing.

    Example: fmcache data check
    """
    from fmcache.stages.check import check

    listed = read_listed(manifest)
    problems = 0
    for name in dataset or listed.datasets:
        result = check(listed, name)
        show(result.table())
        problems += len(result.problems)
    if problems:
        raise typer.Exit(1)


@app.command("show")
def data_show(
    dataset: Annotated[str, typer.Argument(help="Dataset; without one, the manifest's default.")] = "",
    splits: Annotated[bool, typer.Option("--splits", help="Group the tiles by split, with label shares.")] = False,
    views: Annotated[str, typer.Option(metavar="TILE", help="Show a tile's augmented views with their masks.")] = "",
    recipe: RecipeFile = None,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; default: below WORK/sheets.")] = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
) -> None:
    """Write a contact sheet: tiles (or splits, or views of a tile) beside their masks, with legend and scale bar.

    Views are those of --recipe, or of the paper's protocol.

    Example: fmcache data show demo --views d00
    """
    from fmcache.errors import SpecError
    from fmcache.stages import show as sheets

    if splits and views:
        raise SpecError("--splits and --views exclude each other", next_step="leave out one of them")
    listed = read_listed(manifest)
    name = dataset or listed.default
    folder = work / "sheets"
    if views:
        path = out or folder / f"{name}-{views}-views.png"
        say(str(sheets.show_views(listed, name, recipe_of(recipe, None, ""), views, path)))
    elif splits:
        say(str(sheets.show_splits(listed, name, out or folder / f"{name}-splits.png")))
    else:
        say(str(sheets.show(listed, name, out or folder / f"{name}.png")))
