"""The notes under the table of Dice: which Dice it shows, over which labels, tiles and seeds, how sure it is, and how
the runs ended.

Lines are plain text. Markdown and LaTeX escape them as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fmcache.manifest import Split
from fmcache.report.endings import ENDING_TEXTS, Ending
from fmcache.report.findings import Findings
from fmcache.report.summary import MEAN, Row, Summary
from fmcache.report.tables import MAY_BE_BEST
from fmcache.statistics.leave_out import FEWEST_HOLDERS

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


FEW_SEEDS, ENOUGH_SEEDS = 5, 10
"""With fewer seeds than `FEW_SEEDS` the report recommends `ENOUGH_SEEDS`."""
FEW_HOLDERS = 10
"""With fewer test units that hold a label, an interval is slightly too narrow."""
SPREAD = "± is the standard deviation over seeds."
NO_INTERVAL = {
    "no whole run": "no seed tested all tiles",
    "absent": "no label is in the test tiles",
    "one seed": "one seed",
    "too few units": f"a label is in fewer than {FEWEST_HOLDERS} {{units}}",
    "one fold": "a label is in the test tiles of one fold only",
    "nothing varied": "all seeds and {units} agree",
}
"""Why the mean has no interval, by `cannot` in `fmcache.statistics.schemas.INTERVALS`."""


def notes(found: Findings) -> list[str]:
    """Return the lines under the table of Dice."""
    summary = found.summary
    return [
        f"{REDUCTIONS[summary.reduction]}; in percent. Worst label: the one with the lowest mean Dice.",
        *_spreads(found),
        *lacking(summary),
        *_unseen_tiles(summary),
        *_ranking(found),
        *_few(found),
        *_lost(found),
        *endings(summary),
        *_unequal(found),
    ]


def _spreads(found: Findings) -> list[str]:
    """Return lines on what ± and the interval cover, and which encoders have no interval."""
    of_mean = {name: row for (name, label), row in found.intervals_of().items() if label == MEAN}
    lines = []
    if any(row["seeds"] > 1 for row in of_mean.values()):
        lines.append(SPREAD)
    if seeds := [row["seeds"] for row in of_mean.values() if row["low"] is not None]:
        lines.append(f"[low, high] is the 95 % interval of the mean over {_tiles(found)} and {_range(seeds)} seeds.")
    names: dict[str, list[str]] = {}
    for row in found.summary.rows:
        if why := of_mean[row.encoder.name]["cannot"]:
            names.setdefault(NO_INTERVAL.get(why, why).format(units=units(found)), []).append(row.encoder.display)
    whole = len(of_mean)
    return lines + [
        f"No interval ({why}){'' if len(who) == whole else ': ' + ', '.join(who)}." for why, who in names.items()
    ]


def units(found: Findings) -> str:
    """Return what is resampled on the test side: tiles, or patients or slides where they are known."""
    return "patients or slides" if any(run.record.groups for run in found.runs) else "test tiles"


def _tiles(found: Findings) -> str:
    evidence = found.evidence
    tiles = f"{evidence.tiles} test tile{'s' * (evidence.tiles != 1)}"
    known = any(run.record.groups for run in found.runs)
    return f"{tiles} of {len(evidence.units)} {units(found)}" if known else f"{tiles} (patients are unknown)"


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def _ranking(found: Findings) -> list[str]:
    """Return lines on what is ranked, and what the mark and the ranks mean."""
    summary = found.summary
    if not summary.compares:
        return ["The test tiles hold fewer than two labels: Dice has no meaning here, and nothing is ranked."]
    if len(summary.ranked) < 2:
        return []
    lines = ["Best encoder underlined, best three bold; controls and random weights are not ranked."]
    of_mean = [row for (_, label), row in found.intervals_of().items() if label == MEAN]
    may = sum(bool(row["may_be_best"]) for row in of_mean)
    ranked = sum(row["may_be_best"] is not None for row in of_mean)
    if ranked > 1:
        some = f"{may} of {ranked} encoders" if may < ranked else f"all {ranked} encoders, none can be excluded"
        lines.append(
            f"{MAY_BE_BEST} may be the best of its column, with an error of 5 % for all encoders jointly; for the "
            f"mean: {some}. Rank: the ranks that remain possible when all pairs are tested jointly at 5 %."
        )
    return lines


def _few(found: Findings) -> list[str]:
    """Return lines on intervals that rest on few seeds or few test units."""
    lines = []
    if min(len(row.seeds) for row in found.summary.rows) < FEW_SEEDS:
        lines.append(
            f"Fewer than {FEW_SEEDS} seeds: how much seeds vary is poorly known. Use {ENOUGH_SEEDS}, they are cheap."
        )
    evidence = found.evidence
    holders = {label: int(n) for label, n in zip(evidence.labels, evidence.holders, strict=True) if n}
    what = units(found)
    few = {label: n for label, n in holders.items() if FEWEST_HOLDERS <= n < FEW_HOLDERS}
    none = {label: n for label, n in holders.items() if n < FEWEST_HOLDERS}
    if few:
        lines.append(f"Few {what} hold {_counted(few)}: these intervals, and that of the mean, are optimistic.")
    if none:
        lines.append(f"Fewer than {FEWEST_HOLDERS} {what} hold {_counted(none)}: too few for an interval.")
    return lines


def _counted(holders: dict[str, int]) -> str:
    return ", ".join(f"{label} ({n})" for label, n in holders.items())


def _lost(found: Findings) -> list[str]:
    if not any(row["lost"] for row in found.intervals_of().values()):
        return []
    return [
        "Collapsed: seeds that never predicted a label of the test tiles, or have a Dice below 5 % for one. They stay "
        "in all other columns."
    ]


def _unequal(found: Findings) -> list[str]:
    """Return lines on encoders with other numbers of seeds, and on seeds that did not test every tile."""
    rows, lines = found.summary.rows, []
    if len({row.seeds for row in rows}) > 1:
        lines.append(f"Seeds: {', '.join(f'{row.encoder.display} {len(row.seeds)}' for row in rows)}.")
    left_out: dict[str, list[int]] = {}
    for name, seed in found.evidence.left_out:
        left_out.setdefault(name, []).append(seed)
    some = [
        f"{row.encoder.display} (seed{'s' * (len(left_out[row.encoder.name]) > 1)} "
        f"{', '.join(map(str, left_out[row.encoder.name]))})"
        for row in rows
        if row.encoder.name in left_out
    ]
    if some:
        lines.append(f"Left out, because they did not test every tile (a fold is missing): {'; '.join(some)}.")
    return lines


def marks(row: Row) -> str:
    """Return the marks of the ways in which runs of a row ended."""
    return "".join(text.mark for how, text in ENDING_TEXTS.items() if row.ended(how))


def lacking(summary: Summary) -> list[str]:
    """Return the number of labels in each mean, and the labels that the test, validation or training tiles lack."""
    return [*_means(summary), *_unseen(summary)]


def _means(summary: Summary) -> list[str]:
    puma = summary.reduction == "puma"  # its background never counts, every other label always counts
    scored = summary.columns[puma:-1]
    n = len(scored)
    absent = [label for label in summary.absent if label in scored]
    what = f"{_listed(absent)} no pixel in the test tiles"
    if puma:
        lines = [f"'mean' is the mean over {n} labels: {summary.columns[0]} is left out."]
        return lines + [f"{what}: the challenge counts this as Dice 0."] * bool(absent)
    if not absent:
        return [f"'mean' is the mean over all {n} labels."]
    if len(absent) == n:
        return ["no label has a pixel in the test tiles, so nothing has a Dice."]
    return [f"'mean' is the mean over {n - len(absent)} of {n} labels: {what}."]


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


def _unseen_tiles(summary: Summary) -> list[str]:
    """Return whether the spread covers other training tiles; for folds its two sources for each encoder."""
    if not summary.folds:
        return ["The split is fixed: neither ± nor the interval covers other training tiles."]
    lines = [
        f"Each seed was trained on {len(summary.folds)} folds and is scored on the test tiles of all folds together. "
        "The interval covers other training tiles, ± does not: folds share training tiles, so a deviation over folds "
        "is not a standard error."
    ]
    for row in summary.rows:
        seeds = f"; over seeds within a fold {100 * row.std_of_seeds:.2f}" if not np.isnan(row.std_of_seeds) else ""
        if not np.isnan(row.std_of_folds):
            over = (
                f"standard deviation of the mean over folds (each the mean of its seeds) {100 * row.std_of_folds:.2f}"
            )
            lines.append(f"{row.encoder.display}: {over}{seeds}.")
    return lines
