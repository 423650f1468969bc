"""Splits that can be defended: balanced by label share, patients or slides never parted, the same every time.

All three kinds take the best of many random choices, drawn from a generator of their own: one fixed split, folds that
rotate, and the nested subsets of a learning curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.errors import SpecError
from fmcache.identity import random_key
from fmcache.manifest import SPLITS

TRIES = 2000
MISSING_LABEL = 1.0  # as bad as being 100 % off: no split should lack a label that could hold it


Members = tuple[tuple[int, ...], ...]
"""Positions of tiles, by part."""


class Split(NamedTuple):
    """Positions of tiles in train, val and test; `off` is the largest difference of a label's share from all tiles'."""

    members: Members
    off: float


def balanced_split(
    ids: Sequence[str], groups: Sequence[str], pixels: npt.NDArray[np.int64], sizes: Sequence[int], seed: int
) -> Split:
    """Return the best of many random splits, each of whole groups.

    Parameters
    ----------
    ids, groups
        Of each tile; an empty group is a group of its own.
    pixels
        (tile, label): pixels of each label.
    sizes
        Number of tiles to train, validate and test on; tiles beyond them stay in no split.

    Raises
    ------
    SpecError
        When there are too few tiles, or no choice of whole groups gives these sizes.
    """
    if sum(sizes) > len(ids):
        shares = [max(1, round(len(ids) * n / sum(sizes))) for n in sizes]
        shares[0] += len(ids) - sum(shares)
        raise SpecError(
            f"a split of {'/'.join(map(str, sizes))} needs {sum(sizes)} tiles",
            found=f"{len(ids)} tiles",
            next_step=f"pass --split {'/'.join(map(str, shares))}",
        )
    teams = _teams(ids, groups)
    rng = np.random.Generator(np.random.Philox(key=random_key("split", seed)))
    best: Split | None = None
    for _ in range(TRIES):
        members = _deal([teams[i] for i in rng.permutation(len(teams))], sizes)
        if members and (best is None or (off := _off(members, pixels)) < best.off):
            best = Split(members, _off(members, pixels) if best is None else off)
    if best is None:
        raise SpecError(
            f"no choice of whole groups gives a split of {'/'.join(map(str, sizes))}",
            found=f"groups of {', '.join(str(len(team)) for team in teams)} tiles",
            next_step="choose other sizes with --split",
        )
    return Split(_sorted(best.members, ids), best.off)


def rotating_folds(
    ids: Sequence[str], groups: Sequence[str], pixels: npt.NDArray[np.int64], folds: int, seed: int
) -> list[Split]:
    """Return k folds over all tiles; arguments as of `balanced_split`.

    The tiles are cut into k parts of whole groups, near equal in size and balanced. Fold i tests on part i, validates
    on part i + 1 (the last fold on the first part) and trains on the rest: over the folds each group is in test exactly
    once and in validation exactly once.

    Raises
    ------
    SpecError
        When k is below 3, or there are fewer groups than folds.
    """
    teams = _teams(ids, groups)
    if not 3 <= folds <= len(teams):
        raise SpecError(
            f"{folds} folds cannot be made",
            expected=f"3 to {len(teams)} folds: test, validation and training need a part each, a part a group",
            found=f"{len(teams)} groups of tiles",
            next_step="choose another number with --folds",
        )
    rng = np.random.Generator(np.random.Philox(key=random_key("folds", seed, folds)))

    def unfair(parts: Members) -> float:
        sizes = [len(part) for part in parts]
        return (max(sizes) - min(sizes)) * folds / len(ids) + _off(parts, pixels)

    tries = (_spread([teams[i] for i in rng.permutation(len(teams))], folds) for _ in range(TRIES))
    parts = min(tries, key=unfair)
    found = []
    for i in range(folds):
        val = (i + 1) % folds
        train = tuple(at for j, part in enumerate(parts) for at in part if j not in (i, val))
        members = _sorted((train, parts[val], parts[i]), ids)
        found.append(Split(members, _off(members, pixels)))
    return found


def nested_subsets(
    ids: Sequence[str], train: Sequence[int], pixels: npt.NDArray[np.int64], sizes: Sequence[int], seed: int
) -> Members:
    """Return balanced subsets of the training tiles at positions `train`, each inside the next, in order of size.

    Groups may be parted here: all of a subset trains, so nothing leaks; a small subset may see few patients.

    Raises
    ------
    SpecError
        When a size is no number of training tiles, or is asked for twice.
    """
    if len(set(sizes)) < len(sizes) or not all(0 < size <= len(train) for size in sizes):
        raise SpecError(
            f"subsets of {', '.join(map(str, sizes))} training tiles cannot be made",
            expected=f"different numbers from 1 to {len(train)}, as many as the split trains on",
            next_step="choose others with --subsets",
        )
    order = sorted(train, key=lambda i: ids[i])
    rng = np.random.Generator(np.random.Philox(key=random_key("subsets", seed)))
    orders = ([order[i] for i in rng.permutation(len(order))] for _ in range(TRIES))
    tries = (tuple(tuple(shuffled[:size]) for size in sorted(sizes)) for shuffled in orders)
    return _sorted(min(tries, key=lambda members: _off(members, pixels)), ids)


def deviations(members: Members, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return how far each label's share in each part is off its share in all tiles: (part, label), shares of 1."""
    counts = np.stack([pixels[list(part)].sum(axis=0) for part in members])
    whole = pixels.sum(axis=0) / max(pixels.sum(), 1)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) - whole)


def _teams(ids: Sequence[str], groups: Sequence[str]) -> list[list[int]]:
    """Positions of the tiles of each group, whatever order the tiles are listed in."""
    teams: dict[str, list[int]] = {}
    for i in sorted(range(len(ids)), key=lambda i: ids[i]):
        teams.setdefault(groups[i] or f"\0{ids[i]}", []).append(i)
    return list(teams.values())


def _sorted(members: Members, ids: Sequence[str]) -> Members:
    return tuple(tuple(sorted(part, key=lambda i: ids[i])) for part in members)


def _spread(teams: list[list[int]], n_parts: int) -> Members:
    """Put each team into the part that is smallest so far."""
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    for team in teams:
        min(parts, key=len).extend(team)
    return tuple(tuple(part) for part in parts)


def _deal(teams: list[list[int]], sizes: Sequence[int]) -> Members | None:
    """Put each team into the first split it fits into whole; None when a split stays short."""
    parts: list[list[int]] = [[] for _ in SPLITS]
    for team in teams:
        for part, size in zip(parts, sizes, strict=True):
            if len(part) + len(team) <= size:
                part += team
                break
    full = all(len(part) == size for part, size in zip(parts, sizes, strict=True))
    return tuple(tuple(part) for part in parts) if full else None


def _off(members: Members, pixels: npt.NDArray[np.int64]) -> float:
    off = deviations(members, pixels)
    whole = pixels.sum(axis=0) / max(pixels.sum(), 1)
    lacking = ((off == -whole) & (whole > 0)).any(axis=1)
    return float((np.abs(off).max(axis=1) + MISSING_LABEL * lacking).max())
