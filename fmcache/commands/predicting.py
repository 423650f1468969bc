"""fmcache predict: label maps of whole slides, from the runs of a study or from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcache.commands.options import (
    DEFAULT_MANIFEST,
    DEFAULT_WORK,
    Dask,
    Device,
    ManifestFile,
    Offline,
    Recompute,
    Threads,
    Work,
    Workers,
    say,
    workers_of,
)
from fmcache.errors import FmcacheError, SpecError
from fmcache.stages.flags import Flags

if TYPE_CHECKING:
    from fmcache.stages.run_choice import RunQuery


def predict_command(
    slides: Annotated[Path, typer.Argument(help="A slide or image, or a folder of them.")],
    study: Annotated[str, typer.Option(help="Name of the study (`name` in its recipe).")] = "",
    encoder: Annotated[str, typer.Option(help="Encoder, by its name in the study's folders.")] = "",
    dataset: Annotated[str, typer.Option(help="Dataset of the study; needed if it has several.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the median one by validation Dice.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Fold, if the study has folds; default: all.")] = None,
    all_seeds: Annotated[
        bool, typer.Option("--all-seeds", help="Mean probability of all seeds, and a map of their disagreement.")
    ] = False,
    bundle: Annotated[Path | None, typer.Option(help="Folder of fmcache export, in place of a study.")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder for the maps; default: below WORK/maps.")] = None,
    overlap: Annotated[float, typer.Option(help="Overlap of neighbouring windows, as a share of a tile's side.")] = 0.5,
    tissue: Annotated[str, typer.Option(help="auto: predict tissue only; off: predict everything.")] = "auto",
    regions: Annotated[
        Path | None, typer.Option(help="QuPath GeoJSON of one slide: predict these regions, in place of the tissue.")
    ] = None,
    mpp_of_slide: Annotated[
        float | None, typer.Option(help="um/px of the slides; default: as each slide states. Plain images need it.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="um/px of the study's tiles, if its results lack it.")] = None,
    batch: Annotated[int, typer.Option(min=0, help="Tiles at a time; 0: by device. Fewer need less memory.")] = 0,
    weights: Annotated[str, typer.Option(help="Weights file of the encoder, if it was moved; it is checked.")] = "",
    ome_tiff: Annotated[bool, typer.Option("--ome-tiff", help="Write a pyramidal OME-TIFF too.")] = False,
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress the GeoJSON.")] = False,
    min_area_um2: Annotated[
        float, typer.Option(min=0, help="Leave regions below this area out of the GeoJSON.")
    ] = 100.0,
    cache_tokens: Annotated[
        bool,
        typer.Option("--cache-tokens", help="Keep the slides' tokens: other seeds and decoders then need no encoder."),
    ] = False,
    manifest: ManifestFile = DEFAULT_MANIFEST,
    work: Work = DEFAULT_WORK,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    dask: Dask = "",
    recompute: Recompute = False,
    offline: Offline = False,
) -> None:
    """Predict whole slides: regions for QuPath, label pyramid, overview, areas per label.

    Complete maps are kept: an interrupted folder of slides resumes where it stopped.

    Example: fmcache predict slides/ --study paper --encoder virchow2
    """
    query = _query(study, encoder, dataset, bundle)
    if tissue not in ("auto", "off"):
        raise SpecError(f"--tissue {tissue}", expected="auto or off", next_step="correct the flag")
    if all_seeds and seed is not None:
        raise SpecError("--seed and --all-seeds cannot be combined", next_step="leave out one of them")
    from fmcache.maps.contract import MapOptions
    from fmcache.stages.predict import predict
    from fmcache.stages.predict_request import PredictRequest

    request = PredictRequest(
        slides, query._replace(seed=seed, fold=fold, all_seeds=all_seeds) if query else None, bundle, into, overlap,
        "off" if tissue == "off" else "auto", regions, mpp_of_slide, mpp, batch, weights, manifest,
        MapOptions(ome_tiff=ome_tiff, least_um2=min_area_um2, gzip=gzip), cache_tokens,
    )  # fmt: skip
    flags = Flags(work, device, threads, workers_of(workers, dask), recompute=recompute, offline=offline)
    folder, failures = predict(request, flags, say)
    for failure in failures:
        typer.echo(f"error: {failure.dataset}: {failure.error}", err=True)
    if failures:
        raise typer.Exit(1)
    say(f"maps: {folder}")


def _query(study: str, encoder: str, dataset: str, bundle: Path | None) -> RunQuery | None:
    """Return the runs that flags ask for; None with a bundle."""
    if bundle:
        if study or encoder or dataset:
            raise SpecError("--bundle needs no study: it holds one run", next_step="leave out --study and --encoder")
        return None
    if not (study and encoder):
        raise _nothing_named()
    from fmcache.stages.run_choice import RunQuery

    return RunQuery(study, encoder, dataset)


def _nothing_named() -> FmcacheError:
    return SpecError(
        "predict needs a study and an encoder, or a bundle",
        expected="--study NAME --encoder E, or --bundle DIR",
        next_step="fmcache report shows studies and encoders",
    )
