"""Could the calibration error have intervals as Dice has? Studies whose calibration is known, three kinds of limits.

    python pipelines/calibration_coverage.py             about 15 s

The report shows no interval of the expected calibration error, because of what this script prints: for each world and
number of test tiles the true error (endless tiles, mean over seeds), the mean error that a study computes, and how
often 95 % limits hold the true one. Limits: by the method of Dice (jackknife of the logit over tiles, plus seeds), the
same without the logit, and that around the error from which the jackknife subtracts its bias.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from fmcache.identity import random_key
from fmcache.scores.calibration import BINS, MILLION, calibration_error
from fmcache.statistics.intervals import LEVEL, expit, logit
from fmcache.statistics.student import quantile

Floats = npt.NDArray[np.float64]
SEEDS, TILES = 10, (10, 20, 40)
PIXELS = 512 * 512
CONFIDENCE = np.clip((np.arange(BINS) + 0.5) / BINS, 1 / 3, 0.97)
SHARE = np.where((np.arange(BINS) + 0.5) / BINS > 1 / 3, np.exp(6 * (np.arange(BINS) + 0.5) / BINS), 0.0)
SHARE /= SHARE.sum()
"""Pixels of each bin: three labels, most pixels are confident."""


@dataclass(frozen=True)
class World:
    """Too much confidence, and standard deviations of accuracy by tile and by seed; all on the logit scale."""

    too_sure: float
    tile: float = 0.4
    seed: float = 0.1
    seed_tile: float = 0.1


WORLDS = {
    "too sure": World(0.8),
    "slightly too sure": World(0.3),
    "right": World(0.0),
    "right, tiles differ": World(0.0, tile=0.8),
    "slightly too sure, tiles differ": World(0.3, tile=0.8),
    "slightly too sure, seeds differ": World(0.3, seed=0.4, seed_tile=0.2),
    "little varies": World(0.1, tile=0.1),
}


def draw(rng: np.random.Generator, world: World, tiles: int) -> npt.NDArray[np.int64]:
    """Return the counts of a study as runs keep them: (seed, tile, bin, 3)."""
    spread = 0.6 * rng.standard_normal((1, tiles, BINS)) + 0.15 * rng.standard_normal((SEEDS, tiles, BINS))
    pixels = np.rint(PIXELS * SHARE * np.exp(spread))
    x = logit(CONFIDENCE) - world.too_sure + world.tile * rng.standard_normal((1, tiles, 1))
    x = x + world.seed * rng.standard_normal((SEEDS, 1, 1)) + world.seed_tile * rng.standard_normal((SEEDS, tiles, 1))
    return np.stack([pixels, np.rint(pixels * CONFIDENCE * MILLION), np.rint(pixels * expit(x))], axis=-1).astype(int)


def truth_of(name: str) -> float:
    """Return the error of endless tiles, as the mean over seeds (at 40 quantiles)."""
    world, rng = WORLDS[name], np.random.Generator(np.random.Philox(key=random_key("calibration truth", name)))
    of_tile = np.hypot(world.tile, world.seed_tile) * rng.standard_normal((20_000, 1))
    seeds = world.seed * ndtri((np.arange(40) + 0.5) / 40)
    right = [expit(logit(CONFIDENCE) - world.too_sure + seed + of_tile).mean(axis=0) for seed in seeds]
    return float(np.mean([np.abs(SHARE * (one - CONFIDENCE)).sum() for one in right]))


def limits_of(counts: npt.NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Return limits of one study's mean error over seeds, by the name of the method."""
    tiles, sums = counts.shape[1], counts.sum(axis=1, keepdims=True)
    scores, without = calibration_error(sums[:, 0]), calibration_error(sums - counts).mean(axis=0)
    mean, by_seeds = scores.mean(), scores.var(ddof=1) / len(scores)
    left, slope = logit(without), 1 / (mean * (1 - mean))
    t = quantile((1 + LEVEL) / 2, np.asarray(tiles - 1.0))
    on_logit = t * np.sqrt((tiles - 1) * left.var() + by_seeds * slope**2)
    plain = t * np.sqrt((tiles - 1) * without.var() + by_seeds)
    corrected = tiles * mean - (tiles - 1) * without.mean()
    return {
        "as Dice": (float(expit(logit(mean) - on_logit)), float(expit(logit(mean) + on_logit))),
        "plain": (mean - plain, mean + plain),
        "less bias": (corrected - plain, corrected + plain),
    }


def simulate(name: str, tiles: int, studies: int) -> dict[str, float]:
    """Return the true error of a world, the mean error of its studies, and the coverage of each kind of limits."""
    rng = np.random.Generator(np.random.Philox(key=random_key("calibration coverage", name, tiles)))
    truth, errors, held = truth_of(name), [], []
    for _ in range(studies):
        counts = draw(rng, WORLDS[name], tiles)
        errors.append(calibration_error(counts.sum(axis=1)).mean())
        held.append({method: low <= truth <= high for method, (low, high) in limits_of(counts).items()})
    coverage = {method: float(np.mean([one[method] for one in held])) for method in held[0]}
    return {"truth": truth, "computed": float(np.mean(errors))} | coverage


def main() -> None:
    """Print a row a world and number of tiles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="studies a row")
    studies = parser.parse_args().studies
    for name in WORLDS:
        for tiles in TILES:
            found = simulate(name, tiles, studies)
            print(f"{name + ', ' + str(tiles):36s}", *(f"{what} {value:.3f}" for what, value in found.items()))


if __name__ == "__main__":
    main()
