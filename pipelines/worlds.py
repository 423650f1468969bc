"""Studies with known truth: how scores vary in a world, studies drawn from it, and its figures of endless tiles.

A world says how scores vary: an encoder's Dice in a tile is the logistic function of its quality plus what the tile
does to all encoders, what it does to this one, what the seed does, and what seed and tile do together, for each label.
Used by `coverage.py` and `rank_agreement.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from fmcache.identity import random_key
from fmcache.statistics.evidence import Evidence, Score, from_counts

Floats = npt.NDArray[np.float64]
LABELS = ("background", "tumour", "stroma", "vessel", "necrosis")
PIXELS = 512 * 512
TOO_MUCH = 0.002 * PIXELS
"""Pixels of a tile that are wrongly predicted as a label, beside those that make up for what is missed."""


@dataclass(frozen=True)
class World:
    """Standard deviations on the logit scale; `rare`: the share of tiles that hold the last label."""

    tile: float = 0.6
    tile_encoder: float = 0.25
    seed: float = 0.12
    seed_tile: float = 0.15
    rare: float = 1.0
    sizes: float = 0.5
    """Spread of the logarithm of a label's pixels in a tile."""
    grouped: bool = False
    level: tuple[float, float] = (0.60, 0.80)
    """True Dice of a typical tile, of the worst and the best encoder."""
    collapse: float = 0.0
    heavy: bool = False
    seeds: int = 10
    folds: int = 0
    fold: float = 0.0
    """What a fold's training tiles do to an encoder, all seeds alike."""
    labels: int = 3
    score: Score = "pooled"


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
    "five labels": World(labels=5),
    "five, rare": World(labels=5, rare=0.4, sizes=1.2),
    "per tile": World(score="per_tile"),
    "per tile, rare": World(score="per_tile", rare=0.4, sizes=1.2),
    "puma": World(score="puma"),
    "puma, rare": World(score="puma", rare=0.4, sizes=1.2),
    "iou": World(score="iou"),
    "iou, rare": World(score="iou", rare=0.4, sizes=1.2),
    "precision": World(score="precision"),
    "recall": World(score="recall"),
}


@dataclass(frozen=True)
class Study:
    """Counts by encoder (seed, tile, label, 3), the unit and the fold of each tile."""

    counts: dict[str, npt.NDArray[np.int64]]
    groups: list[str]
    folds: list[int]
    world: World

    def evidence(self) -> Evidence:
        """The same as what `fmcache.statistics.evidence.evidence_of` makes of a results table."""
        return from_counts(self.counts, LABELS[: self.world.labels], self.groups, self.world.score, self.folds)


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
    weight = np.exp(world.sizes * rng.standard_normal((tiles, world.labels)))
    weight[:, -1] *= (rng.random(tiles) < world.rare) * (0.5 if world.rare < 1 else 1.0)
    return PIXELS * weight / weight.sum(axis=1, keepdims=True)


def draw(rng: np.random.Generator, world: World, quality: Floats, units: int) -> Study:
    """Draw one study of `units` test units."""
    sizes = rng.integers(1, 7, units) if world.grouped else np.ones(units, int)
    unit = np.repeat(np.arange(units), sizes)
    n, e, labels = len(unit), len(quality), world.labels
    seeds = world.seeds
    folds = np.arange(units)[unit] % world.folds if world.folds else np.zeros(n, int)
    # half of what a tile does belongs to its group
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
    fp = fn + TOO_MUCH
    counts = np.stack([tp, fp, fn], axis=-1)
    gone = rng.random((e, seeds)) < world.collapse
    counts[gone, :, -1, 2] += counts[gone, :, -1, 0]
    counts[gone, :, -1, :2] = 0
    whole = np.rint(counts).astype(np.int64)
    return Study({f"e{i:02d}": whole[i] for i in range(e)}, [f"u{i:03d}" for i in unit], folds.tolist(), world)


def _in_groups(group: Floats, tile: Floats, unit: npt.NDArray[np.int64], world: World) -> Floats:
    return (group[unit] + tile) / np.sqrt(2) if world.grouped else tile


@functools.cache
def known_truth(name: str, encoders: int) -> Floats:
    """The figures of endless tiles and seeds of unequal encoders, (encoder, column)."""
    return truth_of(WORLDS[name], levels(WORLDS[name], encoders, equal=False))


def truth_of(world: World, quality: Floats) -> Floats:
    """The figures of endless tiles and seeds, (encoder, column); seeds at 48 quantiles, 20,000 tiles."""
    rng = np.random.Generator(np.random.Philox(key=random_key("coverage truth", repr(world))))
    held = pixels(rng, world, 20_000)
    tile = world.tile * _mixed(rng, world) + world.tile_encoder * _mixed(rng, world)
    tile += world.seed_tile * rng.standard_normal(tile.shape)
    seed = ndtri((np.arange(48) + 0.5) / 48) * np.hypot(world.seed, world.fold)
    result = np.empty((len(quality), world.labels + 1))
    for i, q in enumerate(quality):
        for label in range(world.labels):
            dice = expit(q + tile[:, label] + seed[:, None])
            result[i, label] = _score(dice, held[:, label], world.score)
    result[:, world.labels - 1] *= 1 - world.collapse
    if world.score == "puma":
        result[:, 0] = np.nan  # the background
    result[:, -1] = np.nanmean(result[:, :-1], axis=1)
    return result


def _score(dice: Floats, held: Floats, score: Score) -> float:
    """Mean over seeds of the score of a label, from its Dice (seed, tile) as `draw` uses it and its pixels (tile,)."""
    if score == "per_tile":  # where the truth does not hold the label, it is still predicted: a Dice of 0
        return float((2 * dice * held / (2 * held + TOO_MUCH)).mean())
    tp, all_held = dice @ held, held.sum()
    fn = all_held - tp
    fp = fn + TOO_MUCH * len(held)
    below = {"iou": tp + fp + fn, "precision": tp + fp, "recall": tp + fn}.get(score, tp + (fp + fn) / 2)
    return float((tp / below).mean())


def _mixed(rng: np.random.Generator, world: World) -> Floats:
    """What a tile does, as `draw` makes it, for 20,000 tiles."""
    draws = [normal(rng, world, 20_000, world.labels) for _ in range(2 if world.grouped else 1)]
    return np.asarray(sum(draws) / np.sqrt(len(draws)))
