"""All figures of a report, as PNG and SVG: which there are, how to read them, and when they are left out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from fmcache.report.figure_rows import figure_rows
from fmcache.report.figure_style import Write, names_shown, rendered
from fmcache.report.findings import Findings
from fmcache.report.interval_figures import forest, pair_matrix, ranks
from fmcache.report.run_figures import dice_by_label, training_curves
from fmcache.report.scatter_figures import costs_of, dice_by_cost, dice_by_size
from fmcache.report.slope_figure import common, dice_by_dataset
from fmcache.report.summary import Summary

CAPTIONS = {
    "size": "Mean Dice against encoder size; bars: standard deviation over seeds. Dashed lines: controls without "
    "parameters.",
    "cost": "Mean Dice against what an encoder costs; bars: standard deviation over seeds. The dashed steps join the "
    "encoders that no other encoder beats at a lower or equal cost. Times depend on the machine.",
    "intervals": "Mean Dice with 95 % intervals; the thin grey line below is the standard deviation over seeds. "
    "Dashed: the best control. Intervals of single encoders do not compare pairs: see the ranks and the pairs.",
    "ranks": "Dots: rank by Dice. Bars: the ranks that are possible, with an error of 5 % for all encoders of a panel "
    "jointly. Whether an encoder may be best is tested separately and more sharply, so an open dot can have a bar that "
    "reaches rank 1.",
    "pairs": "Difference of mean Dice, row minus column, in percentage points. Coloured and bold: the two differ, with "
    "an error of 5 % for all pairs jointly. White: no difference was shown.",
    "labels": "Test Dice per label: dots are seeds, bars their mean. The line below a title has the colour of the "
    "label in the masks.",
    "curves": "Training loss and validation Dice by epoch: thin lines are {runs}, the thick one their mean. All panels "
    "of a kind have the same scale.",
    "slope": "Mean Dice from dataset to dataset, as the difference to the mean of these encoders on the dataset. Lines "
    "that cross: the order changes. Blue lines may be best on at least one dataset.",
}
"""By name of a figure, how to read it; `runs` is what a run is: a seed, or a fold and a seed."""

Draw = Callable[[Findings, Write], Figure]


def caption(name: str, summary: Summary) -> str:
    """Return how to read a figure of a dataset."""
    return CAPTIONS[name].format(runs="runs (fold, seed)" if summary.folds else "seeds")


def figures(findings: Findings) -> dict[str, bytes]:
    """Return the files of all figures of a dataset by name, each as ``.png`` and ``.svg``.

    A figure is left out when it has nothing to show: ranks and pairs of a single encoder, costs that no run records,
    Dice where it is undefined.
    """
    files: dict[str, bytes] = {}
    names = names_shown(findings.summary)
    for name, draw in drawings(findings).items():
        files |= rendered(name, functools.partial(draw, findings), names)
    return files


def study_figures(all_findings: Sequence[Findings]) -> dict[str, bytes]:
    """Return ``slope.png`` and ``slope.svg`` of the datasets of a study.

    Empty when there are fewer than two datasets, or fewer than two encoders that are ranked on every dataset.
    """
    if not datasets_compare(all_findings):
        return {}
    names = [name for of in all_findings for name in (*names_shown(of.summary), of.summary.record.dataset_title)]
    return rendered("slope", functools.partial(dice_by_dataset, all_findings), names)


def datasets_compare(all_findings: Sequence[Findings]) -> bool:
    """Whether there are two datasets or more, with two encoders or more that are ranked on each of them."""
    return len(all_findings) > 1 and len(common(all_findings)) > 1


def drawings(findings: Findings) -> dict[str, Draw]:
    """Return the figures that have something to show, in the order of a report."""
    rows = [row for label in findings.summary.columns for row in figure_rows(findings, label)]
    scored = not all(math.isnan(row.estimate) for row in figure_rows(findings))
    shows: dict[str, tuple[Draw, bool]] = {
        "size": (dice_by_size, scored),
        "cost": (dice_by_cost, bool(costs_of(findings))),
        "intervals": (forest, scored),
        "ranks": (ranks, any(row.ranks for row in rows)),
        "pairs": (pair_matrix, any(row.ranks for row in figure_rows(findings))),
        "labels": (dice_by_label, scored),
        "curves": (training_curves, True),
    }
    return {name: draw for name, (draw, shown) in shows.items() if shown}
