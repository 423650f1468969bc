"""Stage three: counts -> report. Reads the results table only; no torch, no cache, no images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.table import Table

from fmcache.errors import ResultsNotFound
from fmcache.identity import whole_file
from fmcache.report import tables
from fmcache.report.figures import figures
from fmcache.report.summary import Summary, summarise
from fmcache.report.sweep import Sweep
from fmcache.scores.parts import find_parts, read_part, studies
from fmcache.specs import variant_of

FIGURES = {
    "size": "Mean Dice against encoder size; bars: standard deviation over {runs}.",
    "labels": "Dice per label: points are {runs}, bars their mean; hatched: controls and random weights.",
    "curves": "Training loss and validation Dice: thin lines are {runs}, the thick one their mean.",
}


class StudyReport(NamedTuple):
    """A written report: its Markdown file, and a table per dataset for the terminal."""

    path: Path
    tables: tuple[Table, ...]


def report(results: Path, out: Path, study: str = "") -> list[StudyReport]:
    """Write the report of a study, or of all that have results, below `out`; return what was written.

    The studies of one sweep are reported together, below the name of its recipe.

    Raises
    ------
    ResultsNotFound
        When there are no results, or none of this name; the message lists the studies there are.
    ResultsMismatch
        When runs of a study do not belong together.
    """
    known = studies(results)
    chosen = [name for name in known if study in ("", name, _sweep_of(name))]
    if not chosen:
        raise ResultsNotFound(
            f"there are no results{f' of study {study!r}' if study else ''} in {results}",
            found=f"results of {', '.join(known)}" if known else "nothing",
            next_step="fmcache fit, with the same --work folder",
        )
    reports = [_report_study(results, out / name, name) for name in chosen]
    sweeps = sorted({_sweep_of(name) for name in chosen} - {""})
    return reports + [_report_sweep(results, out / name, name, known) for name in sweeps if study in ("", name)]


def _sweep_of(study: str) -> str:
    variant = variant_of(study)
    return variant[0] if variant else ""


def _report_sweep(results: Path, folder: Path, name: str, known: Sequence[str]) -> StudyReport:
    by_dataset: dict[str, dict[int, Summary]] = {}
    field = ""
    for study in known:
        variant = variant_of(study)
        if variant is None or variant[0] != name:
            continue
        _, field, value = variant
        for summary in _summaries(results, study):
            by_dataset.setdefault(summary.record.dataset, {})[value] = summary
    sweeps = [Sweep(field, dict(sorted(by_value.items()))) for by_value in by_dataset.values()]
    text = f"# {name}\n\n"
    for sweep in sweeps:
        for file_name, content in sweep.files().items():
            with whole_file(folder / sweep.last.record.dataset / file_name) as file:
                file.write(content)
        text += sweep.markdown() + "\n"
    with whole_file(folder / "report.md", "w") as file:
        file.write(text)
    return StudyReport(folder / "report.md", tuple(sweep.terminal() for sweep in sweeps))


def _summaries(results: Path, study: str) -> list[Summary]:
    parts = [read_part(path) for path in find_parts(results, study)]
    return [summarise(list(group)) for _, group in groupby(parts, key=lambda part: part.record.dataset)]


def _report_study(results: Path, folder: Path, study: str) -> StudyReport:
    summaries = _summaries(results, study)
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
    with whole_file(folder / "report.md", "w") as file:
        file.write(_head(summaries[0]) + "\n".join(sections) + _tail(summaries[0]))
    shown = () if _sweep_of(study) else tuple(tables.terminal(summary) for summary in summaries)
    return StudyReport(folder / "report.md", shown)  # the studies of a sweep are shown by the sweep's own table


def _head(summary: Summary) -> str:
    recipe = summary.record.recipe
    texts = [recipe["question"], f"Expected: {recipe['expect']}" if recipe["expect"] else ""]
    return f"# {summary.record.study}\n\n" + "".join(f"{text}\n\n" for text in texts if text)


def _section(summary: Summary) -> str:
    record = summary.record
    fit = record.recipe["fit"]
    steps = -(-record.tiles["train"] * fit["passes_per_epoch"] // fit["batch"]) * fit["epochs"]
    rows = summary.rows
    facts = {
        "tiles": " / ".join(f"{n} {split}" for split, n in record.tiles.items())
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
    lines = [f"## {record.dataset_title} ({record.dataset})", "", tables.markdown(summary)]
    lines += [f"- {note}" for note in tables.notes(summary)]
    lines += ["", "| what | value |", "|---|---|"] + [f"| {key} | {value} |" for key, value in facts.items()] + [""]
    for name, text in FIGURES.items():
        caption = text.format(runs="runs (fold, seed)" if summary.folds else "seeds")
        lines += [f"![{caption}]({record.dataset}/{name}.png)", "", f"*{caption}*", ""]
    lines += ["Encoders:", ""]
    lines += [
        f"- {row.encoder.display}: {row.encoder.params:,} parameters, "
        f"patch {row.encoder.patch}, width {row.encoder.width}"
        + "".join(f"; {text}" for text in (row.encoder.licence, row.encoder.citation) if text)
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _tail(summary: Summary) -> str:
    recipe = yaml.safe_dump(summary.record.recipe, sort_keys=False, allow_unicode=True)
    return f"\n## Recipe\n\n```yaml\n{recipe}```\n"
