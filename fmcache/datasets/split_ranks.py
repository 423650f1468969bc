"""Rank splits: first by the labels that their parts lack, then by the deviation of label shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fmcache.datasets.deals import Floats, Numbers, Rank
from fmcache.manifest import SPLITS

MANY = 1 << 8  # above any number of labels: one missing in test outweighs all that may be missing in train and val
LACKING = {"train": MANY, "val": 1, "test": MANY**2}

Ranking = Callable[[Floats, Numbers], Rank]


def rank_lacking(lacks: npt.NDArray[np.bool_]) -> Numbers:
    """Return numbers that rank deals by the labels missing in test, then in train, then in val: (deal,).

    lacks: (deal, split, label), only for labels that occur in some tile.
    """
    ranked: Numbers = lacks.sum(axis=-1) @ np.array([LACKING[part] for part in SPLITS])
    return ranked


def rank_of_splits(pixels: npt.NDArray[np.int64]) -> Ranking:
    """Rank fixed splits: parts are train, val, test and the remaining tiles.

    pixels: (tile, label), of all tiles; the same in all functions of this module.
    """

    def rank(sums: Floats, _: Numbers) -> Rank:
        parts = sums[:, : len(SPLITS)]
        lacking = rank_lacking(parts[..., pixels.sum(axis=0) > 0] == 0)
        return Rank(lacking, np.abs(deviations_of(parts, pixels)).max(axis=(1, 2)))

    return rank


def rank_of_folds(pixels: npt.NDArray[np.int64], folds: int) -> Ranking:
    """Rank cyclic parts of rotating folds: fold i tests on part i, validates on part i + 1 and trains on the rest.

    Differences in size between the parts are added to the deviation.
    """

    def rank(sums: Floats, tiles: Numbers) -> Rank:
        train = sums.sum(axis=1, keepdims=True) - sums - np.roll(sums, -1, axis=1)
        lacking = [_lacking(parts, pixels).sum(axis=1) for parts in (sums, train)]
        off = np.maximum(*(np.abs(deviations_of(parts, pixels)).max(axis=(1, 2)) for parts in (sums, train)))
        uneven = (tiles.max(axis=1) - tiles.min(axis=1)) * folds / tiles.sum(axis=1)
        return Rank(lacking[0] * MANY**2 + lacking[1], off + uneven)

    return rank


def rank_of_subsets(pixels: npt.NDArray[np.int64]) -> Ranking:
    """Rank nested subsets: parts are the smallest subset, the tiles that each next subset adds, and the rest."""

    def rank(sums: Floats, _: Numbers) -> Rank:
        subsets = sums[:, :-1].cumsum(axis=1)
        return Rank(_lacking(subsets, pixels).sum(axis=1), np.abs(deviations_of(subsets, pixels)).max(axis=(1, 2)))

    return rank


def _lacking(sums: Floats, pixels: npt.NDArray[np.int64]) -> Numbers:
    """Return how many of the occurring labels each part lacks: (deal, part), from pixels (deal, part, label)."""
    return np.asarray((sums[..., pixels.sum(axis=0) > 0] == 0).sum(axis=-1))


def deviations_of(sums: Floats, pixels: npt.NDArray[np.int64]) -> Floats:
    """Return each label's share minus its share in all tiles, from pixels (..., part, label), as fractions of 1."""
    whole = pixels.sum(axis=0) / max(pixels.sum(), 1)
    return np.asarray(sums / np.maximum(sums.sum(axis=-1, keepdims=True), 1) - whole)
