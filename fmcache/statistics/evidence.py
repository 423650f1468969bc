"""From the results table to arrays: the results of one dataset's runs, as sums over test units and over folds.

A unit is what another study would sample again: the patient or slide if known, else the tile. Every score is a function
of sums over units, so that a unit is left out by subtraction (`fmcache.statistics.leave_out`). All scores use the same
sums.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.errors import ResultsMismatch, ResultsNotFound, SpecError
from fmcache.scores.dice import BACKGROUND, PUMA_EPSILON, Reduction, check_reduction, dice
from fmcache.scores.missed import dead

Score = Literal[Reduction, "iou", "precision", "recall", "nsd"]
"""What is computed from the counts of a label: a reduction of Dice, or a ratio of pooled counts.

``iou``: tp / (tp + fp + fn), ``precision``: tp / (tp + fp), ``recall``: tp / (tp + fn). A label that the truth has and
that is never predicted has precision 0, not an undefined one: a seed that lost a label is a result, and must not raise
the mean of the others. ``nsd`` is the formula of ``iou`` on pixels of boundaries: those of truth and prediction that
are close to the other (tp), and those of the prediction (fp) and of the truth (fn) that are not.
"""
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ALL_SCORES: tuple[Score, ...] = (*get_args(Reduction), "iou", "precision", "recall")
"""The scores that come from the pixels of labels: all except ``nsd``, which has counts of its own."""
TP, FP, FN, TILE_DICE, HAS_DICE = range(5)
"""Places in the last axis of sums, see `parts_of`."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The test results of one dataset.

    encoders, labels, units: names. seeds: for each encoder, the seeds that tested every tile. sums: for each encoder,
    (seed, unit, label, part), see `parts_of`. fold_sums: for each encoder, (seed, fold, label, part); the fold axis is
    empty for a fixed split. holds: (unit, label), whether the truth of a unit has the label. lost: for each encoder,
    (seed, label), whether the label is dead (`fmcache.scores.missed.dead`) over all test tiles of the seed; never for
    the labels of `untrained`, which no decoder could learn. score: what is computed from the sums. left_out: (encoder,
    seed) of the runs that lack tiles which other runs tested.
    """

    encoders: tuple[str, ...]
    labels: tuple[str, ...]
    units: tuple[str, ...]
    tiles: int
    seeds: tuple[tuple[int, ...], ...]
    sums: tuple[Floats, ...]
    fold_sums: tuple[Floats, ...]
    holds: Flags
    lost: tuple[Flags, ...]
    score: Score
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def holders(self) -> npt.NDArray[np.int64]:
        """Number of units that hold each label, (label,)."""
        return np.asarray(self.holds.sum(axis=0))

    def scored(self, score: Score) -> Evidence:
        """Return the same evidence for another score; raises SpecError when the labels do not allow it."""
        check_score(score, self.labels)
        return replace(self, score=score)


def score_name(score: Score) -> str:
    """Return the name of a score in tables: `dice_` and the reduction, or the score itself."""
    return f"dice_{score}" if score in get_args(Reduction) else score


def scores_of(labels: Sequence[str]) -> tuple[Score, ...]:
    """Return the scores of `ALL_SCORES` that the labels allow: ``puma`` only where the first is the background."""
    return tuple(one for one in ALL_SCORES if one != "puma" or labels[0] == BACKGROUND)


def check_score(score: Score, labels: Sequence[str]) -> None:
    """Raise SpecError when a score cannot be used with these labels."""
    if score == "puma":
        check_reduction(score, labels)


def evidence_of(
    results: pl.DataFrame,
    score: Score,
    unit_of: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    untrained: Collection[str] = (),
) -> Evidence:
    """Return the evidence of one dataset's results. The order of rows matters only for `labels` that are not given.

    The folds of a seed are combined: its score is that of the tiles of all folds. Each tile is tested in one fold.

    Parameters
    ----------
    results
        The table of `fmcache.scores.results.results_table`; only rows of the split `test` are used.
    score
        The score to compute; `Evidence.scored` changes it without another look at the results.
    unit_of
        The group (patient, slide) of each tile. A tile that is not in it is a separate unit.
    labels
        All labels in the recipe's order. Without them, labels keep the order of the rows.
    untrained
        The labels that no training tile of any fold has.

    Raises
    ------
    ResultsNotFound
        When no row belongs to the test split.
    ResultsMismatch
        When a run counts a tile twice, as happens if its folds come from two different fold assignments.
    SpecError
        When there are several datasets, or labels that the score does not allow.
    """
    test = results.filter(pl.col("split") == "test")
    if test.is_empty():
        raise ResultsNotFound("no run has test tiles", next_step="fmcache fit")
    if len(found := sorted(set(test["dataset"]))) > 1:
        raise SpecError("datasets are never pooled", expected="rows of one dataset", found=", ".join(found))
    labels = tuple(labels) or tuple(test["label"].unique(maintain_order=True))
    check_score(score, labels)
    tiles = sorted(set(test["tile"]))
    groups = [(unit_of or {}).get(tile, tile) for tile in tiles]
    fold_of = dict(test.select("tile", "fold").unique().iter_rows())
    if len(test.select("encoder", "seed", "tile", "label").unique()) < len(test):
        raise ResultsMismatch("a run counts a tile twice", expected="each tile in one fold", next_step="fmcache fit")
    seeds, counts, left_out = {}, {}, []
    for name in sorted(set(test["encoder"])):
        seeds[name], counts[name], lacking = _dense(test.filter(pl.col("encoder") == name), tiles, labels)
        left_out += [(name, seed) for seed in lacking]
    return from_counts(
        counts, labels, groups, score, [fold_of[tile] for tile in tiles], seeds=seeds, left_out=tuple(left_out),
        untrained=untrained,
    )  # fmt: skip


def _dense(
    table: pl.DataFrame, tiles: Sequence[str], labels: Sequence[str]
) -> tuple[tuple[int, ...], npt.NDArray[np.int64], list[int]]:
    """Return one encoder's complete seeds, their counts (seed, tile, label, 3), and the seeds that lack tiles."""
    seeds = sorted(set(table["seed"]))
    counts = np.zeros((len(seeds), len(tiles), len(labels), 3), np.int64)
    seen = np.zeros(counts.shape[:3], bool)
    axes: dict[str, Sequence[object]] = {"seed": seeds, "tile": tiles, "label": labels}
    places = [{name: i for i, name in enumerate(names)} for names in axes.values()]
    at = tuple(np.array([place[name] for name in table[axis]]) for axis, place in zip(axes, places, strict=True))
    counts[at] = table.select("tp", "fp", "fn").to_numpy()
    seen[at] = True
    whole = np.asarray(seen.all(axis=(1, 2)))
    kept = tuple(seed for seed, one in zip(seeds, whole, strict=True) if one)
    return kept, counts[whole], [seed for seed in seeds if seed not in kept]


def from_counts(
    counts: Mapping[str, npt.NDArray[np.int64]],
    labels: Sequence[str],
    groups: Sequence[str],
    score: Score = "pooled",
    folds: Sequence[int | None] = (),
    *,
    seeds: Mapping[str, tuple[int, ...]] | None = None,
    left_out: tuple[tuple[str, int], ...] = (),
    untrained: Collection[str] = (),
) -> Evidence:
    """Return the evidence of counts by encoder, (seed, tile, label, 3); `groups` and `folds` have an entry per tile."""
    units, unit_at = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    parted = len(set(folds)) > 1
    fold_at = np.unique(np.asarray(folds), return_inverse=True)[1] if parted else np.zeros(0, int)
    truth = [one[..., 0] + one[..., 2] for one in counts.values() if len(one)]
    in_truth = np.any([one.any(axis=0) for one in truth], axis=0) if truth else np.zeros((len(groups), len(labels)))
    holds = np.zeros((len(units), len(labels)), bool)
    np.logical_or.at(holds, unit_at, in_truth.astype(bool))
    able = np.array([label not in untrained for label in labels], dtype=bool)
    parts = [parts_of(one) for one in counts.values()]
    return Evidence(
        encoders=tuple(counts),
        labels=tuple(labels),
        units=tuple(map(str, units)),
        tiles=len(groups),
        seeds=tuple((seeds or {}).get(name, tuple(range(len(one)))) for name, one in counts.items()),
        sums=tuple(_added(one, unit_at, len(units)) for one in parts),
        fold_sums=tuple(_added(one, fold_at, len(set(folds))) if parted else one[:, :0] for one in parts),
        holds=holds,
        lost=tuple(dead(one.sum(axis=1)) & able for one in counts.values()),
        score=score,
        left_out=left_out,
    )


def parts_of(counts: npt.NDArray[np.int64]) -> Floats:
    """Return what is summed over tiles, (..., label, part): tp, fp, fn, the tile's Dice (0: undefined), 1: defined."""
    per_tile = dice(counts)
    parts = np.empty((*counts.shape[:-1], 5))
    parts[..., :TILE_DICE] = counts
    parts[..., TILE_DICE], parts[..., HAS_DICE] = np.nan_to_num(per_tile), ~np.isnan(per_tile)
    return parts


def score_of(sums: Floats, score: Score, held: Flags) -> Floats:
    """Return the score of sums (..., label, part), (..., label); NaN where undefined.

    `held` (..., label): whether the summed truth has the label. The score of a label that no truth has is undefined,
    not 0; only the PUMA challenge counts it as 0.
    """
    tp, fp, fn = sums[..., TP], sums[..., FP], sums[..., FN]
    match score:
        case "puma":
            challenge: Floats = np.where(tp > 0, (2 * tp + PUMA_EPSILON) / (2 * tp + fp + fn + PUMA_EPSILON), 0.0)
            challenge[..., 0] = np.nan
            return challenge
        case "per_tile":
            above, below = sums[..., TILE_DICE], sums[..., HAS_DICE]
        case "pooled":
            above, below = 2 * tp, 2 * tp + fp + fn
        case "iou" | "nsd":
            above, below = tp, tp + fp + fn
        case "precision":
            above, below = tp, tp + fp
        case "recall":
            above, below = tp, tp + fn
    undefined = np.where(held, 0.0, np.nan)  # a label of the truth that is never predicted has precision 0
    return np.asarray(np.divide(above, below, out=undefined + np.zeros_like(above), where=(below > 0) & held))


def _added(parts: Floats, at: npt.NDArray[np.intp], n: int) -> Floats:
    """Sum (seed, tile, label, part) over tiles with the same index in `at`; the result is (seed, n, label, part)."""
    if n == parts.shape[1]:
        return parts[:, np.argsort(at)]
    order = np.argsort(at, kind="stable")
    return np.asarray(np.add.reduceat(parts[:, order], np.searchsorted(at[order], np.arange(n)), axis=1))
