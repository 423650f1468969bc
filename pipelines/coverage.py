"""Do the intervals of `fmcache.statistics` hold the truth? Studies with known truth through the same functions.

    python pipelines/coverage.py             about 20 minutes beside other work
    python pipelines/coverage.py --quick     about 2 minutes

Counts are drawn from the worlds of `worlds.py` and given to the functions that the report uses. The truth is the score
of endless tiles and seeds. Printed, per world and number of test units: coverage of each interval, family-wise error
among encoders that are equal in truth; and among encoders that are not, the power, and the size of the set of those who
may be best. The last line is JSON with the extremes over all worlds, and the cells outside the targets.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from worlds import WORLDS, World, draw, known_truth, levels

from fmcache.identity import random_key
from fmcache.statistics.evidence import Evidence
from fmcache.statistics.family import family
from fmcache.statistics.intervals import intervals
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import Differences, all_pairs, differences
from fmcache.statistics.settle import settle, units_needed

Floats = npt.NDArray[np.float64]


class Cell:
    """What was seen in the studies of one world and number of units: lists of arrays, one a study."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Floats]] = defaultdict(list)

    def add(self, **values: Floats | float) -> None:
        for name, value in values.items():
            self.seen[name].append(np.asarray(value, float))

    def mean(self, name: str) -> float:
        """Mean over studies, encoders or pairs; NaN (no interval) left out."""
        values = np.concatenate([one.ravel() for one in self.seen[name]])
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def inside(low: Floats, high: Floats, truth: Floats) -> Floats:
    """1 where an interval holds the truth, 0 where not, NaN where there is none."""
    return np.where(np.isnan(low), np.nan, (low <= truth) & (truth <= high))


def look(cell: Cell, evidence: Evidence, truth: Floats) -> None:
    """Add what a study of unequal encoders shows."""
    figures = linearise(evidence)
    limits = intervals(figures)
    held = inside(limits.low, limits.high, truth)
    cell.add(label=held[:, :-2], last_label=held[:, -2], mean=held[:, -1], width=limits.high[:, -1] - limits.low[:, -1])
    if evidence.holders[-1] < 10:
        cell.add(last_label_few=held[:, -2])
    of = differences(figures, *all_pairs(np.arange(len(truth))))
    true = truth[of.a] - truth[of.b]
    held = inside(*of.limits(0.95), true)
    cell.add(pair_label=held[:, :-2], pair_last_label=held[:, -2], pair=held[:, -1])
    all_of = family(of, -1, len(truth))
    if np.isnan(all_of.low).any():
        return
    rank = (-truth[:, -1]).argsort().argsort() + 1
    cell.add(
        at_once=bool(inside(all_of.low, all_of.high, true[:, -1]).all()),
        wrong_way=bool((all_of.differs & (of.difference[:, -1] * true[:, -1] < 0)).any()),
        power=all_of.differs,
        ranks=bool(((all_of.rank_low <= rank) & (rank <= all_of.rank_high)).all()),
        set_size=all_of.may_be_best.sum(),
        best_kept=bool(all_of.may_be_best[truth[:, -1].argmax()]),
    )
    mean = Differences(of.a, of.b, *(values[..., -1] for values in of[2:]))
    needs = settle(mean, len(evidence.units))
    cell.add(could_see=needs.could_see, units_low=needs.units_low, units_high=needs.units_high)
    cell.add(difference=mean.difference, by_seeds=mean.by_seeds)


def false_alarm(evidence: Evidence) -> float:
    """1 if any two encoders, equal in truth, are told apart; NaN if the study can say nothing."""
    figures = linearise(evidence)
    of = differences(figures, *all_pairs(np.arange(len(evidence.encoders))))
    all_of = family(of, -1, len(evidence.encoders))
    return float("nan") if np.isnan(all_of.low).any() else float(all_of.differs.any())


def settled(cell: Cell, units: int, truth: Floats, world: World) -> dict[str, float]:
    """What would settle it, against what the spread of differences over studies says.

    could_see_low, could_see_high: 10 and 90 % of the ratio to the true smallest difference. units_held: how often the
    range holds the true number, over the pairs that need more units than there are and that some number would part.
    """
    a, b = all_pairs(np.arange(len(truth)))
    true = np.abs(truth[a, -1] - truth[b, -1])
    variance = np.stack(cell.seen["difference"]).var(axis=0, ddof=1)
    seen = np.sqrt(variance) * (stdtrit(units - 1, 0.975) + stdtrit(units - 1, 0.8))
    ratio = np.stack(cell.seen["could_see"]) / seen
    seeds = np.minimum(np.stack(cell.seen["by_seeds"]).mean(axis=0), variance)
    freedom = np.full(len(a), 2.0 * (world.seeds - 1))
    needed = units_needed(true, variance - seeds, seeds, freedom, units)
    some = np.isfinite(needed) & (needed > units)
    held = (np.stack(cell.seen["units_low"]) <= needed) & (needed <= np.stack(cell.seen["units_high"]))
    low, high = np.quantile(ratio, (0.1, 0.9))
    return {
        "could_see_low": low,
        "could_see_high": high,
        "units_held": float(held[:, some].mean()) if some.any() else np.nan,
    }


COLUMNS = (
    "label", "last_label", "last_label_few", "mean", "pair_label", "pair_last_label", "pair", "at_once", "ranks",
    "family_error", "wrong_way", "power", "set_size", "best_kept", "could_see_low", "could_see_high", "units_held",
    "said", "few",
)  # fmt: skip
COVERAGE = COLUMNS[:7]
TARGET = (0.93, 0.97)
FAMILY_ERROR = 0.05
DRAW = 3
"""Number of the set of random numbers: a new one after each change that the last one led to."""


def simulate(name: str, units: int, studies: int, encoders: int) -> dict[str, float]:
    """Return the figures of one world and number of units, by `COLUMNS`."""
    world, cell = WORLDS[name], Cell()
    rng = np.random.Generator(np.random.Philox(key=random_key("coverage", DRAW, name, units)))
    quality = levels(world, encoders, equal=False)
    truth = known_truth(name, encoders)
    equal = levels(world, encoders, equal=True)
    for _ in range(studies):
        look(cell, draw(rng, world, quality, units).evidence(), truth)
        cell.add(family_error=false_alarm(draw(rng, world, equal, units).evidence()))
    figures = {column: cell.mean(column) for column in COLUMNS if column in cell.seen}
    figures["few"] = len(cell.seen["last_label_few"]) / studies
    figures["said"] = len(cell.seen["power"]) / studies
    return figures | settled(cell, units, truth, world)


def misses(rows: dict[str, dict[str, float]], studies: int) -> dict[str, bool]:
    """Return the figures outside the targets, each with whether it is so by more than the simulation's own error."""
    slack, found = 2 * np.sqrt(0.05 * 0.95 / studies), {}
    for cell, figures in rows.items():
        for column in (*COVERAGE, "family_error"):
            if column == "last_label_few" and figures["few"] < 0.2:
                continue
            low, high = (0.0, FAMILY_ERROR) if column == "family_error" else TARGET
            value = figures.get(column, float("nan"))
            if value < low or value > high:
                found[f"{cell}: {column} {value:.3f}"] = bool(value < low - slack or value > high + slack)
    return found


def main() -> None:
    """Print a row a world and number of units, then a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 studies a cell, 10 and 20 units")
    parser.add_argument("--studies", type=int, default=0, help="studies a cell (default: 600)")
    parser.add_argument("--encoders", type=int, default=8)
    parser.add_argument("--world", action="append", choices=WORLDS, help="only this world; may be repeated")
    flags = parser.parse_args()
    studies = flags.studies or (60 if flags.quick else 600)
    start, rows = time.monotonic(), {}
    print(f"{'world, units':18s}", *COLUMNS)
    for name in flags.world or WORLDS:
        for units in (10, 20) if flags.quick else (10, 20, 40):
            figures = rows[f"{name}, {units}"] = simulate(name, units, studies, flags.encoders)
            print(
                f"{name + ', ' + str(units):18s}",
                *(f"{figures.get(column, np.nan):{len(column)}.3f}" for column in COLUMNS),
            )
            sys.stdout.flush()
    print(f"{studies} studies of each kind a cell, {flags.encoders} encoders, {time.monotonic() - start:.0f} s")
    missed = misses(rows, studies)
    for miss, surely in missed.items():
        print("outside:" if surely else "outside, within the error of the simulation:", miss)
    said = {
        column: [one[column] for one in rows.values() if not np.isnan(one.get(column, np.nan))] for column in COLUMNS
    }
    spans = {column: [round(min(values), 3), round(max(values), 3)] for column, values in said.items() if values}
    print(
        json.dumps(
            {"studies": studies, "cells": len(rows), "outside": len(missed), "surely": sum(missed.values()), **spans}
        )
    )


if __name__ == "__main__":
    main()
