"""Which tiles of which slides: groups are dealt to splits, tiles are chosen to even out the labels. Arithmetic only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fmcache.errors import SpecError
from fmcache.identity import random_key
from fmcache.manifest import SPLITS

Counts = npt.NDArray[np.float64]
TINY = 1e-9
ALL_DEALS = 7000  # up to 3**8 deals are all looked at; beyond, this many random ones


def choose_even(pixels: Counts, slides: npt.NDArray[np.int64], wanted: int) -> list[int]:
    """Return positions of `wanted` tiles (fewer when there are fewer) whose labels are as even as can be, best first.

    Slides take turns, so that each gives as many as it can up to an equal share. Within its turn the tile is taken
    after which the label shares of all tiles taken are nearest to each other (least sum of squares); the first of
    equals. The first k of n chosen tiles are those that would be chosen for k.

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


def deal_groups(pixels: Counts, groups: npt.NDArray[np.int64], sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Return the groups (slides, or patients) of train, val and test: each in one, with enough tiles of every label.

    Of all deals (of many random ones, for more than eight groups) that give each split its tiles, the one is taken
    whose scarcest label is least scarce, and of those the one whose numbers of groups are most like the sizes.

    Parameters
    ----------
    pixels
        (tile, label), as in `choose_even`.
    groups
        (tile,): number of the tile's group.
    sizes
        Tiles wanted in train, val and test.

    Raises
    ------
    SpecError
        When there are fewer groups than splits, or no deal gives every split its tiles.
    """
    names = sorted(set(groups.tolist()))
    tiles = np.array([(groups == name).sum() for name in names])
    stock = np.stack([pixels[groups == name].sum(axis=0) for name in names]) if names else np.zeros((0, 1))
    shown = "/".join(map(str, sizes))
    if len(names) < len(SPLITS):
        raise SpecError(
            f"a split of {shown} that never parts a slide or patient needs {len(SPLITS)} of them, annotated",
            found=f"{len(names)}",
            next_step="add slides, or pass --group-by tile: tiles of one slide are then in several splits, and test "
            "scores look better than they would on a new slide",
        )
    aim = np.array(sizes) / sum(sizes)
    need = np.array(sizes)[:, None] * pixels.sum() / max(len(pixels), 1) / max((stock.sum(axis=0) > 0).sum(), 1)
    best: tuple[tuple[float, float], tuple[int, ...]] | None = None
    for deal in _deals(len(names), aim, seed):
        member = np.array(deal) == np.arange(len(SPLITS))[:, None]
        if (member @ tiles < sizes).any():
            continue
        supply = np.minimum(1, (member @ stock)[:, stock.sum(axis=0) > 0] / np.maximum(need, TINY)).min()
        merit = (float(supply), -float(np.abs(member.mean(axis=1) - aim).sum()))
        if best is None or merit > best[0]:
            best = (merit, deal)
    if best is None:
        raise SpecError(
            f"no choice of whole slides or patients gives a split of {shown}",
            found="annotated tiles of each: " + ", ".join(map(str, tiles)),
            next_step="choose other sizes with --split or --tiles, a smaller --tile-px or --min-share, or --group-by "
            "tile (tiles of one slide are then in several splits)",
        )
    return [[name for name, part in zip(names, best[1], strict=True) if part == i] for i in range(len(SPLITS))]


def _deals(groups: int, aim: npt.NDArray[np.float64], seed: int) -> Iterator[tuple[int, ...]]:
    if len(SPLITS) ** groups <= ALL_DEALS:
        yield from itertools.product(range(len(SPLITS)), repeat=groups)
        return
    rng = np.random.Generator(np.random.Philox(key=random_key("deal", seed)))
    yield from map(tuple, rng.choice(len(SPLITS), (ALL_DEALS, groups), p=aim).tolist())
