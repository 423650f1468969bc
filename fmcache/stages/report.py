"""Stage three: counts -> report. It reads only the results of runs and needs no torch, caches or images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import yaml
from filelock import FileLock, Timeout
from rich.table import Table

from fmcache import fonts, identity
from fmcache.errors import Busy, FmcacheError, ResultsCorrupt, ResultsMismatch, ResultsNotFound
from fmcache.identity import whole_file
from fmcache.manifest import SPLITS
from fmcache.report import tables
from fmcache.report.escapes import escape_markdown
from fmcache.report.figures import cover, figures, names_shown
from fmcache.report.notes import notes
from fmcache.report.summary import Summary, summarise
from fmcache.report.sweep import SweepTable
from fmcache.scores.records import EncoderInfo, RunResults
from fmcache.scores.run_files import find_runs, read_run, studies
from fmcache.specs import variant_of

WAIT_S = 120
"""How long to wait (s) for another process that writes the same report."""
FIGURES = {
    "size": "Mean Dice against encoder size; bars: standard deviation over {runs}.",
    "labels": "Dice per label: points are {runs}, bars their mean; hatched: controls and random weights.",
    "curves": "Training loss and validation Dice: thin lines are {runs}, the thick one their mean.",
}


class StudyReport(NamedTuple):
    """A written report: its Markdown file and, for the terminal, one table for each dataset and then the notes."""

    path: Path
    tables: tuple[Table | str, ...]
    unreadable: frozenset[str]
    """Characters in names that are missing in all installed fonts."""
    damaged: tuple[FmcacheError, ...] = ()
    """The errors of runs that were left out."""


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


def _report_sweep(results: Path, folder: Path, name: str, known: Sequence[str]) -> StudyReport:
    by_dataset: dict[str, dict[int, Summary]] = {}
    field = ""
    lost: list[FmcacheError] = []
    for study in known:
        variant = variant_of(study)
        if variant is None or variant[0] != name:
            continue
        _, field, value = variant
        summaries, damaged = _summaries(results, study)
        lost += damaged
        for summary in summaries:
            by_dataset.setdefault(summary.record.dataset, {})[value] = summary
    sweeps = [SweepTable(field, dict(sorted(by_value.items()))) for by_value in by_dataset.values()]
    text = f"# {escape_markdown(name)}\n\n" + _left_out(lost)
    for sweep in sweeps:
        for file_name, content in sweep.files().items():
            with whole_file(folder / sweep.last.record.dataset / file_name) as file:
                file.write(content)
        text += sweep.markdown() + "\n"
    with whole_file(folder / "report.md") as file:
        file.write(text.encode())
    unreadable = cover([text for sweep in sweeps for text in names_shown(sweep.last)]).lacking
    # damaged runs are listed by the reports of the studies
    return StudyReport(folder / "report.md", tuple(sweep.terminal() for sweep in sweeps), unreadable)


def _summaries(results: Path, study: str) -> tuple[list[Summary], list[FmcacheError]]:
    """Return the summary of each dataset of a study, and the errors of the runs that are left out.

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
    return [summarise(list(group)) for _, group in groupby(runs, key=lambda run: run.record.dataset)], damaged


def _left_out(damaged: Sequence[FmcacheError]) -> str:
    """Return the paragraph of a report about the runs that are left out; empty if no run is left out."""
    if not damaged:
        return ""
    lines = "\n".join(f"- {escape_markdown(error.problem)}" for error in damaged)
    return f"**{len(damaged)} runs are left out, since their results are damaged:**\n\n{lines}\n\n"


def _report_study(results: Path, folder: Path, study: str) -> StudyReport:
    summaries, damaged = _summaries(results, study)
    sections = []
    for summary in summaries:
        dataset = summary.record.dataset
        files = figures(summary) | {
            "table.csv": tables.csv_text(summary).encode(),
            "table.tex": tables.latex(summary).encode(),
        }
        for name, content in files.items():
            with whole_file(folder / dataset / name) as file:
                file.write(content)
        sections.append(_section(summary))
    with whole_file(folder / "report.md") as file:
        file.write((_head(summaries[0]) + _left_out(damaged) + "\n".join(sections) + _tail(summaries[0])).encode())
    # the studies of a sweep appear in the sweep's table instead
    shown = () if _sweep_of(study) else tuple(tables.terminal(summary) for summary in summaries)
    unreadable = cover([text for summary in summaries for text in names_shown(summary)]).lacking
    return StudyReport(folder / "report.md", shown, unreadable, tuple(damaged))


def _head(summary: Summary) -> str:
    recipe = summary.record.recipe
    texts = [recipe["question"], f"Expected: {recipe['expect']}" if recipe["expect"] else ""]
    lines = [[escape_markdown(line.strip()) for line in text.splitlines()] for text in texts if text]
    return f"# {escape_markdown(summary.record.study)}\n\n" + "".join("\n".join(one) + "\n\n" for one in lines)


def _section(summary: Summary) -> str:
    record = summary.record
    fit = record.recipe["fit"]
    steps = -(-record.tiles["train"] * fit["passes_per_epoch"] // fit["batch"]) * fit["epochs"]
    rows = summary.rows
    facts = {
        "tiles": " / ".join(f"{record.tiles[split]} {split}" for split in SPLITS)
        + (f" (fold {record.fold})" if summary.folds else ""),
        "tile size": f"{record.recipe['tile_px']} px" + (f", listed at {record.mpp:g} um/px" if record.mpp else ""),
        "views": f"{record.recipe['views']['count']} of each training tile",
        "budget": f"{steps} steps of up to {fit['batch']} views, {fit['epochs']} epochs",
        "decoder": f"width {record.recipe['decoder']['width']}, {record.decoder_params:,} parameters (first encoder)",
        "folds": str(len(summary.folds)) if summary.folds else "none: one fixed split",
        "seeds": ", ".join(sorted({str(len(set(row.seeds))) for row in rows})),
        "device": f"{record.device}, {record.threads} threads",
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    lines = [f"## {escape_markdown(f'{record.dataset_title} ({record.dataset})')}", "", tables.markdown(summary)]
    lines += [f"- {escape_markdown(note)}" for note in notes(summary)]
    lines += ["", tables.markdown_head(["what", "value"])]
    lines += [f"| {key} | {escape_markdown(value)} |" for key, value in facts.items()] + [""]
    for name, text in FIGURES.items():
        caption = text.format(runs="runs (fold, seed)" if summary.folds else "seeds")
        lines += [f"![{caption}]({record.dataset}/{name}.png)", "", f"*{caption}*", ""]
    lines += ["Encoders:", ""]
    lines += [f"- {escape_markdown(_encoder(row.encoder))}" for row in rows]
    return "\n".join(lines) + "\n"


def _encoder(encoder: EncoderInfo) -> str:
    what = f"{encoder.display}: {encoder.params:,} parameters, patch {encoder.patch}, width {encoder.width}"
    return "; ".join(text for text in (what, _weights(encoder), encoder.licence, encoder.citation) if text)


def _weights(encoder: EncoderInfo) -> str:
    if encoder.random_weights or not encoder.weights_sha256:
        return ""
    return f"weights {encoder.weights}, sha256 {encoder.weights_sha256}".replace("weights ,", "weights of")


def _tail(summary: Summary) -> str:
    # The weights files of the recipe may have changed since the run. The weights used are listed with the encoders.
    encoders = [
        {key: value for key, value in one.items() if key != "weights" or not value} if isinstance(one, dict) else one
        for one in summary.record.recipe.get("encoders", ())
    ]
    recipe = yaml.safe_dump(summary.record.recipe | {"encoders": encoders}, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", recipe)), default=0))
    return f"\n## Recipe\n\n{fence}yaml\n{recipe}{fence}\n"
