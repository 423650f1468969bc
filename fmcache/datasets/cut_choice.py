"""Choose tiles of slides: assign groups to splits, and choose tiles so that labels are even. Arithmetic only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fmcache.datasets.split_ranks import rank_lacking
from fmcache.datasets.split_sizes import scaled, shown
from fmcache.errors import SpecError
from fmcache.identity import random_key
from fmcache.manifest import SPLITS

Counts = npt.NDArray[np.float64]
TINY = 1e-9
ALL_DEALS = 7000  # up to 3**8 deals, all are evaluated; above that, this many random ones


def choose_even(pixels: Counts, slides: npt.NDArray[np.int64], wanted: int) -> list[int]:
    """Return positions of `wanted` tiles (fewer when there are fewer) whose labels are as even as possible, best first.

    Slides take turns, so that each slide gives as many tiles as it can up to an equal share. In each turn, the tile is
    chosen that makes the label shares of all chosen tiles most equal (least sum of squares); of equal tiles, the first.
    The first k of n chosen tiles are the same as a choice of k tiles.

    Parameters
    ----------
    pixels
        (tile, label): pixels, or shares of pixels, of each label.
    slides
        (tile,): number of the tile's slide.
    """
    present = pixels[:, pixels.sum(axis=0) > 0]
    even = 1 / max(present.shape[1], 1)
    free = np.ones(len(pixels), dtype=bool)
    total, turns = np.zeros(present.shape[1]), dict.fromkeys(slides.tolist(), 0)
    chosen: list[int] = []
    for _ in range(min(wanted, len(pixels))):
        turn = min(turns[slide] for slide in set(slides[free].tolist()))
        here = np.flatnonzero(free & np.isin(slides, [slide for slide, n in turns.items() if n == turn]))
        sums = total + present[here]
        shares = sums / np.maximum(sums.sum(axis=1, keepdims=True), TINY)
        best = int(here[np.argmin(((shares - even) ** 2).sum(axis=1))])
        chosen.append(best)
        free[best] = False
        total += present[best]
        turns[int(slides[best])] += 1
    return chosen


def deal_groups(
    pixels: Counts, groups: npt.NDArray[np.int64], sizes: Sequence[int], seed: int, way: str = "pass --split {}"
) -> list[list[int]]:
    """Return the groups (slides, or patients) of train, val and test: each in one split, with enough of every label.

    A deal assigns each group to a split. All deals are evaluated, or many random ones for more than eight groups. Only
    deals count that give each split its tiles. They are ranked by three criteria, in this order: the fewest missing
    labels (first in test, then in train, then in val); the scarcest label is least scarce; the numbers of groups are
    most similar to the proportions of `sizes`.

    Parameters
    ----------
    pixels
        (tile, label), as in `choose_even`.
    groups
        (tile,): number of the tile's group.
    sizes
        Tiles wanted in train, val and test.
    way
        How the user can request other sizes; used in the error message.

    Raises
    ------
    SpecError
        When there are fewer groups than splits, or no deal gives every split its tiles.
    """
    names, tiles = np.unique(groups, return_counts=True)
    if len(names) < len(SPLITS):
        raise SpecError(
            f"a split of {shown(sizes)} of whole slides or patients needs {len(SPLITS)} annotated ones",
            found=f"{len(names)}",
            next_step="add slides, or pass --group-by tile: tiles of one slide are then in several splits, and test "
            "scores look better than they would on a new slide",
        )
    stock = np.stack([pixels[groups == name].sum(axis=0) for name in names])
    deals = _possible_deals(tiles, sizes, seed)
    if not len(deals):
        largest = largest_sizes(groups, sizes, seed)
        raise SpecError(
            f"no choice of whole slides or patients was found that gives a split of {shown(sizes)}",
            found="annotated tiles of each: " + ", ".join(map(str, tiles)),
            next_step=(f"{way.format(shown(largest))}, or " if largest else "choose ")
            + "a smaller --tile-px or --min-share, or --group-by tile (tiles of one slide are then in several splits)",
        )
    member, present = _member(deals), stock.sum(axis=0) > 0
    need = np.array(sizes)[:, None] * pixels.sum() / max(len(pixels), 1) / max(present.sum(), 1)
    held = (member @ stock)[:, :, present]
    lacking = rank_lacking(held == 0)
    scarce = np.where(held > 0, np.minimum(1, held / np.maximum(need, TINY)), 1).min(axis=(1, 2), initial=1)
    unlike = np.abs(member.mean(axis=2) - np.array(sizes) / sum(sizes)).sum(axis=1)
    best = deals[np.lexsort((unlike, -scarce, lacking))[0]]
    return [[int(name) for name in names[best == part]] for part in range(len(SPLITS))]


def largest_sizes(groups: npt.NDArray[np.int64], sizes: Sequence[int], seed: int) -> list[int] | None:
    """Return the largest sizes for which `deal_groups` finds a deal, in the proportions of `sizes` and not above them.

    For more than a hundred tiles, the result may be 2 % below the largest possible sizes.
    """
    tiles = np.unique(groups, return_counts=True)[1]
    total = min(sum(sizes), len(groups)) if len(tiles) >= len(SPLITS) else 0
    while total >= len(SPLITS):
        fit = scaled(sizes, total)
        if len(_possible_deals(tiles, fit, seed)):
            return fit
        total -= max(1, total // 50)
    return None


def _possible_deals(tiles: npt.NDArray[np.int64], sizes: Sequence[int], seed: int) -> npt.NDArray[np.int64]:
    """Return the deals that give each split its tiles: (deal, group), values are numbers of splits."""
    if len(SPLITS) ** len(tiles) <= ALL_DEALS:
        deals = np.array(list(itertools.product(range(len(SPLITS)), repeat=len(tiles))))
    else:
        rng = np.random.Generator(np.random.Philox(key=random_key("deal", seed)))
        deals = rng.choice(len(SPLITS), (ALL_DEALS, len(tiles)), p=np.array(sizes) / sum(sizes))
    return np.asarray(deals[(_member(deals) @ tiles >= sizes).all(axis=1)])


def _member(deals: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return whether a group is in a split: (deal, split, group)."""
    return np.asarray(deals[:, None, :] == np.arange(len(SPLITS))[:, None])
