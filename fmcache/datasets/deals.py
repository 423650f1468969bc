"""Assign groups of tiles to parts: draw many random deals, and improve the best by swaps. Arithmetic only.

A deal is the number of the part of each group. `fmcache.datasets.balance` defines which of two deals is better.
`fmcache.datasets.split_sizes` finds the sizes that whole groups can add up to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.datasets.split_sizes import exact_deals

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DRAWS, LEAST_DRAWS = 3000, 200
MANY = 200  # with more groups than this, fewer deals are drawn, and fewer are improved
ALL_DEALS = 1 << 17  # up to this many possible deals, all are evaluated
STARTS, LEAST_STARTS = 6, 2  # number of best draws that are improved, each separately
SWAPS, PAIRS = 4000, 400  # evaluated in each step
FEW = 60  # up to this many groups, all swaps of two groups are evaluated in each step
STEPS, PATIENCE = 200, 4  # counts, not seconds, so that a slow machine finds the same deal
TINY, GOOD = 1e-12, 1e-3  # a deviation of 0.1 percentage points is good enough


class Rank(NamedTuple):
    """The criteria for deals, lower is better: labels that parts lack, then the deviation of label shares."""

    lacking: Numbers
    off: Floats


class DealRequest(NamedTuple):
    """The groups to deal, the number of parts, and the ranking of deals.

    Attributes
    ----------
    tiles
        (group,): number of tiles of each group.
    pixels
        (group, label): pixels of each label; whole numbers, so that sums are exact in any order.
    parts
        Number of parts. With `sizes`, the last part takes the remaining groups.
    sizes
        Number of tiles that each part except the last must have. None: any number, but at least one group.
    rank
        Function from pixels (deal, part, label) and tiles (deal, part) to the rank of each deal.
    """

    tiles: Numbers
    pixels: Floats
    parts: int
    sizes: tuple[int, ...] | None
    rank: Callable[[Floats, Numbers], Rank]


def best_deal(task: DealRequest, rng: np.random.Generator) -> Numbers:
    """Return the best of all deals when few enough are possible, else the best deal that is found.

    The result depends only on the arguments, including the state of the generator.

    Raises
    ------
    LookupError
        When no deal of these sizes is found.
    """
    spare = task.sizes is None or int(task.tiles.sum()) > sum(task.sizes)
    used = task.parts if spare else task.parts - 1
    if used ** len(task.tiles) <= ALL_DEALS:
        every = np.arange(used ** len(task.tiles))[:, None] // used ** np.arange(len(task.tiles)) % used
        every = rng.permutation(every)  # random choice among equal deals
        return np.asarray(_best(task, _valid(task, every), 1)[0])
    many = len(task.tiles) > MANY
    found = _valid(task, _drawn_deals(task, max(LEAST_DRAWS, DRAWS * MANY // len(task.tiles)) if many else DRAWS, rng))
    if not len(found) and task.sizes is not None:
        found = exact_deals(task.tiles, task.sizes, STARTS, rng)
    starts = _best(task, found, LEAST_STARTS if many else STARTS)
    return np.asarray(_best(task, np.stack([_improved(task, deal, rng) for deal in starts]), 1)[0])


def sizes_drawn(task: DealRequest, rng: np.random.Generator) -> list[list[int]]:
    """Return sizes up to those of the task that whole groups add up to, nearest first, as found by random deals."""
    tiles = _tally(task, _drawn_deals(task, LEAST_DRAWS, rng))[1][:, :-1]
    found = np.unique(tiles[(tiles > 0).all(axis=1)], axis=0)
    return [[int(size) for size in sizes] for sizes in found[np.argsort(-found.sum(axis=1), kind="stable")]]


def _best(task: DealRequest, deals: Numbers, wanted: int) -> Numbers:
    if not len(deals):
        raise LookupError("no deal of these sizes was found")
    return np.asarray(deals[_order(_ranked(task, deals))[:wanted]])


def _drawn_deals(task: DealRequest, draws: int, rng: np.random.Generator) -> Numbers:
    """Return random deals; in some, parts are smaller than their sizes.

    Groups are dealt in random order; in half of the deals, larger groups come first.
    """
    orders = rng.permuted(np.tile(np.arange(len(task.tiles)), (draws, 1)), axis=1)
    larger = np.argsort(-task.tiles[orders[draws // 2 :]], axis=1, kind="stable")
    orders[draws // 2 :] = np.take_along_axis(orders[draws // 2 :], larger, axis=1)
    deals = np.full_like(orders, task.parts - 1)
    limits = np.array(task.sizes) if task.sizes is not None else np.zeros(task.parts, dtype=np.int64)
    room, rows = np.tile(limits, (draws, 1)), np.arange(draws)
    for group in orders.T:
        size = task.tiles[group]
        luck = rng.random(room.shape)
        # into any part with room for the whole group; without sizes, into the part that is smallest so far
        liked = np.where(room >= size[:, None], luck, -1) if task.sizes is not None else room + luck / 2
        part = liked.argmax(axis=1)
        taken = liked[rows, part] >= 0 if task.sizes is not None else np.ones(draws, dtype=bool)
        deals[rows[taken], group[taken]] = part[taken]
        room[rows[taken], part[taken]] -= size[taken]
    return deals


def _valid(task: DealRequest, deals: Numbers) -> Numbers:
    tiles = np.stack([(deals == part) @ task.tiles for part in range(task.parts)], axis=1)
    fit = tiles > 0 if task.sizes is None else tiles[:, :-1] == task.sizes
    return np.asarray(deals[fit.all(axis=1)])


def _tally(task: DealRequest, deals: Numbers) -> tuple[Floats, Numbers]:
    """Return pixels (deal, part, label) and tiles (deal, part)."""
    members = [(deals == part).astype(np.float64) for part in range(task.parts)]
    pixels = np.stack([member @ task.pixels for member in members], axis=1)
    return pixels, np.stack([member @ task.tiles for member in members], axis=1).astype(np.int64)


def _ranked(task: DealRequest, deals: Numbers) -> Rank:
    return task.rank(*_tally(task, deals))


def _order(rank: Rank) -> Numbers:
    return np.lexsort((rank.off, rank.lacking))


class _Bundles(NamedTuple):
    """Bundles of zero to two groups of one part: groups (bundle, 2), -1 means no group; part, tiles and pixels."""

    groups: Numbers
    part: Numbers
    tiles: Numbers
    pixels: Floats


def _improved(task: DealRequest, deal: Numbers, rng: np.random.Generator) -> Numbers:
    """Return a deal improved by swaps: each step takes the best of many, until several steps in a row improve nothing.

    The search also stops at the first step without improvement when the deviation is small enough.
    """
    deal = deal.copy()
    rank = _ranked(task, deal[None])
    now, stuck = (int(rank.lacking[0]), float(rank.off[0])), 0
    for _ in range(STEPS):
        bundles = _bundles(task, deal, rng)
        one, other = _swaps(task, bundles, rng)
        rank = task.rank(*_swapped(task, deal, bundles, one, other))
        best = int(_order(rank)[0]) if len(one) else 0
        if not len(one) or (int(rank.lacking[best]), float(rank.off[best]) + TINY) >= now:
            stuck += 1
            if stuck == PATIENCE or now[1] < GOOD:
                break
            continue
        now, stuck = (int(rank.lacking[best]), float(rank.off[best])), 0
        for bundle, part in ((one[best], bundles.part[other[best]]), (other[best], bundles.part[one[best]])):
            deal[[group for group in bundles.groups[bundle] if group >= 0]] = part
    return deal


def _bundles(task: DealRequest, deal: Numbers, rng: np.random.Generator) -> _Bundles:
    alone = np.stack([np.arange(len(deal)), np.full(len(deal), -1)], axis=1)
    pairs = rng.integers(len(deal), size=(PAIRS, 2))
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (deal[pairs[:, 0]] == deal[pairs[:, 1]])]
    groups = np.concatenate([alone, pairs])
    part = deal[groups[:, 0]]
    if task.sizes is None:  # a bundle may be swapped for nothing
        groups = np.concatenate([groups, np.full((task.parts, 2), -1)])
        part = np.concatenate([part, np.arange(task.parts)])
    tiles, pixels = np.append(task.tiles, 0), np.append(task.pixels, np.zeros((1, task.pixels.shape[1])), axis=0)
    return _Bundles(groups, part, tiles[groups].sum(axis=1), pixels[groups].sum(axis=1))


def _swaps(task: DealRequest, bundles: _Bundles, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Return many random pairs of bundles from different parts; with sizes, both bundles have equally many tiles.

    Small parts are drawn as often as large ones, and groups with a rare label as often as groups with a common one.
    """
    seldom = 1 / np.bincount(bundles.part, minlength=task.parts)[bundles.part]
    holds = bundles.pixels[: len(task.tiles)] > 0
    rare = np.zeros(len(seldom))
    rare[: len(holds)] = (holds / np.maximum(holds.sum(axis=0), 1)).sum(axis=1)
    one = np.append(_drawn(seldom, SWAPS // 2, rng), _drawn(rare, SWAPS // 2, rng) if rare.any() else [])
    one = one.astype(np.int64)
    order = np.arange(len(seldom)) if task.sizes is None else np.argsort(bundles.tiles, kind="stable")
    sums = np.append(0, seldom[order].cumsum())
    first, end = np.zeros(len(one), dtype=np.int64), np.full(len(one), len(order))
    if task.sizes is not None:
        ranked = bundles.tiles[order]
        first = np.searchsorted(ranked, bundles.tiles[one], "left")
        end = np.searchsorted(ranked, bundles.tiles[one], "right")
    at = np.searchsorted(sums, sums[first] + rng.random(len(one)) * (sums[end] - sums[first]), "right") - 1
    other = order[np.clip(at, first, end - 1)]
    if len(task.tiles) <= FEW:
        every = np.triu_indices(len(task.tiles), 1)
        fit = (bundles.tiles[every[0]] == bundles.tiles[every[1]]) | (task.sizes is None)
        one, other = np.append(one, every[0][fit]), np.append(other, every[1][fit])
    apart = bundles.part[one] != bundles.part[other]
    return one[apart], other[apart]


def _drawn(weights: Floats, times: int, rng: np.random.Generator) -> Numbers:
    sums = weights.cumsum()
    found: Numbers = np.searchsorted(sums, rng.random(times) * sums[-1], "right").clip(max=len(sums) - 1)
    return found


def _swapped(
    task: DealRequest, deal: Numbers, bundles: _Bundles, one: Numbers, other: Numbers
) -> tuple[Floats, Numbers]:
    """Return pixels (swap, part, label) and tiles (swap, part) after each of the swaps."""
    now_pixels, now_tiles = _tally(task, deal[None])
    pixels, tiles = np.repeat(now_pixels, len(one), axis=0), np.repeat(now_tiles, len(one), axis=0)
    rows, here, there = np.arange(len(one)), bundles.part[one], bundles.part[other]
    more_pixels, more_tiles = bundles.pixels[other] - bundles.pixels[one], bundles.tiles[other] - bundles.tiles[one]
    pixels[rows, here] += more_pixels
    pixels[rows, there] -= more_pixels
    tiles[rows, here] += more_tiles
    tiles[rows, there] -= more_tiles
    return pixels, tiles
