"""Results on disk: one folder per run. It appears complete when the run ends, and its checksums show this.

The results of a run are a folder ``STUDY/DATASET/ENCODER/seed-000`` (with folds:
``STUDY/DATASET/ENCODER/fold-0/seed-000``) with

- ``counts.parquet`` split, tile, label, tp, fp, fn: one row per tile and label of val and test
- ``curve.parquet``  epoch, learning_rate, loss, cross_entropy, dice_loss, val_dice: one row per epoch
- ``decoder.safetensors``  the tested weights
- ``predictions.parquet``  tile, height, width, predicted, truth: label ids of test tiles
  (`fmcache.scores.predictions`); absent in results of earlier releases
- ``calibration.parquet``  tile, bin, pixels, confidence, correct of the test tiles (`fmcache.scores.calibration`);
  absent in results of earlier releases
- ``boundary.parquet``  tile, label, truth_near, truth_all, predicted_near, predicted_all of the test tiles
  (`fmcache.scores.boundary`); only if the recipe has `boundary`
- ``run.json``       `format`, 2; the fields of a `RunRecord`; `files`, the sha256 (hex) of the files above by name;
  `sha256`, of the canonical JSON (`fmcache.identity.canonical_json`) of everything else in ``run.json``

The folder is written as ``.seed-000.NUMBER.partial`` and then renamed. To remove it, it is first renamed to
``.seed-000.NUMBER.removed``. The next fit of the study removes such folders that a kill left. A run is done when all
files exist and match their checksums; otherwise only this run is trained again. White space in ``run.json`` does not
matter. Unknown fields are included in `sha256` and otherwise ignored. A reader checks the files that it knows and
ignores other names in `files`: so an earlier release reads a run with files that it does not know, and this one reads a
run that lacks the files of a later release.

Beside the folders of runs are pictures for the report (`fmcache.scores.kept_pictures`): ``tiles.parquet`` in
``STUDY/DATASET``, and ``tokens.parquet`` beside the seeds of an encoder (and fold). No number depends on them.

Results of format 1 (fmcache 0.1.0) have no `files` and no `sha256`: they are read, but their content cannot be checked.
fmcache 0.1.0 does not look at `format`: it reads results of format 2 as its own, which is correct. A later format is
refused with a message that names it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from fmcache.errors import ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.identity import differences, fingerprint, own_number, remove_folder, sha256_file
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, RunRecord, RunResults
from fmcache.scores.unchecked import ends_its_reader
from fmcache.specs import Recipe

FORMAT = 2
UNCHECKED = 1
"""The format of run results without checksums."""

RECORD, COUNTS, CURVE, WEIGHTS = "run.json", "counts.parquet", "curve.parquet", "decoder.safetensors"
PREDICTIONS, CALIBRATION, BOUNDARY = "predictions.parquet", "calibration.parquet", "boundary.parquet"
FILES = (COUNTS, CURVE, WEIGHTS)
"""The files that every run has."""
OPTIONAL = (PREDICTIONS, CALIBRATION, BOUNDARY)
"""The files that a run may have; its record lists those that it has."""
_RUNS = ("*/*/seed-*", "*/*/fold-*/seed-*")
REDO = "run fmcache fit with the same recipe: it trains only this run again"


def run_folder(results: Path, study: str, dataset: str, encoder: str, seed: int, fold: int | None = None) -> Path:
    """Return the folder of a run's results; `fold` None is the dataset's fixed split."""
    runs = results / study / dataset / encoder
    return (runs if fold is None else runs / f"fold-{fold}") / f"seed-{seed:03d}"


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` to write into; on success rename it to `folder`, otherwise remove it."""
    partial = folder.with_name(f".{folder.name}.{own_number()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        remove_folder(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_run(folder: Path, run: RunResults) -> None:
    """Write counts, curve and, last, the record of a run into an (unfinished) folder.

    The folder must hold the weights, and the optional files that the run has.
    """
    for name, table, schema in ((COUNTS, run.counts, COUNTS_SCHEMA), (CURVE, run.curve, CURVE_SCHEMA)):
        table.select(pl.col(column).cast(kind) for column, kind in schema.items()).write_parquet(folder / name)
    said = {"format": FORMAT, **msgspec.to_builtins(run.record)}
    written = (*FILES, *(name for name in OPTIONAL if (folder / name).exists()))
    said["files"] = {name: sha256_file(folder / name) for name in written}
    text = msgspec.json.encode(said | {"sha256": fingerprint(said)}, order="deterministic")
    (folder / RECORD).write_bytes(msgspec.json.format(text, indent=1) + b"\n")


def read_record(folder: Path) -> RunRecord:
    """Return the record of a run, after checking it and the files beside it.

    Raises
    ------
    ResultsNotFound
        When the folder does not exist.
    ResultsCorrupt
        When a file is missing, or a file or the record was changed; the message names the file.
    ResultsMismatch
        When a later fmcache wrote it.
    """
    return _checked(folder, _said(folder))


def _checked(folder: Path, said: dict[str, Any]) -> RunRecord:
    if said["format"] != UNCHECKED:
        _check(folder, said)
    elif absent := [name for name in FILES if not (folder / name).is_file()]:
        raise ResultsCorrupt(f"{folder / absent[0]} is missing", next_step=REDO)
    try:
        record = msgspec.convert(said, RunRecord)
        if said["format"] == UNCHECKED:  # check at least what the report needs
            # sweeps had other names then; the run itself is not affected
            msgspec.convert({key: value for key, value in record.recipe.items() if key != "sweep"}, Recipe)
            if len(dict(record.labels)) < len(record.labels):
                raise msgspec.ValidationError("a label is listed twice")
        return record
    except msgspec.ValidationError as reason:
        raise ResultsCorrupt(f"{folder / RECORD} is not a record of a run", found=str(reason), next_step=REDO) from None


def read_run(folder: Path) -> RunResults:
    """Return the results of a run; raises as `read_record`."""
    said = _said(folder)
    record = _checked(folder, said)
    tables = []
    for name, schema in ((COUNTS, COUNTS_SCHEMA), (CURVE, CURVE_SCHEMA)):
        if said["format"] == UNCHECKED and ends_its_reader(folder / name):
            raise ResultsCorrupt(f"{folder / name} is damaged", found="its reader crashes", next_step=REDO)
        try:
            table = pl.read_parquet(folder / name)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as reason:
            raise ResultsCorrupt(f"{folder / name} cannot be read", found=str(reason)[:200], next_step=REDO) from None
        if table.schema != pl.Schema(schema):
            raise ResultsCorrupt(
                f"{folder / name} has other columns",
                expected=", ".join(schema),
                found=", ".join(table.columns),
                next_step=REDO,
            )
        tables.append(table)
    listed, counted = {name for name, _ in record.labels}, set(tables[0]["label"])
    if listed != counted:  # possible only without checksums
        raise ResultsCorrupt(
            f"{folder / RECORD} and {COUNTS} have other labels",
            expected=", ".join(sorted(counted)),
            found=", ".join(sorted(listed)),
            next_step=REDO,
        )
    counts, curve = tables
    return RunResults(record, counts, curve, folder)


def listed_file(folder: Path, name: str) -> Path | None:
    """Return the path of a run's file after checking it; None when the run's record does not list it.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch
        As in `read_record`, for this file only.
    """
    said = _said(folder)
    if said["format"] == UNCHECKED:
        return None
    _check_record(folder, said)
    if name not in said["files"]:
        return None
    _check_file(folder / name, said["files"][name])
    return folder / name


def listed_table(folder: Path, name: str, schema: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame | None:
    """Return a table of a run after checking it; None when the run's record does not list it.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch
        As `listed_file`; also ResultsCorrupt when the file has other columns.
    """
    path = listed_file(folder, name)
    if path is None:
        return None
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as reason:
        raise ResultsCorrupt(f"{path} cannot be read", found=str(reason)[:200], next_step=REDO) from None
    if table.schema != pl.Schema(schema):
        found = ", ".join(table.columns)
        raise ResultsCorrupt(f"{path} has other columns", expected=", ".join(schema), found=found, next_step=REDO)
    return table


def find_runs(results: Path, study: str) -> list[Path]:
    """Return the folders of all runs of a study, complete or not, sorted by dataset, encoder, fold and seed."""
    return sorted(path for pattern in _RUNS for path in (results / study).glob(pattern) if path.is_dir())


def studies(results: Path) -> list[str]:
    """Return the names of the studies that have results."""
    return sorted({p.relative_to(results).parts[0] for pattern in _RUNS for p in results.glob(f"*/{pattern}")})


def check_same_run(folder: Path, identity: dict[str, Any], stated: dict[str, Any] | None = None) -> bool:
    """Return whether the run with this identity exists; `stated` are fields of its record that must be equal too.

    Raises
    ------
    ResultsMismatch
        When a run with the same name has another identity or other facts; the message names the fields.
    ResultsCorrupt
        When the existing run is damaged.
    """
    try:
        record = read_record(folder)
    except ResultsNotFound:
        return False
    stated = stated or {}
    lines = [] if record.fingerprint == fingerprint(identity) else differences(identity, record.identity)
    lines += differences(stated, {field: getattr(record, field) for field in stated})
    if not lines:
        return True
    raise ResultsMismatch(
        f"{folder} holds a run of another recipe, cache or um/px:\n    " + "\n    ".join(lines),
        next_step="give the recipe another `name:`, or replace the old run with --recompute",
    )


def _said(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json``, after checking its format."""
    try:
        said = msgspec.json.decode((folder / RECORD).read_bytes())
    except FileNotFoundError:
        if folder.is_dir():
            raise ResultsCorrupt(f"{folder / RECORD} is missing", next_step=REDO) from None
        raise ResultsNotFound(f"no results in {folder}", next_step="run fmcache fit") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as reason:
        raise ResultsCorrupt(f"{folder / RECORD} cannot be read", found=str(reason)[:200], next_step=REDO) from None
    if not isinstance(said, dict) or said.get("format") not in (UNCHECKED, FORMAT):
        format_ = said.get("format") if isinstance(said, dict) else None
        if isinstance(format_, int) and format_ > FORMAT:
            raise ResultsMismatch(
                f"{folder} was written by a later fmcache",
                expected=f"format {FORMAT} or earlier",
                found=f"format {format_}",
                next_step="use the later fmcache, or another --work folder",
            )
        raise ResultsCorrupt(f"{folder / RECORD} is not a record of a run", next_step=REDO)
    return said


def _check(folder: Path, said: dict[str, Any]) -> None:
    _check_record(folder, said)
    for name in (*FILES, *OPTIONAL):
        if name in FILES or name in said["files"]:
            _check_file(folder / name, said["files"].get(name))


def _check_record(folder: Path, said: dict[str, Any]) -> None:
    stated = said.pop("sha256", None)
    if stated != fingerprint(said):
        raise ResultsCorrupt(
            f"{folder / RECORD} was changed after it was written: its checksum differs", next_step=REDO
        )


def _check_file(path: Path, sha256: str | None) -> None:
    try:
        found = sha256_file(path)
    except OSError as reason:
        raise ResultsCorrupt(f"{path} is missing or cannot be read", found=str(reason), next_step=REDO) from None
    if found != sha256:
        raise ResultsCorrupt(f"{path} was changed after it was written: its checksum differs", next_step=REDO)
