"""One recipe field with several values: does the order of encoders depend on it? Table, figure and CSV."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from rich.table import Table

from fmcache.report.endings import ENDING_TEXTS, EndingText
from fmcache.report.escapes import escape_markdown
from fmcache.report.figure_style import COLOURS, CONTROL, Write, names_shown, rendered
from fmcache.report.notes import lacking, marks
from fmcache.report.report_table import UNKNOWN, percent
from fmcache.report.summary import Row, Summary
from fmcache.report.tables import markdown_head

TITLES = {"views": "views of each training tile", "passes_per_epoch": "passes over the training tiles in an epoch"}


class SweepTable(NamedTuple):
    """The studies of one sweep on one dataset: `field` is the swept field, `summaries` are by its value, increasing."""

    field: str
    summaries: Mapping[int, Summary]

    @property
    def last(self) -> Summary:
        """The study of the largest value; its order of encoders is that of all tables."""
        return self.summaries[max(self.summaries)]

    def row(self, encoder: str, value: int) -> Row | None:
        """Return an encoder's row at a value; None when it was not run there."""
        return next((row for row in self.summaries[value].rows if row.encoder.name == encoder), None)

    def markdown(self) -> str:
        """Return the section of a report: table, notes, figure."""
        record = self.last.record
        lines = [f"## {escape_markdown(f'{record.dataset_title} ({record.dataset})')}", ""]
        lines += [f"Test Dice by {TITLES[self.field]}:", "", markdown_head(["encoder", *map(str, self.summaries)])]
        lines += ["| " + " | ".join(map(escape_markdown, texts)) + " |" for texts in self._texts()]
        lines += ["", *(f"- {escape_markdown(note)}" for note in self.notes()), ""]
        return "\n".join([*lines, f"![Test Dice by {TITLES[self.field]}]({record.dataset}/sweep.png)", ""])

    def terminal(self) -> Table:
        """Return the table for the terminal, notes below."""
        table = Table(
            "encoder", *map(str, self.summaries), title=f"{self.last.record.dataset_title} · {TITLES[self.field]}",
            caption="\n".join(self.notes()), caption_justify="left",
        )  # fmt: skip
        for texts in self._texts():
            table.add_row(*texts)
        return table

    def notes(self) -> list[str]:
        """Return how to read the table, and the order of encoders at each value if it changes."""
        lines = [
            "Mean over labels in percent, mean ± standard deviation over the seeds of a value; in brackets the label "
            "with the lowest Dice.",
            *lacking(self.last),
            *(f"{text.mark} at least one run: {text.seen}. {text.advice}." for text in self._marked()),
        ]
        orders = {value: self._order(summary) for value, summary in self.summaries.items()}
        if len({tuple(order) for order in orders.values()}) == 1:
            return [*lines, "The order of rows is the same at every value."]
        return [*lines, "The order of rows changes: " + "; ".join(f"{v}: {' > '.join(o)}" for v, o in orders.items())]

    def files(self) -> dict[str, bytes]:
        """Return the files beside the report: ``sweep.csv``, ``sweep.png`` and ``sweep.svg``."""
        drawn = rendered("sweep", functools.partial(dice_by_value, self), names_shown(self.last))
        return drawn | {"sweep.csv": self._csv().encode()}

    def _marked(self) -> list[EndingText]:
        """Return the endings that have a mark and occur in the sweep."""
        ended = {how for summary in self.summaries.values() for row in summary.rows for how in row.endings}
        return [text for how, text in ENDING_TEXTS.items() if text.mark and how in ended]

    def _order(self, summary: Summary) -> list[str]:
        """Return display names by mean Dice, best first, including controls: how they change with the value matters."""
        return [row.encoder.display for row in sorted(summary.rows, key=lambda row: -np.nan_to_num(row.mean[-1]))]

    def _texts(self) -> list[list[str]]:
        return [
            [
                last.encoder.display,
                *(_cell(one, self.row(last.encoder.name, value)) for value, one in self.summaries.items()),
            ]
            for last in self.last.rows
        ]

    def _csv(self) -> str:
        lines = [
            {
                self.field: value,
                "encoder": row.encoder.name,
                "title": row.encoder.display,
                "label": label,
                "seeds": len(row.seeds),
                "dice_mean_percent": percent(mean),
                "dice_std_percent": percent(std),
            }
            for value, summary in self.summaries.items()
            for row in summary.rows
            for label, mean, std in zip(summary.columns, row.mean, row.std, strict=True)
        ]
        return pl.DataFrame(lines, infer_schema_length=None).write_csv(float_precision=4)


def dice_by_value(sweep: SweepTable, write: Write) -> Figure:
    """Return mean Dice by swept value (log scale): one line per encoder; bars are standard deviations over seeds."""
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for i, last in enumerate(sweep.last.rows):
        rows = {value: sweep.row(last.encoder.name, value) for value in sweep.summaries}
        points = [(value, 100 * row.mean[-1], 100 * np.nan_to_num(row.std[-1])) for value, row in rows.items() if row]
        values, means, stds = zip(*points, strict=True)
        axes.errorbar(
            values, means, yerr=stds, marker="o", markersize=3, capsize=2, linewidth=1.0, label=str(i),
            color=CONTROL if last.is_control else COLOURS[i % len(COLOURS)],
            linestyle=("--", ":", "-.")[i % 3] if last.is_control else "-",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sweep.summaries), [str(value) for value in sweep.summaries])
    axes.set_xlabel(TITLES[sweep.field])
    axes.set_ylabel("test Dice, mean over labels (%)")
    # inside the axes the legend would cover points; with 15 encoders it would cover all of them
    legend = figure.legend(frameon=False, loc="outside right upper")
    for text, last in zip(legend.get_texts(), sweep.last.rows, strict=True):
        text.set_text(write(last.encoder.display))  # a label with a leading _ would not appear in the legend
    return figure


def _cell(summary: Summary, row: Row | None) -> str:
    if row is None or np.isnan(row.mean[-1]):
        return UNKNOWN
    spread = "" if np.isnan(row.std[-1]) else f" ± {100 * row.std[-1]:.2f}"
    worst = summary.worst(row)
    beside = f" ({worst[0]} {100 * worst[1]:.2f})" if worst else ""
    return f"{100 * row.mean[-1]:.2f}{spread}{marks(row)}{beside}"
