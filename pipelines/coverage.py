"""Do the intervals of `fmcache.statistics` contain the truth? Tested on simulated studies whose truth is known.

    python pipelines/coverage.py             about 3 minutes on one core
    python pipelines/coverage.py --quick     about half a minute

A world defines how scores vary. For each label, an encoder's Dice in a tile is the logistic function of a sum: the
quality of the encoder, the effect of the tile on all encoders, its effect on this encoder, the effect of the seed, and
the interaction of seed and tile. Counts are drawn, pooled and passed to the functions that the report uses. The truth
is the value for infinitely many tiles and seeds.

The script prints for each world and number of test units: the coverage of each interval; the family-wise error among
encoders that are truly equal; for unequal encoders, the power and the size of the set of encoders that may be best. The
last line is JSON with the extremes over all worlds and the number of cells outside the targets.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri, stdtrit

from fmcache.identity import random_key
from fmcache.statistics.evidence import Evidence, from_counts
from fmcache.statistics.family import family
from fmcache.statistics.intervals import intervals
from fmcache.statistics.leave_out import linearise
from fmcache.statistics.pairs import Differences, all_pairs, differences
from fmcache.statistics.settle import settle, units_needed

Floats = npt.NDArray[np.float64]
LABELS = ("other", "tumour", "stroma")
PIXELS = 512 * 512


@dataclass(frozen=True)
class World:
    """Standard deviations on the logit scale; `rare`: the share of tiles that contain the last label."""

    tile: float = 0.6
    tile_encoder: float = 0.25
    seed: float = 0.12
    seed_tile: float = 0.15
    rare: float = 1.0
    sizes: float = 0.5
    """Standard deviation of the logarithm of a label's pixels in a tile."""
    grouped: bool = False
    level: tuple[float, float] = (0.60, 0.80)
    """True Dice of a typical tile: of the worst encoder and of the best encoder."""
    collapse: float = 0.0
    heavy: bool = False
    seeds: int = 10
    folds: int = 0
    fold: float = 0.0
    """Effect of a fold's training tiles on an encoder; it is the same for all seeds."""


WORLDS = {
    "moderate": World(),
    "tiles": World(tile=1.2, tile_encoder=0.5),
    "seeds": World(seed=0.5, seed_tile=0.3),
    "rare": World(rare=0.4, sizes=1.2),
    "groups": World(grouped=True),
    "ceiling": World(level=(0.94, 0.97)),
    "collapse": World(collapse=0.1),
    "heavy": World(heavy=True),
    "all at once": World(tile=0.9, seed=0.4, rare=0.6, sizes=1.0, grouped=True, collapse=0.1, heavy=True),
    "three seeds": World(seed=0.3, seed_tile=0.3, seeds=3),
    "folds": World(folds=5, fold=0.25),
}


@dataclass(frozen=True)
class Study:
    """Counts by encoder (seed, tile, label, 3); the test unit and the fold of each tile."""

    counts: dict[str, npt.NDArray[np.int64]]
    groups: list[str]
    folds: list[int]

    def evidence(self) -> Evidence:
        """The evidence, as `fmcache.statistics.evidence.evidence_of` makes it from a results table."""
        return from_counts(self.counts, LABELS, self.groups, "pooled", self.folds)


def levels(world: World, encoders: int, equal: bool) -> Floats:
    """Quality of each encoder, (encoder,): logit of the Dice of a typical tile."""
    low, high = world.level
    dice = np.full(encoders, (low + high) / 2) if equal else np.linspace(low, high, encoders)
    return np.asarray(np.log(dice / (1 - dice)))


def normal(rng: np.random.Generator, world: World, *shape: int) -> Floats:
    """Draws of mean 0 and variance 1: normal, or of Student's t with 3 degrees of freedom."""
    if world.heavy:
        return rng.standard_t(3, shape) / np.sqrt(3)
    return rng.standard_normal(shape)


def pixels(rng: np.random.Generator, world: World, tiles: int) -> Floats:
    """Pixels of each label in the truth of tiles, (tile, label)."""
    weight = np.exp(world.sizes * rng.standard_normal((tiles, len(LABELS))))
    weight[:, -1] *= (rng.random(tiles) < world.rare) * (0.5 if world.rare < 1 else 1.0)
    return PIXELS * weight / weight.sum(axis=1, keepdims=True)


def draw(rng: np.random.Generator, world: World, quality: Floats, units: int) -> Study:
    """Draw one study of `units` test units."""
    sizes = rng.integers(1, 7, units) if world.grouped else np.ones(units, int)
    unit = np.repeat(np.arange(units), sizes)
    n, e, labels = len(unit), len(quality), len(LABELS)
    seeds = world.seeds
    folds = np.arange(units)[unit] % world.folds if world.folds else np.zeros(n, int)
    # half of the variance of a tile's effect is shared by its group
    of_tile = world.tile * _in_groups(normal(rng, world, units, labels), normal(rng, world, n, labels), unit, world)
    own = normal(rng, world, units, e, labels), normal(rng, world, n, e, labels)
    of_both = world.tile_encoder * _in_groups(*own, unit, world)
    of_seed = world.seed * rng.standard_normal((e, seeds, 1, labels))
    crossed = world.seed_tile * rng.standard_normal((e, seeds, n, labels))
    x = quality[:, None, None, None] + of_tile[None, None] + of_both.swapaxes(0, 1)[:, None] + of_seed + crossed
    if world.folds:
        x += (world.fold * rng.standard_normal((e, 1, world.folds, labels)))[:, :, folds]
    truth = pixels(rng, world, n)
    dice = expit(x)
    tp, fn = dice * truth, (1 - dice) * truth
    fp = fn + 0.002 * PIXELS
    counts = np.stack([tp, fp, fn], axis=-1)
    gone = rng.random((e, seeds)) < world.collapse
    counts[gone, :, -1, 2] += counts[gone, :, -1, 0]
    counts[gone, :, -1, :2] = 0
    whole = np.rint(counts).astype(np.int64)
    return Study({f"e{i:02d}": whole[i] for i in range(e)}, [f"u{i:03d}" for i in unit], folds.tolist())


def _in_groups(group: Floats, tile: Floats, unit: npt.NDArray[np.int64], world: World) -> Floats:
    return (group[unit] + tile) / np.sqrt(2) if world.grouped else tile


@functools.cache
def known_truth(name: str, encoders: int) -> Floats:
    """True scores of unequal encoders, (encoder, column): for infinitely many tiles and seeds."""
    return truth_of(WORLDS[name], levels(WORLDS[name], encoders, equal=False))


def truth_of(world: World, quality: Floats) -> Floats:
    """True scores, (encoder, column), approximated with 20,000 tiles and seeds at 48 quantiles."""
    rng = np.random.Generator(np.random.Philox(key=random_key("coverage truth", repr(world))))
    held = pixels(rng, world, 20_000)
    tile = world.tile * _mixed(rng, world) + world.tile_encoder * _mixed(rng, world)
    tile += world.seed_tile * rng.standard_normal(tile.shape)
    seed = ndtri((np.arange(48) + 0.5) / 48) * np.hypot(world.seed, world.fold)
    result = np.empty((len(quality), len(LABELS) + 1))
    for i, q in enumerate(quality):
        for label in range(len(LABELS)):
            dice = expit(q + tile[:, label] + seed[:, None])
            tp = dice @ held[:, label]
            result[i, label] = (2 * tp / (2 * held[:, label].sum() + 0.002 * PIXELS * len(held))).mean()
    result[:, len(LABELS) - 1] *= 1 - world.collapse
    result[:, -1] = result[:, :-1].mean(axis=1)
    return result


def _mixed(rng: np.random.Generator, world: World) -> Floats:
    """Effects of 20,000 tiles, drawn as in `draw`."""
    draws = [normal(rng, world, 20_000, len(LABELS)) for _ in range(2 if world.grouped else 1)]
    return np.asarray(sum(draws) / np.sqrt(len(draws)))


class Cell:
    """The findings for one world and number of units: lists of arrays, one array per study."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Floats]] = defaultdict(list)

    def add(self, **values: Floats | float) -> None:
        for name, value in values.items():
            self.seen[name].append(np.asarray(value, float))

    def mean(self, name: str) -> float:
        """Mean over studies, encoders or pairs, without NaN (no interval)."""
        values = np.concatenate([one.ravel() for one in self.seen[name]])
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def inside(low: Floats, high: Floats, truth: Floats) -> Floats:
    """1 where an interval contains the truth, 0 where it does not, NaN where there is no interval."""
    return np.where(np.isnan(low), np.nan, (low <= truth) & (truth <= high))


def look(cell: Cell, evidence: Evidence, truth: Floats) -> None:
    """Add the findings of a study of unequal encoders to a cell."""
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
    """1 if the study declares any two truly equal encoders different; NaN if it has no intervals."""
    figures = linearise(evidence)
    of = differences(figures, *all_pairs(np.arange(len(evidence.encoders))))
    all_of = family(of, -1, len(evidence.encoders))
    return float("nan") if np.isnan(all_of.low).any() else float(all_of.differs.any())


def settled(cell: Cell, units: int, truth: Floats, world: World) -> dict[str, float]:
    """Compare the estimates of `settle` with the true values, which come from the spread over studies.

    could_see_low, could_see_high: 10 and 90 % quantiles of the estimated smallest detectable difference, divided by the
    true one. units_held: how often the range of units contains the true number, over the pairs that need more units
    than the study has and that a finite number of units can distinguish.
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


def simulate(name: str, units: int, studies: int, encoders: int) -> dict[str, float]:
    """Return the figures of one world and number of units, by `COLUMNS`."""
    world, cell = WORLDS[name], Cell()
    rng = np.random.Generator(np.random.Philox(key=random_key("coverage", name, units)))
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
    """Return the figures outside the targets, and whether each miss exceeds the simulation's error."""
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
    """Print a row for each world and number of units, then a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 studies per cell, only 10 and 20 units")
    parser.add_argument("--studies", type=int, default=0, help="studies per cell (default: 600)")
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
    print(f"{studies} studies of each kind per cell, {flags.encoders} encoders, {time.monotonic() - start:.0f} s")
    missed = misses(rows, studies)
    for miss, surely in missed.items():
        print("outside the target:" if surely else "outside the target, but within the error of the simulation:", miss)
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
