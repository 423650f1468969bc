"""The report of a study as Markdown: for each dataset its tables, notes, facts and figures; then the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fmcache.errors import FmcacheError
from fmcache.report.escapes import escape_markdown
from fmcache.report.facts import facts, recipe_text, weights
from fmcache.report.figures import caption, datasets_compare, drawings
from fmcache.report.findings import Findings
from fmcache.report.method import method
from fmcache.report.page import SweepPart
from fmcache.report.report_table import ReportTable
from fmcache.report.summary import Summary
from fmcache.report.sweep import sweep_recipe
from fmcache.report.tables import markdown, markdown_head
from fmcache.scores.records import EncoderInfo


def markdown_report(
    datasets: Sequence[tuple[Findings, Sequence[ReportTable]]],
    across: Sequence[ReportTable],
    damaged: Sequence[FmcacheError],
) -> str:
    """Return the text of ``report.md``.

    `datasets` are the findings and tables of each dataset, `across` the tables over datasets, `damaged` the errors of
    runs that are left out.
    """
    summary = datasets[0][0].summary
    sections = [_section(found, shown) for found, shown in datasets]
    sections += ["\n".join(["## Datasets", "", *map(_table, across)])] * bool(across)
    if datasets_compare([found for found, _ in datasets]):
        sections.append(_figure("slope", "slope.png", summary))
    method_text = _method([found for found, _ in datasets], "## Method")
    return _head(summary) + left_out(damaged) + "\n".join([*sections, method_text]) + _tail(summary.record.recipe)


def markdown_sweep(parts: Sequence[SweepPart], damaged: Sequence[FmcacheError]) -> str:
    """Return the text of the ``report.md`` of a sweep; `damaged` are the errors of runs that are left out."""
    sections, swept = [], [part.swept for part in parts]
    for part in parts:
        record = part.swept.first.summary.record
        lines = [f"## {escape_markdown(f'{record.dataset_title} ({record.dataset})')}", ""]
        lines += [f"- {escape_markdown(sentence)}" for sentence in part.sentences]
        lines += ["", *map(_table, part.tables)]
        if part.figures:
            text = escape_markdown(part.caption)
            lines += [f"![{text}]({record.dataset}/sweep.png)\n\n*{text}*\n"]
        sections.append("\n".join(lines))
    head = _head(swept[0].first.summary, swept[0].name)
    return head + left_out(damaged) + "\n".join(sections) + _tail(sweep_recipe(swept))


def _table(table: ReportTable) -> str:
    """Return a table with its title above and its notes below."""
    lines = [f"### {escape_markdown(table.title)}", "", markdown(table)]
    return "\n".join([*lines, *(f"- {escape_markdown(note)}" for note in table.notes), ""])


def method_page(found: Sequence[Findings]) -> str:
    """Return the text of ``method.md``: the method of a study, ready for a paper."""
    return _method(found, "# Method")


def _method(found: Sequence[Findings], heading: str) -> str:
    keys = "Citations such as [@fmcache] are keys of the entries in references.bib."
    return "\n\n".join([heading, *map(escape_markdown, [*method(found), keys])]) + "\n"


def left_out(damaged: Sequence[FmcacheError]) -> str:
    """Return the paragraph of a report about the runs that are left out; empty if no run is left out."""
    if not damaged:
        return ""
    lines = "\n".join(f"- {escape_markdown(error.problem)}" for error in damaged)
    return f"**{len(damaged)} runs are left out, because their results are damaged:**\n\n{lines}\n\n"


def _head(summary: Summary, study: str = "") -> str:
    recipe = summary.record.recipe
    texts = [recipe["question"], f"Expected: {recipe['expect']}" if recipe["expect"] else ""]
    lines = [[escape_markdown(line.strip()) for line in text.splitlines()] for text in texts if text]
    return f"# {escape_markdown(study or summary.record.study)}\n\n" + "".join("\n".join(one) + "\n\n" for one in lines)


def _section(findings: Findings, shown: Sequence[ReportTable]) -> str:
    summary = findings.summary
    record = summary.record
    dice, *others = shown
    lines = [f"## {escape_markdown(f'{record.dataset_title} ({record.dataset})')}", "", markdown(dice)]
    lines += [f"- {escape_markdown(note)}" for note in dice.notes]
    lines += ["", *map(_table, others)]
    lines += ["### How it was done", "", markdown_head(["what", "value"])]
    lines += [f"| {key} | {escape_markdown(value)} |" for key, value in facts(summary).items()] + [""]
    lines += [_figure(name, f"{record.dataset}/{name}.png", summary) for name in drawings(findings)]
    lines += ["Encoders:", ""]
    lines += [f"- {escape_markdown(_encoder(row.encoder))}" for row in summary.rows]
    return "\n".join(lines) + "\n"


def _figure(name: str, path: str, summary: Summary) -> str:
    text = caption(name, summary)
    return f"![{text}]({path})\n\n*{text}*\n"


def _encoder(encoder: EncoderInfo) -> str:
    what = f"{encoder.display}: {encoder.params:,} parameters, patch {encoder.patch}, width {encoder.width}"
    return "; ".join(text for text in (what, weights(encoder), encoder.licence, encoder.citation) if text)


def _tail(recorded: Mapping[str, Any]) -> str:
    recipe = recipe_text(recorded)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", recipe)), default=0))
    return f"\n## Recipe\n\n{fence}yaml\n{recipe}{fence}\n"
