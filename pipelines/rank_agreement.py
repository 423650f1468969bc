"""Does the interval of rank agreement hold the truth? Pairs of studies with known truth through the report's functions.

    python pipelines/rank_agreement.py             about 14 minutes beside other work
    python pipelines/rank_agreement.py --quick     about 3 minutes

Two studies of the same encoders are drawn (`worlds.py`, world `tiles`) whose true qualities have a given correlation;
or one study, and published means and deviations over ten seeds (`paper`); or two studies of encoders that are good or
poor on both sides, with little between (`clusters`), which the model does not assume. The truth is Kendall's tau of
these same encoders with endless tiles and seeds. Printed, in a cell: how often the limits held it, and their mean
width. Beside the limits of `fmcache.statistics.agreement` stand those of three simpler methods: draws around the
observed scores, the bootstrap over encoders, and the jackknife over encoders on Fisher's z with Student's t.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.stats import t
from worlds import WORLDS, draw

from fmcache.identity import random_key
from fmcache.statistics.agreement import Side, agreement, published, side_of

Floats = npt.NDArray[np.float64]
Limits = tuple[float, float]
WORLD = WORLDS["tiles"]
LEVEL, SPREAD = 0.85, 0.2
"""Mean and standard deviation of the true qualities of encoders, on the logit scale."""
DRAWS = 1000


def taus(a: Floats, b: Floats) -> Floats:
    """Kendall's tau-b over the last axis of many pairs of scores; 0 where a side is constant."""
    first, second = np.triu_indices(a.shape[-1], 1)
    x, y = (np.sign(one[..., first] - one[..., second]) for one in (a, b))
    scale = np.sqrt(np.abs(x).sum(axis=-1) * np.abs(y).sum(axis=-1))
    return np.asarray((x * y).sum(axis=-1) / np.maximum(scale, 1))


def limits(a: Side, b: Side, rng: np.random.Generator) -> Iterator[tuple[str, Limits]]:
    """Yield the name and the limits of tau of each method."""
    found = agreement(a, b)
    if found.tau_low is None or found.tau_high is None:
        raise AssertionError(found)
    yield "report", (found.tau_low, found.tau_high)
    names = sorted(a.score)
    x, y = (np.array([side.score[name] for name in names]) for side in (a, b))
    errors = [np.sqrt([side.variance[name] for name in names]) for side in (a, b)]
    noise = rng.standard_normal((DRAWS, 2, len(names)))
    yield "draws", quantiles(taus(x + errors[0] * noise[:, 0], y + errors[1] * noise[:, 1]))
    chosen = rng.integers(0, len(names), (DRAWS, len(names)))
    yield "bootstrap", quantiles(taus(x[chosen], y[chosen]))
    rest = np.array([np.delete(np.arange(len(names)), i) for i in range(len(names))])
    z = fisher(taus(x[rest], y[rest]))
    half = t.ppf(0.975, len(names) - 1) * np.sqrt((len(names) - 1) * z.var())
    centre = fisher(taus(x, y))
    yield "jackknife", (float(np.tanh(centre - half)), float(np.tanh(centre + half)))


def quantiles(values: Floats) -> Limits:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def fisher(x: Floats) -> Floats:
    """Fisher's z, for values that may be -1 or 1."""
    return np.asarray(np.arctanh(np.clip(x, -0.995, 0.995)))


def paper(rng: np.random.Generator, quality: Floats) -> Side:
    """Published means and standard deviations of ten seeds, with the errors of a study's seeds."""
    seeds = quality + 0.25 * rng.standard_normal((10, len(quality)))
    mean, std = ({f"e{i:02d}": float(x) for i, x in enumerate(of)} for of in (seeds.mean(0), seeds.std(0, ddof=1)))
    return published(mean, std, 10)


def simulate(encoders: int, units: int, correlation: float, other: str, studies: int) -> dict[str, tuple[float, float]]:
    """Return coverage and mean width of each method; `other` is ``study``, ``paper`` or ``clusters``."""
    rng = np.random.Generator(
        np.random.Philox(key=random_key("rank agreement", encoders, units, str(correlation), other))
    )
    seen: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for _ in range(studies):
        z = rng.standard_normal((2, encoders))
        z[1] = correlation * z[0] + np.sqrt(1 - correlation**2) * z[1]
        if other == "clusters":
            z = 0.2 * z + rng.choice((-1.0, 1.0), encoders)
        first, second = LEVEL + SPREAD * z
        true = float(taus(first, second))
        a = side_of(draw(rng, WORLD, first, units).evidence())
        b = paper(rng, second) if other == "paper" else side_of(draw(rng, WORLD, second, units).evidence())
        for name, (low, high) in limits(a, b, rng):
            seen[name].append((low - 0.01 <= true <= high + 0.01, high - low))
    return {name: (float(np.mean([x[0] for x in of])), float(np.mean([x[1] for x in of]))) for name, of in seen.items()}


def main() -> None:
    """Print a row for each number of encoders and of test units, correlation and other side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 studies a cell")
    parser.add_argument("--studies", type=int, default=0, help="studies a cell (default: 100)")
    flags = parser.parse_args()
    studies, start = flags.studies or (20 if flags.quick else 100), time.monotonic()
    for other, all_units in (("study", (10, 20, 40)), ("paper", (10,)), ("clusters", (10, 40))):
        for encoders in (8, 15) if other == "clusters" else (5, 8, 15):
            for units in all_units:
                for correlation in (0.0, 0.7, 1.0):
                    found = simulate(encoders, units, correlation, other, studies)
                    cells = "  ".join(f"{name} {held:.3f} ({wide:.2f})" for name, (held, wide) in found.items())
                    print(f"{other}, E = {encoders}, T = {units}, correlation {correlation}: {cells}", flush=True)
    print(f"{studies} pairs a cell, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
