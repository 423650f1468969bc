"""Balanced splits: label shares are similar, each patient or slide stays in one split, and the result is reproducible.

There are three kinds: one fixed split, rotating folds, and the nested subsets of a learning curve. All three rank the
possible choices, first by the labels that parts lack, then by the largest deviation of a label's share. They take the
best choice that `fmcache.datasets.deals` finds. Each kind has its own random generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.datasets.deals import DealRequest, Floats, Numbers, best_deal, sizes_drawn
from fmcache.datasets.split_ranks import deviations_of, rank_of_folds, rank_of_splits, rank_of_subsets
from fmcache.datasets.split_sizes import USUAL, nearest_sizes, scaled, shown
from fmcache.errors import SpecError
from fmcache.identity import random_key
from fmcache.manifest import SPLITS

Members = tuple[tuple[int, ...], ...]
"""Positions of tiles in each part."""


class BalancedSplit(NamedTuple):
    """Positions of tiles in train, val and test.

    `off` is the largest difference between a label's share in one split and its share in all tiles.
    """

    members: Members
    off: float


def balanced_split(
    ids: Sequence[str],
    groups: Sequence[str],
    pixels: npt.NDArray[np.int64],
    sizes: Sequence[int] | None,
    seed: int,
    way: str = "pass --split {}",
) -> BalancedSplit:
    """Return a split of whole groups that lacks as few labels as possible: first in test, then in train, then in val.

    Among splits that lack equally few labels, it is the one whose label shares are nearest to those of all tiles. The
    search may miss the best split when there are many groups.

    Parameters
    ----------
    ids, groups
        The id and the group of each tile. A tile with an empty group is a group by itself.
    pixels
        (tile, label): pixels of each label.
    sizes
        Number of tiles to train, validate and test on. Remaining tiles are in no split. None means 15/5/10, scaled
        down to fewer tiles, or to the nearest sizes that whole groups give.
    way
        How the user can request other sizes; used in the error message.

    Raises
    ------
    SpecError
        When there are fewer than three tiles or groups, too few tiles, or no choice of whole groups has these sizes.
    """
    teams = _teams(ids, groups)
    tiles = np.array([len(team) for team in teams], dtype=np.int64)
    if len(teams) < len(SPLITS):
        raise _too_few(tiles, grouped=any(groups))
    fitting = scaled(sizes or USUAL, min(sum(sizes or USUAL), len(ids)))
    asked = sizes or nearest_sizes(tiles, fitting) or fitting
    task = DealRequest(tiles, _summed(teams, pixels), len(SPLITS) + 1, tuple(asked), rank_of_splits(pixels))
    if sum(asked) > len(ids):
        raise _impossible(task, fitting, way, seed)
    try:
        members = _sorted(_members(teams, best_deal(task, _generator(seed)), len(SPLITS)), ids)
    except LookupError:
        raise _impossible(task, fitting, way, seed) from None
    return BalancedSplit(members, _off(members, pixels))


def _too_few(tiles: Numbers, grouped: bool) -> SpecError:
    if not grouped:
        return SpecError(
            "a split needs 3 tiles or more: at least one each to train, to validate and to test on",
            found=f"{len(tiles)} tiles",
            next_step="add tiles",
        )
    return SpecError(
        "a split of whole patients or slides needs 3 of them or more: one each to train, to validate and to test on",
        found=f"{len(tiles)} of them, with {_listed(tiles)} tiles",
        next_step="add tiles of other patients or slides; or add the tiles without groups, fmcache data add "
        "--groups none (tiles of one patient are then in several splits, and test scores look better than they would "
        "on a new patient)",
    )


def _impossible(task: DealRequest, fitting: Sequence[int], way: str, seed: int) -> SpecError:
    """Return the error that says why a split is impossible, and proposes sizes near `fitting` that are possible."""
    nearest, asked, n_tiles = nearest_sizes(task.tiles, fitting), task.sizes or (), int(task.tiles.sum())
    proven = nearest is not None
    fits = task._replace(sizes=tuple(fitting))
    for sizes in [] if nearest else sizes_drawn(fits, _generator(seed))[:3]:
        with contextlib.suppress(LookupError):
            best_deal(task._replace(sizes=tuple(sizes)), _generator(seed))
            nearest = sizes
            break
    next_step = way.format(shown(nearest)) if nearest else "choose other sizes, or fewer tiles in all"
    if sum(asked) > n_tiles:
        problem = f"a split of {shown(asked)} needs {sum(asked)} tiles"
        return SpecError(problem, found=f"{n_tiles} tiles", next_step=next_step)
    return SpecError(
        f"no choice of whole groups {'gives' if proven else 'was found that gives'} a split of {shown(asked)}",
        found=f"{len(task.tiles)} groups (patients or slides), with {_listed(task.tiles)} tiles",
        next_step=next_step,
    )


def _listed(tiles: Numbers) -> str:
    counts = [str(n) for n in sorted(tiles.tolist(), reverse=True)]
    return ", ".join(counts[:12]) + (f" and {len(counts) - 12} smaller" if len(counts) > 12 else "")


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=random_key("split", seed)))


def rotating_folds(
    ids: Sequence[str], groups: Sequence[str], pixels: npt.NDArray[np.int64], folds: int, seed: int
) -> list[BalancedSplit]:
    """Return k folds over all tiles; the arguments are those of `balanced_split`.

    The tiles are divided into k balanced parts of whole groups and nearly equal size. As few parts as possible lack a
    label. Fold i tests on part i, validates on part i + 1 (the last fold on the first part) and trains on the rest.
    Over all folds, each group is in test exactly once and in validation exactly once.

    Raises
    ------
    SpecError
        When k is below 3, or there are fewer groups than folds.
    """
    teams = _teams(ids, groups)
    if not 3 <= folds <= len(teams):
        raise SpecError(
            f"{folds} folds cannot be made",
            expected=f"3 {f'to {len(teams)} ' if len(teams) > len(SPLITS) else ''}folds: test, validation and training "
            "need one part each, and a part needs at least one group",
            found=f"{len(teams)} groups of tiles",
            next_step="choose another number with --folds",
        )
    rng = np.random.Generator(np.random.Philox(key=random_key("folds", seed, folds)))
    tiles = np.array([len(team) for team in teams], dtype=np.int64)
    deal = best_deal(DealRequest(tiles, _summed(teams, pixels), folds, None, rank_of_folds(pixels, folds)), rng)
    parts = _members(teams, deal, folds)
    found = []
    for i in range(folds):
        val = (i + 1) % folds
        train = tuple(at for j, part in enumerate(parts) for at in part if j not in (i, val))
        members = _sorted((train, parts[val], parts[i]), ids)
        found.append(BalancedSplit(members, _off(members, pixels)))
    return found


def nested_subsets(
    ids: Sequence[str], train: Sequence[int], pixels: npt.NDArray[np.int64], sizes: Sequence[int], seed: int
) -> Members:
    """Return balanced subsets of the training tiles at positions `train`, in order of size; each contains the previous.

    A subset may hold only some tiles of a group. This leaks nothing, because all tiles of a subset are training tiles.
    A small subset may hold few patients.

    Raises
    ------
    SpecError
        When a size is below 1 or above the number of training tiles, or is requested twice.
    """
    if len(set(sizes)) < len(sizes) or not all(0 < size <= len(train) for size in sizes):
        raise SpecError(
            f"subsets of {', '.join(map(str, sizes))} training tiles cannot be made",
            expected=f"different numbers from 1 to {len(train)} (the number of training tiles of the split)",
            next_step="choose other numbers with --subsets",
        )
    teams = [[i] for i in sorted(train, key=lambda i: ids[i])]
    rng = np.random.Generator(np.random.Philox(key=random_key("subsets", seed)))
    steps = tuple(np.diff([0, *sorted(sizes)]).tolist())  # each subset is the previous one plus a step
    task = DealRequest(
        np.ones(len(teams), dtype=np.int64), _summed(teams, pixels), len(steps) + 1, steps, rank_of_subsets(pixels)
    )
    added = _members(teams, best_deal(task, rng), len(steps))
    return _sorted(tuple(sum(added[: i + 1], ()) for i in range(len(steps))), ids)


def _summed(teams: Sequence[Sequence[int]], pixels: npt.NDArray[np.int64]) -> Floats:
    return np.array([pixels[team].sum(axis=0) for team in teams], dtype=np.float64)


def _members(teams: Sequence[Sequence[int]], deal: Numbers, parts: int) -> Members:
    where = deal.tolist()
    return tuple(
        tuple(at for team, part in zip(teams, where, strict=True) for at in team if part == i) for i in range(parts)
    )


def deviations(members: Members, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return each label's share in each part minus its share in all tiles: (part, label), as fractions of 1."""
    return deviations_of(np.stack([pixels[list(part)].sum(axis=0) for part in members]).astype(np.float64), pixels)


def _teams(ids: Sequence[str], groups: Sequence[str]) -> list[list[int]]:
    """Return the positions of the tiles of each group. The order depends on the ids, not on the order of listing."""
    teams: dict[str, list[int]] = {}
    for i in sorted(range(len(ids)), key=lambda i: ids[i]):
        teams.setdefault(groups[i] or f"\0{ids[i]}", []).append(i)
    return list(teams.values())


def _sorted(members: Members, ids: Sequence[str]) -> Members:
    return tuple(tuple(sorted(part, key=lambda i: ids[i])) for part in members)


def _off(members: Members, pixels: npt.NDArray[np.int64]) -> float:
    return float(np.abs(deviations(members, pixels)).max())
