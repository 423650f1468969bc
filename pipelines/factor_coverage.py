"""Are the variance components of `fmcache.statistics.factors` unbiased, and do their limits hold the truth?

    python pipelines/factor_coverage.py              # about a minute of one core
    python pipelines/factor_coverage.py --studies 50

Studies of 5 encoders, 3 decoders and 2 budgets are drawn from known components (standard deviations in points of Dice)
and given to the functions that the report uses. Printed for each size of study and each component: its truth, the mean
of its estimates, and how often the 95 % limits hold the truth.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt

from fmcache.identity import random_key
from fmcache.statistics.factors import SEEDS, UNITS, variances

Floats = npt.NDArray[np.float64]
NAMES = ("encoder", "decoder", "budget")
LEVELS = (5, 3, 2)
SIZES = ((3, 10), (5, 10), (10, 10), (10, 20))
"""(seeds, test units) of the studies."""


class World:
    """The fixed effects are drawn once; seeds and test units are drawn again for each study."""

    def __init__(self, interaction: float = 1.0) -> None:
        rng = np.random.default_rng(5)
        self.encoder = 5.0 * _centred(rng, LEVELS[0])
        self.decoder = 2.0 * _centred(rng, LEVELS[1])
        self.mixed = interaction * _centred(rng, *LEVELS[:2])
        self.seed, self.unit, self.unit_encoder, self.rest = 2.0, 8.0, 3.0, 4.0

    def truth(self, n_units: int) -> dict[str, float]:
        """Return the component of each source in a study of `n_units` test units."""
        fixed = {"encoder": self.encoder, "decoder": self.decoder, "encoder x decoder": self.mixed}
        of_fixed = {name: _spread(values) for name, values in fixed.items()}
        nothing = dict.fromkeys(("budget", "encoder x budget", "decoder x budget", "encoder x decoder x budget"), 0.0)
        return of_fixed | nothing | {SEEDS: self.seed**2, UNITS: self.unit**2 / n_units}

    def agreement(self) -> float:
        """Return the share of what concerns encoders that is the same under all decoders and budgets."""
        truth = self.truth(1)
        return truth["encoder"] / (truth["encoder"] + truth["encoder x decoder"])

    def study(self, rng: np.random.Generator, n_seeds: int, n_units: int) -> Floats:
        """Return pseudo-values (encoder, decoder, budget, seed, unit)."""
        fixed = (self.encoder[:, None] + self.decoder + self.mixed)[..., None, None, None]
        seeds = rng.normal(0, self.seed, (*LEVELS, n_seeds, 1))
        units = rng.normal(0, self.unit, n_units) + rng.normal(0, self.unit_encoder, (LEVELS[0], 1, 1, 1, n_units))
        values = fixed + seeds + units
        return np.asarray(values + rng.normal(0, self.rest, values.shape))


def cover(world: World, n_seeds: int, n_units: int, studies: int) -> dict[str, tuple[float, float, float]]:
    """Return (truth, mean estimate, coverage) of each source and of the agreement."""
    rng = np.random.default_rng(random_key("factors", n_seeds, n_units))
    found = [variances(world.study(rng, n_seeds, n_units), NAMES) for _ in range(studies)]
    result = {}
    for source, truth in world.truth(n_units).items():
        at = found[0].sources.index(source)
        inside = [one.low[at] <= truth <= one.high[at] for one in found]
        result[source] = (truth, float(np.mean([one.variance[at] for one in found])), float(np.mean(inside)))
    truth = world.agreement()
    inside = [low <= truth <= high for _, low, high in (one.agreement for one in found)]
    return result | {"agreement": (truth, float(np.mean([one.agreement[0] for one in found])), float(np.mean(inside)))}


def main() -> None:
    """Print one table for each size of study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=400, help="studies of each size")
    for n_seeds, n_units in SIZES:
        print(f"{n_seeds} seeds, {n_units} test units")
        for source, (truth, mean, coverage) in cover(World(), n_seeds, n_units, parser.parse_args().studies).items():
            print(f"  {source:28} truth {truth:7.3f}  mean {mean:7.3f}  coverage {coverage:.3f}", flush=True)


def _centred(rng: np.random.Generator, *shape: int) -> Floats:
    values: Any = rng.normal(size=shape)
    for axis in range(len(shape)):
        values = values - values.mean(axis=axis, keepdims=True)
    return np.asarray(values)


def _spread(values: Floats) -> float:
    """Return the sum of squares of an effect over its degrees of freedom."""
    return float(np.square(values).sum() / np.prod([n - 1 for n in values.shape]))


if __name__ == "__main__":
    main()
