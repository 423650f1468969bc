"""fmcache data: list, add, cut, fetch, split, check and show datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fmcache.commands.options import (
    DEFAULT_MANIFEST,
    DEFAULT_WORK,
    ManifestFile,
    RecipeFile,
    Work,
    recipe_of,
    say,
    show,
)
from fmcache.manifest import Manifest

GroupBy = Literal["slide", "tile"]
Skip = Annotated[
    str,
    typer.Option(help="Classes to leave out as if not drawn, separated by '|'; '(no class)': regions without a class."),
]
Objects = Annotated[
    str,
    typer.Option(help="Kinds of QuPath objects to read: 'annotation' leaves out cells and detections; '': all kinds."),
]
ClassProperty = Annotated[
    str, typer.Option(help="GeoJSON property that names the class; '': the property that QuPath writes.")
]
Missing = Literal["refuse", "skip"]
Square = Literal["", "crop", "tile", "pad"]
app = typer.Typer(
    no_args_is_help=True, help="Datasets: list, add, cut, fetch, check and show tiles.\n\nExample: fmcache data check"
)


@app.command("list")
def data_list(manifest: ManifestFile = DEFAULT_MANIFEST) -> None:
    """List the datasets of the manifest: tiles, splits, labels, um/px. No image is opened.

    Example: fmcache data list
    """
    from fmcache.commands.datasets import list_datasets
    from fmcache.commands.whole import show_whole

    show_whole(list_datasets(Manifest(manifest)))


@app.command("add")
def data_add(
    name: Annotated[str, typer.Argument(help="Name of the new dataset.")],
    images: Annotated[Path, typer.Option(help="Folder of images (PNG, TIFF, JPEG, BMP), or a pattern: 'tiles/*.jpg'.")],
    masks: Annotated[
        str,
        typer.Option(
            help="Folder of masks (or of QuPath GeoJSON files) with the names of the images; or a pattern in which * "
            "is that name: 'tiles/*_seg.png'; or black and white masks, a folder or pattern for each label: "
            "'tumour=DIR,stroma=DIR/*_stroma.png'."
        ),
    ],
    labels: Annotated[
        str,
        typer.Option(
            help="Labels and their mask values: 'other=0,tumour=1|2', 'tumour=#ff0000,...' (colours), 'nucleus=1-' "
            "(all values from 1); or their classes: 'tumour=Tumor|...'."
        ),
    ] = "",
    ignore: Annotated[str, typer.Option(help="Mask values or classes that are not counted, separated by '|'.")] = "255",
    mpp: Annotated[float | None, typer.Option(help="um per pixel of the images.")] = None,
    groups: Annotated[
        str,
        typer.Option(
            help="Patient or slide of each tile: a regular expression with one (group) on its name, a CSV file with "
            "columns tile,group, or none (no groups)."
        ),
    ] = "",
    split: Annotated[
        str,
        typer.Option(
            help="Numbers of tiles to train/validate/test; '': as in folders train, val and test if they exist, "
            "otherwise 15/5/10, or fewer in these proportions."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    order: Annotated[
        str,
        typer.Option(help="Drawing order where regions or masks overlap: labels, lowest first; '': the given order."),
    ] = "",
    fill: Annotated[str, typer.Option(help="Label of pixels without a region or mask, or ignore.")] = "ignore",
    skip: Skip = "",
    objects: Objects = "",
    class_property: ClassProperty = "",
    merge_into: Annotated[
        Path | None, typer.Option(help="Folder for label images merged from masks of labels.")
    ] = None,
    missing: Annotated[
        Missing, typer.Option(help="Images without masks, masks without images: refuse or skip them.")
    ] = ("refuse"),
    square: Annotated[
        Square,
        typer.Option(
            help="Make square tiles: crop the middle, tile (cut into squares of --tile-px), or pad (reflect)."
        ),
    ] = "",
    tile_px: Annotated[int, typer.Option(min=0, help="Edge of the squares in pixels, for --square tile.")] = 0,
    into: Annotated[Path | None, typer.Option(help="Folder for squares; default: NAME-squares.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a dataset of this name.")] = False,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Add a folder of images and masks to the manifest, with file hashes and a split balanced by label shares.

    Example: fmcache data add mine --images tiles/images --masks tiles/masks --labels other=0,tumour=1 --mpp 0.5
    """
    from fmcache.datasets.add import FileRules, add, check_flags

    folder, files = Path(masks), FileRules(missing, square, tile_px, into)
    place = folder.parent if "*" in folder.name else folder
    if "=" in masks and not ("=" in str(place) and place.is_dir()):
        from fmcache.datasets.merge import merge_masks
        from fmcache.errors import SpecError

        if labels:
            raise SpecError(
                "--masks already names the labels", found=f"--labels {labels}", next_step="leave out --labels"
            )
        check_flags(manifest, name, split, replace)
        merged = merge_masks(
            images, masks, merge_into, order=order, fill=fill, replace=replace, skip_lone=missing == "skip"
        )
        say(merged.note)
        folder, labels, files = merge_into or folder, merged.labels, files._replace(other=merged.masks)
        ignore, order, fill = "255", "", "ignore"
    say(
        add(
            manifest,
            name,
            images,
            folder,
            labels=labels,
            ignore=ignore,
            mpp=mpp,
            groups=groups,
            split=split,
            seed=seed,
            replace=replace,
            order=order,
            fill=fill,
            skip=skip,
            objects=objects,
            class_property=class_property,
            files=files,
            say=say,
        )
    )


@app.command("cut")
def data_cut(
    slides: Annotated[list[Path], typer.Argument(help="Whole slides, in any format that OpenSlide reads.")],
    annotations: Annotated[
        Path, typer.Option(help="GeoJSON file of the slide, or a folder with SLIDENAME.geojson (.json, .gz).")
    ],
    labels: Annotated[str, typer.Option(help="Labels and their classes: 'tumour=Tumor,stroma=Stroma|Fibrous'.")],
    into: Annotated[Path, typer.Option(help="Folder for images, masks and positions.csv.")],
    name: Annotated[str, typer.Option(help="Name of the new dataset.")],
    mpp: Annotated[float, typer.Option(help="um per pixel of the tiles.")] = 0.44,
    tile_px: Annotated[int, typer.Option(min=16, help="Edge of a tile in pixels.")] = 512,
    order: Annotated[
        str,
        typer.Option(help="Drawing order where regions overlap: labels or classes, lowest first; '': as in the file."),
    ] = "",
    fill: Annotated[str, typer.Option(help="Label of unannotated pixels, or ignore.")] = "ignore",
    ignore: Annotated[str, typer.Option(help="Classes that are not counted, separated by '|'.")] = "",
    skip: Skip = "",
    objects: Objects = "",
    class_property: ClassProperty = "",
    min_share: Annotated[float, typer.Option(min=0, max=1, help="Smallest annotated share of a tile.")] = 0.5,
    tiles: Annotated[int, typer.Option(min=0, help="Number of tiles to cut; 0: the sum of the split.")] = 0,
    split: Annotated[
        str,
        typer.Option(help="Numbers of tiles to train/validate/test; '': 15/5/10, or fewer in these proportions."),
    ] = "",
    groups: Annotated[
        str,
        typer.Option(
            help="Patient of each slide: a regular expression with one (group) on its name, or a CSV file with columns "
            "tile,group."
        ),
    ] = "",
    group_by: Annotated[
        GroupBy, typer.Option(help="What must stay in one split: slides (or patients), or tiles.")
    ] = "slide",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    mpp_of_slide: Annotated[
        float | None, typer.Option(help="um/px of the slides, if they state none or a wrong one.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the dataset, and tiles cut with other settings.")
    ] = False,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Cut annotated tiles out of whole slides and list them; needs pip install 'fmcache[wsi]'.

    Tiles lie side by side within the slide. Tiles with enough annotation are chosen so that labels are balanced. No
    slide is in two splits. An interrupted cut resumes where it stopped.

    Example: fmcache data cut a.svs b.svs c.svs --annotations geojson --labels tumour=Tumor,stroma=Stroma --into
    tiles --name mine
    """
    from fmcache.datasets.cut import cut
    from fmcache.datasets.cut_search import CutRequest

    wanted = CutRequest(
        slides, annotations, into, mpp, tile_px, labels, order, fill, ignore, skip, min_share, tiles, split, groups,
        group_by, seed, mpp_of_slide, objects, class_property,
    )  # fmt: skip
    say(cut(manifest, name, wanted, replace, say))


@app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A dataset of the manifest that has `fetch:`.")],
    into: Annotated[Path | None, typer.Option(help="Folder for the files; default: the dataset's root.")] = None,
    source: Annotated[str, typer.Option("--from", help="URL of a mirror, used instead of the manifest's URL.")] = "",
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Download a public dataset, or list the files of a private one, and write its tiles and splits to a lock file.

    Files that are complete are not downloaded again. An interrupted download resumes where it stopped. Checksums are
    verified.

    Example: fmcache data fetch puma
    """
    from fmcache.datasets.fetch import fetch

    say(fetch(Manifest(manifest), name, into, source))


@app.command("split")
def data_split(
    dataset: Annotated[str, typer.Argument(help="Dataset in the manifest.")],
    split: Annotated[
        str, typer.Option(help="New fixed split: numbers of train/val/test tiles; '': keep the listed split.")
    ] = "",
    folds: Annotated[int, typer.Option(min=0, help="Number of rotating folds over all tiles; 0: none.")] = 0,
    subsets: Annotated[str, typer.Option(help="Sizes of nested training subsets, for example 5,10,15.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice.")] = 0,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Write balanced splits, folds and learning-curve subsets of a dataset into the manifest; groups are kept whole.

    Caches do not change: the next extract adds views of tiles that were not training tiles before.

    Example: fmcache data split demo --split 15/5/10 --folds 5 --subsets 5,10,15
    """
    from fmcache.datasets.split import split as write_splits

    show(write_splits(manifest, dataset, split, folds, subsets, seed))


@app.command("check")
def data_check(
    dataset: Annotated[list[str] | None, typer.Argument(help="Datasets; default: all.")] = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
) -> None:
    """Verify every listed file; print sizes, shares of labels, tiles of different splits that look alike, and problems.

    Exit code 1 if there are problems. Notes do not change the exit code.

    Example: fmcache data check
    """
    from fmcache.datasets.check import check

    listed = Manifest(manifest)
    problems = 0
    for name in dataset or listed.datasets:
        result = check(listed, name)
        show(result.table())
        problems += len(result.problems)
    for name in () if dataset else listed.unfetched:
        say(f"{name}: not fetched yet; run fmcache data fetch {name}")
    if problems:
        raise typer.Exit(1)


@app.command("show")
def data_show(
    dataset: Annotated[str, typer.Argument(help="Dataset; default: the manifest's default dataset.")] = "",
    splits: Annotated[bool, typer.Option("--splits", help="Group the tiles by split, with label shares.")] = False,
    views: Annotated[str, typer.Option(metavar="TILE", help="Show a tile's augmented views with their masks.")] = "",
    recipe: RecipeFile = None,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; default: below WORK/sheets.")] = None,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
) -> None:
    """Write a contact sheet: tiles (or splits, or views of a tile) beside their masks, with legend and scale bar.

    Views are drawn with the settings of --recipe, or of the paper's protocol.

    Example: fmcache data show demo --views d00
    """
    from fmcache.datasets import show as sheets
    from fmcache.errors import SpecError

    if splits and views:
        raise SpecError("--splits and --views cannot be combined", next_step="leave out one of them")
    listed = Manifest(manifest)
    name = dataset or listed.default
    folder = work / "sheets"
    if views:
        path = out or folder / f"{name}-{views}-views.png"
        say(str(sheets.show_views(listed, name, recipe_of(recipe, None, ""), views, path)))
    elif splits:
        say(str(sheets.show_splits(listed, name, out or folder / f"{name}-splits.png")))
    else:
        say(str(sheets.show(listed, name, out or folder / f"{name}.png")))
