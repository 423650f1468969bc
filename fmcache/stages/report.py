"""Stage three: counts -> report. It reads only the results of runs and needs no torch, caches or images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from rich.table import Table

from fmcache import fonts, identity
from fmcache.errors import Busy, FmcacheError, ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.identity import whole_file
from fmcache.report.dataset_tables import dataset_tables, dice_for_terminal
from fmcache.report.document import left_out, markdown_report, method_page
from fmcache.report.escapes import escape_markdown
from fmcache.report.figure_style import cover, names_shown
from fmcache.report.figures import figures, study_figures
from fmcache.report.findings import Findings, find
from fmcache.report.frames import csv_text, dataset_frames, parquet, study_frames
from fmcache.report.method import bibtex, method
from fmcache.report.page import DatasetPart, StudyPart, page
from fmcache.report.picture_rows import picture_rows
from fmcache.report.picture_sheet import picture_file
from fmcache.report.report_table import ReportTable
from fmcache.report.study_tables import study_tables
from fmcache.report.summary import Summary
from fmcache.report.sweep import SweepTable
from fmcache.report.tables import latex
from fmcache.scores.records import RunResults
from fmcache.scores.run_files import find_runs, read_run, studies
from fmcache.specs import variant_of

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
    """The page for a browser; a sweep has none."""


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
    chosen = [name for name in known if study in ("", name, _sweep_of(name))]
    if not chosen:
        raise ResultsNotFound(
            f"there are no results{f' of study {study!r}' if study else ''} in {results}",
            found=f"results of {', '.join(known)}" if known else "nothing",
            next_step="fmcache fit, with the same --work folder",
        )
    reports = []
    for name in chosen:
        with _alone(out / name):
            reports.append(_report_study(results, out / name, name))
    for name in sorted({_sweep_of(name) for name in chosen} - {""}):
        if study in ("", name):
            with _alone(out / name):
                reports.append(_report_sweep(results, out / name, name, known))
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


def _sweep_of(study: str) -> str:
    variant = variant_of(study)
    return variant[0] if variant else ""


def _report_study(results: Path, folder: Path, study: str) -> StudyReport:
    found, damaged = _found(results, study)
    path = _write(folder, _files(found, damaged))
    # the studies of a sweep appear in the sweep's table instead
    shown = () if _sweep_of(study) else tuple(map(dice_for_terminal, found))
    unreadable = cover([text for one in found for text in names_shown(one.summary)]).lacking
    return StudyReport(path, shown, unreadable, tuple(damaged), folder / PAGE)


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
    files |= _latex(across) | slope
    files |= {f"{stem}.parquet": parquet(frame) for stem, frame in study_frames(found).items()}
    parts = []
    for one, shown in datasets:
        drawings, pictures = figures(one), picture_rows(one)
        of_dataset = drawings | picture_file(pictures) | _latex(shown) | {TABLE_CSV: csv_text(one).encode()}
        of_dataset |= {f"{stem}.parquet": parquet(frame) for stem, frame in dataset_frames(one).items()}
        files |= {f"{one.summary.record.dataset}/{name}": content for name, content in of_dataset.items()}
        parts.append(DatasetPart(one, shown, drawings, pictures))
    study = StudyPart(across, slope, method(found), bibtex(found), [error.problem for error in damaged])
    return files | {PAGE: page(parts, study)}


def _latex(shown: Sequence[ReportTable]) -> dict[str, bytes]:
    """Return the LaTeX file of each table; the one of Dice keeps the name ``table.tex``."""
    return {f"{'table' if one.name == 'dice' else one.name}.tex": latex(one).encode() for one in shown}


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


def _report_sweep(results: Path, folder: Path, name: str, known: Sequence[str]) -> StudyReport:
    by_dataset: dict[str, dict[int, Summary]] = {}
    field = ""
    lost: list[FmcacheError] = []
    for study in known:
        variant = variant_of(study)
        if variant is None or variant[0] != name:
            continue
        _, field, value = variant
        found, damaged = _found(results, study)
        lost += damaged
        for one in found:
            by_dataset.setdefault(one.summary.record.dataset, {})[value] = one.summary
    sweeps = [SweepTable(field, dict(sorted(by_value.items()))) for by_value in by_dataset.values()]
    text = f"# {escape_markdown(name)}\n\n" + left_out(lost) + "".join(f"{sweep.markdown()}\n" for sweep in sweeps)
    files = {f"{one.last.record.dataset}/{file}": content for one in sweeps for file, content in one.files().items()}
    path = _write(folder, files | {REPORT: text.encode()})
    unreadable = cover([text for sweep in sweeps for text in names_shown(sweep.last)]).lacking
    # damaged runs are listed by the reports of the studies
    return StudyReport(path, tuple(sweep.terminal() for sweep in sweeps), unreadable)
