"""The run that a bundle is made of: found in the results of its study, and what the bundle states about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fmcache.bundles.contents import FORMAT, BundleDice, BundleLabel, Facts
from fmcache.encoders.cards import SUFFIXES, Card
from fmcache.encoders.load import card_of
from fmcache.errors import FmcacheError, ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.grid import GridGeometry
from fmcache.identity import sha256_file
from fmcache.report.findings import Findings, find
from fmcache.report.method import REDUCTIONS
from fmcache.report.summary import run_scores
from fmcache.runtime.devices import versions
from fmcache.scores.records import RunRecord, RunResults
from fmcache.scores.run_files import WEIGHTS, find_runs, read_run, run_folder
from fmcache.stages.origins import Origin, recorded_origin
from fmcache.stages.run_choice import tile_mpp, tokens_identities

T = TypeVar("T")


class Wanted(NamedTuple):
    """The run to export, and what the bundle is to hold.

    An empty `dataset` is the only one of the study; `fold` None is the fixed split. `mpp` is the um per pixel of a
    tile, where the results do not state it. `weights` is a file, if the encoder's weights are not where they were.
    """

    study: str
    encoder: str
    seed: int
    dataset: str = ""
    fold: int | None = None
    mpp: float | None = None
    weights: str = ""
    accept_licence: bool = False
    decoder_only: bool = False
    onnx: bool = False
    offline: bool = False


class ChosenRun(NamedTuple):
    """A run, the findings of its study on its dataset, and the card of its encoder and where it came from."""

    run: RunResults
    folder: Path
    findings: Findings
    origin: Origin
    card: Card

    @property
    def record(self) -> RunRecord:
        """The record of the run."""
        return self.run.record


def choose_run(wanted: Wanted, results: Path) -> ChosenRun:
    """Return the wanted run; damaged runs of its study are left out of the findings.

    Raises
    ------
    ResultsNotFound
        When there is no such run; the message lists what there is.
    ResultsCorrupt, ResultsMismatch
        When its files are damaged, or the runs of the study do not belong together.
    SpecError, EncoderUnavailable
        When the card of its encoder cannot be read.
    """
    runs, damaged = dict[Path, RunResults](), dict[Path, FmcacheError]()
    for path in find_runs(results, wanted.study):
        try:
            runs[path] = read_run(path)
        except (ResultsCorrupt, ResultsMismatch) as error:
            damaged[path] = error
    records = [run.record for run in runs.values()]
    if not records:
        raise next(iter(damaged.values()), None) or ResultsNotFound(
            f"there are no results of study {wanted.study!r} in {results}",
            next_step="fmcache fit, with the same --work folder; fmcache report lists the studies",
        )
    datasets = _distinct(record.dataset for record in records)
    dataset = wanted.dataset or (datasets[0] if len(datasets) == 1 else "")
    if dataset not in datasets:
        raise _choose("dataset", wanted.dataset, datasets, "--dataset")
    records = [record for record in records if record.dataset == dataset]
    asked = run_folder(results, wanted.study, dataset, wanted.encoder, wanted.seed, wanted.fold)
    if asked in damaged:
        raise damaged[asked]
    of_dataset = [run for run in runs.values() if run.record.dataset == dataset]
    run = _chosen(wanted, of_dataset)
    origin = recorded_origin(run.record)
    folder = next(path for path, one in runs.items() if one is run)
    return ChosenRun(run, folder, find(of_dataset), origin, card_of(origin.card))


def _chosen(wanted: Wanted, runs: Sequence[RunResults]) -> RunResults:
    encoders = _distinct(run.record.encoder.name for run in runs)
    if wanted.encoder not in encoders:
        raise _choose("encoder", wanted.encoder, encoders, "--encoder")
    runs = [run for run in runs if run.record.encoder.name == wanted.encoder]
    folds = _distinct(run.record.fold for run in runs)
    if wanted.fold not in folds:
        known = ["the fixed split" if fold is None else str(fold) for fold in folds]
        raise _choose("fold", "" if wanted.fold is None else str(wanted.fold), known, "--fold")
    of_seed = {run.record.seed: run for run in runs if run.record.fold == wanted.fold}
    if wanted.seed not in of_seed:
        raise _choose("seed", str(wanted.seed), list(map(str, of_seed)), "--seed")
    return of_seed[wanted.seed]


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _choose(what: str, asked: str, known: Sequence[str], flag: str) -> ResultsNotFound:
    return ResultsNotFound(
        f"the study has no results of {what} {asked!r}" if asked else f"the study needs a choice of its {what}",
        expected=", ".join(known),
        next_step=f"pass one of them as {flag}",
    )


def facts_of(chosen: ChosenRun, wanted: Wanted, *, standardised: bool) -> Facts:
    """Return what the bundle of a run states.

    Raises
    ------
    SpecError
        When the um per pixel of a tile are unknown.
    """
    record, recipe, encoder = chosen.record, chosen.record.recipe, chosen.record.encoder
    grid = GridGeometry(recipe["tile_px"], encoder.patch, recipe["grid"])
    own = chosen.origin.card.endswith(SUFFIXES)
    return Facts(
        format=FORMAT,
        tile_px=grid.tile_px,
        covered_px=grid.covered_px,
        mpp=tile_mpp(chosen.folder.parents[1 if record.fold is None else 2], record, wanted.mpp),
        labels=tuple(BundleLabel(name, colour) for name, colour in record.labels),
        encoder=encoder,
        encoder_display=encoder.display,
        encoder_identity=encoder_identity(record),
        card="" if own else chosen.origin.card,
        licence_page=chosen.card.licence_page,
        holds_encoder_weights=not wanted.decoder_only,
        onnx=wanted.onnx,
        taps=taps_of(record),
        grid=recipe["grid"],
        store=recipe["store"],
        precision_of_study=tokens_identities(record)[0]["precision"],
        decoder=recipe["decoder"],
        decoder_words=record.decoder_words,
        decoder_sha256=sha256_file(chosen.folder / WEIGHTS),
        standardised=standardised,
        study=record.study,
        dataset=record.dataset,
        dataset_title=record.dataset_title,
        dataset_source=record.dataset_source,
        dataset_licence=record.dataset_licence,
        seed=record.seed,
        fold=record.fold,
        fingerprint=record.fingerprint,
        dice_of_tiles=REDUCTIONS[recipe["dice"]],
        dice=tuple(_dice(chosen)),
        tiles=record.tiles,
        collapsed=record.collapsed,
        versions=versions("fmcache", "torch", "timm"),
        precision_of_fit=recipe["fit"].get("precision", "float32"),
    )


def encoder_identity(record: RunRecord) -> dict[str, Any]:
    """Return everything of the encoder that can change a token, as the identity of the run has it."""
    identity: dict[str, Any] = tokens_identities(record)[0]["encoder"]
    return identity


def taps_of(record: RunRecord) -> tuple[str, ...]:
    """Return the taps that the decoder reads."""
    return tuple(tokens["tap"] for tokens in tokens_identities(record))


def _dice(chosen: ChosenRun) -> Iterable[BundleDice]:
    summary, record = chosen.findings.summary, chosen.record
    labels = [name for name, _ in record.labels]
    of_run = run_scores(chosen.run, labels, summary.reduction)
    limits = chosen.findings.intervals_of()
    for label, value in zip(summary.columns, of_run, strict=True):
        row = limits[record.encoder.name, label]
        low, high = (_defined(row[limit]) for limit in ("low", "high"))
        yield BundleDice(
            label, _defined(value), _defined(row["estimate"]), low, high, row["seeds"], row["units"], row["cannot"]
        )


def _defined(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)
