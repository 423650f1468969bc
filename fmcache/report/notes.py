"""The notes under a table: which Dice it shows, over which labels and runs, and how the runs ended.

Lines are plain text. Markdown and LaTeX escape them as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fmcache.manifest import Split
from fmcache.report.endings import ENDING_TEXTS, Ending
from fmcache.report.summary import Row, Summary

REDUCTIONS = {
    "pooled": "Dice from counts summed over all test tiles",
    "per_tile": "Dice of each test tile, averaged over the tiles where the label occurs or was predicted",
    "puma": "Dice as in the PUMA challenge: counts summed over all test tiles, a label without a hit is 0, the "
    "background is left out (at the tile size of the recipe; the challenge uses 1024 px)",
}
UNSEEN: dict[Split, str] = {
    "val": "validation tiles: it has no influence on the choice of the best weights",
    "train": "training tiles: no decoder could learn it, so its Dice does not compare encoders",
}


def notes(summary: Summary) -> list[str]:
    """Return the lines under a table."""
    lines = [
        f"{REDUCTIONS[summary.reduction]}; in percent. Mean ± standard deviation over {runs(summary)}.",
        *lacking(summary),
    ]
    lines += _folds(summary) or [
        "The split is fixed: the spread is over seeds only and does not cover other tiles or patients."
    ]
    if not summary.compares:
        lines.append("The test tiles hold fewer than two labels: Dice has no meaning here, and nothing is ranked.")
    elif len(summary.ranked) > 1:
        lines.append("Best encoder underlined, best three bold; controls and random weights are not ranked.")
    lines += endings(summary)
    if len({row.runs for row in summary.rows}) > 1:
        counts = ", ".join(f"{row.encoder.display} {len(row.seeds)}" for row in summary.rows)
        missing = " Rows with other folds were tested on other tiles: do not compare them." if summary.folds else ""
        lines.append(f"{_unit(summary).capitalize()}: {counts}.{missing}")
    return lines


def runs(summary: Summary) -> str:
    """Return over what the spread is computed: seeds, or folds and seeds."""
    return f"{len(summary.folds)} folds and their seeds" if summary.folds else "seeds"


def marks(row: Row) -> str:
    """Return the marks of the ways in which runs of a row ended."""
    return "".join(text.mark for how, text in ENDING_TEXTS.items() if row.ended(how))


def lacking(summary: Summary) -> list[str]:
    """Return the number of labels in each mean, and the labels that the test, validation or training tiles lack."""
    return [*_means(summary), *_predicted_nevertheless(summary), *_unseen(summary)]


def _means(summary: Summary) -> list[str]:
    puma = summary.reduction == "puma"  # its background never counts, every other label always counts
    scored = summary.columns[puma:-1]
    n = len(scored)
    lines = []
    for names, folds in _by_names(summary, "test"):
        lacking = [name for name in names if name in scored]
        where, what = f"In {folds} " if folds else "", f"{_listed(lacking)} no pixel in the test tiles"
        if not lacking or puma:
            without = f": {summary.columns[0]} is left out" if puma else ""
            lines.append(f"{where}'mean' is the mean over {n if puma else f'all {n}'} labels{without}")
            lines += [f"{where}{what}: the challenge counts this as Dice 0"] if lacking else []
        elif len(lacking) == n:
            lines.append(f"{where}no label has a pixel in the test tiles, so nothing has a Dice")
        else:
            lines.append(f"{where}'mean' is the mean over {n - len(lacking)} of {n} labels: {what}")
    return [f"{line}." for line in lines]


def endings(summary: Summary) -> list[str]:
    """Return a line for each way in which runs ended: the observation, the runs of each encoder, and the advice."""
    lines = []
    for how, text in ENDING_TEXTS.items():
        rows = [_ended(row, how, _unit(summary)) for row in summary.rows if row.ended(how)]
        if rows:
            lines.append(f"{text.mark} {text.seen}: {'; '.join(rows)}. {text.advice}.".strip())
    return [f"{line[0].upper()}{line[1:]}" for line in lines]


def _ended(row: Row, how: Ending, unit: str) -> str:
    found = row.ended(how)
    names = [_name(*row.runs[i]) for i in found]
    which = "" if len(found) == len(row.runs) else f" ({', '.join(names)})"
    text = f"{row.encoder.display}: {len(found)} of {len(row.runs)} {unit}{which}"
    if how is not Ending.COLLAPSED:
        return text
    times = Counter(label for i in found for label in row.missed[i])
    return f"{text}, on {', '.join(f'{label} ({n} of {len(row.runs)})' for label, n in times.items())}"


def _name(fold: int | None, seed: int) -> str:
    return str(seed) if fold is None else f"fold {fold} seed {seed}"


def _predicted_nevertheless(summary: Summary) -> list[str]:
    """Return a line on rows whose means include a label that the test tiles lack, because some runs predicted it."""
    if summary.reduction == "puma":
        return []
    n = len(summary.columns) - 1
    rows = []
    for row in summary.rows:
        there = np.array([n - len(summary.lacking[fold, "test"]) for fold in row.folds])
        if more := int((row.labels_in_mean > there).sum()):
            rows.append(f"{row.encoder.display} ({more} of {len(row.seeds)} {_unit(summary)})")
    if not rows:
        return []
    return [f"A label that the test tiles lack was predicted: its Dice of 0 counts in the mean of {', '.join(rows)}."]


def _unseen(summary: Summary) -> list[str]:
    """Return lines on the labels that the validation and training tiles lack, and the consequence."""
    return [
        f"{f'In {folds} ' if folds else ''}{_listed(names)} no pixel in the {consequence}."
        for split, consequence in UNSEEN.items()
        for names, folds in _by_names(summary, split)
        if names
    ]


def _by_names(summary: Summary, split: Split) -> list[tuple[tuple[str, ...], str]]:
    """Return the sets of labels that a split lacks, each with its folds ('' for the fixed split or all folds)."""
    by_names: dict[tuple[str, ...], list[int | None]] = {}
    for (fold, at), names in summary.lacking.items():
        if at == split:
            by_names.setdefault(names, []).append(fold)
    return [
        (names, "" if len(by_names) == 1 else f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}")
        for names, folds in by_names.items()
    ]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'}"


def _unit(summary: Summary) -> str:
    return "runs" if summary.folds else "seeds"


def _folds(summary: Summary) -> list[str]:
    """Return lines on what a spread over folds covers, and its two sources for each encoder."""
    if not summary.folds:
        return []
    lines = [
        f"Dice is computed per run: a seed trained and tested on one of {len(summary.folds)} folds. Each tile is "
        "tested in at most one fold. The spread covers seeds within a fold and the change of training, validation and "
        "test tiles between folds. Folds share training tiles, so they are not independent: this is not a standard "
        "error."
    ]
    for row in summary.rows:
        seeds = f"; over seeds within a fold {100 * row.std_of_seeds:.2f}" if not np.isnan(row.std_of_seeds) else ""
        if not np.isnan(row.std_of_folds):
            over = (
                f"standard deviation of the mean over folds (each the mean of its seeds) {100 * row.std_of_folds:.2f}"
            )
            lines.append(f"{row.encoder.display}: {over}{seeds}.")
    return lines
