"""Stage three: counts -> report. It reads only the results of runs and needs no torch, caches or images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from filelock import FileLock, Timeout
from rich.table import Table

from fmcache import fonts, identity
from fmcache.errors import Busy, FmcacheError, ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.identity import whole_file
from fmcache.report.dataset_tables import dataset_tables, dice_for_terminal
from fmcache.report.document import markdown_report, markdown_sweep, method_page
from fmcache.report.factor_table import factors_frame, factors_of, factors_table
from fmcache.report.facts import recipe_text
from fmcache.report.figure_style import cover, names_shown
from fmcache.report.figures import figures, study_figures
from fmcache.report.findings import Findings, find
from fmcache.report.frames import csv_text, dataset_frames, parquet, study_frames
from fmcache.report.method import bibtex, method
from fmcache.report.page import DatasetPart, StudyPart, SweepPart, page, sweep_page
from fmcache.report.picture_rows import picture_rows
from fmcache.report.picture_sheet import picture_file
from fmcache.report.report_table import ReportTable
from fmcache.report.study_tables import study_tables
from fmcache.report.sweep import narrow, settings_frame, sweep_of, sweep_recipe, sweep_tables, swept_datasets
from fmcache.report.sweep_figures import sweep_caption, sweep_figure
from fmcache.report.sweep_sentences import sweep_sentences
from fmcache.report.tables import csv, latex, terminal
from fmcache.scores.records import EncoderInfo, RunResults
from fmcache.scores.run_files import find_runs, read_record, read_run, studies

WAIT_S = 120
"""How long to wait (s) for another process that writes the same report."""
REPORT, TABLE_CSV = "report.md", "table.csv"
PAGE = "report.html"


class StudyReport(NamedTuple):
    """A written report: its Markdown file and, for the terminal, one table for each dataset and then the notes."""

    path: Path
    tables: tuple[Table | str, ...]
    unreadable: frozenset[str]
    """Characters in names that are missing in all installed fonts."""
    damaged: tuple[FmcacheError, ...] = ()
    """The errors of runs that were left out."""
    page: Path | None = None
    """The page for a browser."""
    leaders: Mapping[str, tuple[EncoderInfo, ...]] = MappingProxyType({})
    """By dataset, the encoders that may be best, sorted by mean Dice; none where fewer than two are ranked."""


def report(results: Path, out: Path, study: str = "") -> list[StudyReport]:
    """Write the report of one study, or of all studies that have results, below `out`; return the written reports.

    The studies of one sweep also get a common report, under the name of their recipe.

    Raises
    ------
    ResultsNotFound
        When there are no results, or no results of this name. The message lists the existing studies.
    ResultsMismatch
        When the runs of a study do not belong together.
    Busy
        When another process still writes the same report after `WAIT_S` seconds.
    """
    known = studies(results)
    sweeps = {name: _sweep_of(results, name) for name in known}
    chosen = [name for name in known if study in ("", name, sweeps[name])]
    if not chosen:
        raise ResultsNotFound(
            f"there are no results{f' of study {study!r}' if study else ''} in {results}",
            found=f"results of {', '.join(known)}" if known else "nothing",
            next_step="fmcache fit, with the same --work folder",
        )
    reports, found_of = [], {}
    for name in chosen:
        with _alone(out / name):
            found, damaged = _found(results, name)
            reports.append(_report_study(out / name, found, damaged, in_sweep=bool(sweeps[name])))
            if sweeps[name]:
                found_of[name] = (found, damaged)
    for name in sorted({sweeps[name] for name in chosen} - {""}):
        if study in ("", name):
            # a plain study of this name, trained before the recipe had a sweep, keeps its report
            folder = out / (f"{name}.sweep" if name in known else name)
            with _alone(folder):
                reports.append(_report_sweep(folder, name, [of for one, of in found_of.items() if sweeps[one] == name]))
    if note := fonts.hint(frozenset().union(*(one.unreadable for one in reports))):
        reports[-1] = reports[-1]._replace(tables=(*reports[-1].tables, note))
    return reports


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock next to the folder of a report, and remove files that a killed process left in the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=WAIT_S):
            identity.sweep(folder)
            yield
    except Timeout:
        raise Busy(f"another process is writing {folder}", next_step="wait for it, then try again") from None


def _sweep_of(results: Path, study: str) -> str:
    """Return the name of the sweep that a study belongs to, as the record of its first sound run states it."""
    for path in find_runs(results, study):
        try:
            return sweep_of(read_record(path))
        except (ResultsCorrupt, ResultsMismatch):
            continue
    return ""


def _report_study(folder: Path, found: list[Findings], damaged: list[FmcacheError], *, in_sweep: bool) -> StudyReport:
    path = _write(folder, _files(found, damaged))
    # the studies of a sweep appear in the sweep's table instead
    shown = () if in_sweep else tuple(map(dice_for_terminal, found))
    unreadable = cover([text for one in found for text in names_shown(one.summary)]).lacking
    return StudyReport(path, shown, unreadable, tuple(damaged), folder / PAGE, dict(map(_leaders, found)))


def _leaders(found: Findings) -> tuple[str, tuple[EncoderInfo, ...]]:
    """Return a dataset and the encoders that may be best on it."""
    infos = {row.encoder.name: row.encoder for row in found.summary.rows}
    names = found.verdict.may_be_best if found.verdict else ()
    return found.summary.record.dataset, tuple(infos[name] for name in names)


def _files(found: Sequence[Findings], damaged: Sequence[FmcacheError]) -> dict[str, bytes]:
    """Return the files of a study's report, by their path below its folder."""
    datasets = [(one, dataset_tables(one)) for one in found]
    across = study_tables(found)
    files = {
        REPORT: markdown_report(datasets, across, damaged).encode(),
        "method.md": method_page(found).encode(),
        "references.bib": bibtex(found).encode(),
    }
    slope = study_figures(found)
    files |= _files_of(across) | slope
    files |= {f"{stem}.parquet": parquet(frame) for stem, frame in study_frames(found).items()}
    parts = []
    for one, shown in datasets:
        drawings, pictures = figures(one), picture_rows(one)
        of_dataset = drawings | picture_file(pictures) | _files_of(shown) | {TABLE_CSV: csv_text(one).encode()}
        of_dataset |= {f"{stem}.parquet": parquet(frame) for stem, frame in dataset_frames(one).items()}
        files |= {f"{one.summary.record.dataset}/{name}": content for name, content in of_dataset.items()}
        parts.append(DatasetPart(one, shown, drawings, pictures))
    study = StudyPart(across, slope, method(found), bibtex(found), [error.problem for error in damaged])
    return files | {PAGE: page(parts, study)}


def _files_of(shown: Sequence[ReportTable]) -> dict[str, bytes]:
    """Return LaTeX and CSV of each table. Those of Dice are called ``table``; its CSV has more columns (`csv_text`)."""
    files: dict[str, bytes] = {}
    for one in shown:
        stem = "table" if one.name == "dice" else one.name
        files |= {f"{stem}.tex": latex(one).encode(), f"{stem}.csv": csv(one).encode()}
    return files


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder, the report itself last; return the path of the report."""
    for name, content in sorted(files.items(), key=lambda file: file[0] == REPORT):
        with whole_file(folder / name) as file:
            file.write(content)
    return folder / REPORT


def _found(results: Path, study: str) -> tuple[list[Findings], list[FmcacheError]]:
    """Return the findings of each dataset of a study, and the errors of the runs that are left out.

    Raises
    ------
    ResultsCorrupt, ResultsMismatch
        When no run is left.
    """
    runs: list[RunResults] = []
    damaged: list[FmcacheError] = []
    for path in find_runs(results, study):
        try:
            runs.append(read_run(path))
        except (ResultsCorrupt, ResultsMismatch) as error:
            damaged.append(error)
    if not runs:
        raise damaged[0]
    return [find(list(group)) for _, group in groupby(runs, key=lambda run: run.record.dataset)], damaged


def _report_sweep(
    folder: Path, name: str, studied: Sequence[tuple[Sequence[Findings], Sequence[FmcacheError]]]
) -> StudyReport:
    swept = swept_datasets(name, [one for found, _ in studied for one in found])
    lost = [error for _, damaged in studied for error in damaged]
    factors = [factors_of(one) for one in swept]
    files = {"settings.parquet": parquet(settings_frame(swept)), "factors.parquet": parquet(factors_frame(factors))}
    parts = []
    for one, divided in zip(swept, factors, strict=True):
        shown, figure = [*sweep_tables(one), factors_table(divided)], sweep_figure(one)
        of_dataset = figure | _files_of(shown)
        files |= {f"{one.first.summary.record.dataset}/{file}": content for file, content in of_dataset.items()}
        parts.append(SweepPart(one, sweep_sentences(one), shown, figure, sweep_caption(one)))
    files[REPORT] = markdown_sweep(parts, lost).encode()
    files[PAGE] = sweep_page(parts, recipe_text(sweep_recipe(swept)), [error.problem for error in lost])
    path = _write(folder, files)
    unreadable = cover([text for one in swept for of in one.findings.values() for text in names_shown(of.summary)])
    tables = tuple(
        terminal(narrow(part.tables[0]._replace(notes=(*part.sentences, *part.tables[0].notes)))) for part in parts
    )
    # damaged runs are listed by the reports of the studies
    return StudyReport(path, tables, unreadable.lacking, page=folder / PAGE)
