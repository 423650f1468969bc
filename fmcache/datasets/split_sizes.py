"""Sizes of splits: parsed from text, scaled to fewer tiles, and the sizes that whole groups of tiles can add up to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fmcache.errors import SpecError
from fmcache.manifest import SPLITS

Numbers = npt.NDArray[np.int64]

USUAL = (15, 5, 10)
"""Tiles to train, validate and test on in the paper's protocol."""

WORK = 10**6  # limit on evaluated sums; takes one or two seconds


def split_sizes(split: str) -> list[int] | None:
    """Return the numbers of tiles in ``15/5/10``: to train, validate and test on; None for an empty text.

    Raises
    ------
    SpecError
        When the text is not three positive numbers.
    """
    parts = split.split("/")
    if split and (len(parts) != len(SPLITS) or not all(map(_is_count, parts))):
        raise SpecError(
            f"--split {split!r}",
            expected="three numbers of tiles, such as 15/5/10 (train/val/test)",
            next_step="correct --split, or leave it out",
        )
    return [int(part) for part in parts] if split else None


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) > 0


def shown(sizes: Sequence[int]) -> str:
    """Return sizes in the form that users type: ``15/5/10``."""
    return "/".join(map(str, sizes))


def scaled(sizes: Sequence[int], total: int) -> list[int]:
    """Return sizes in the same proportions that add up to `total`, each at least one if `total` is large enough."""
    shares = np.array(sizes) * total / sum(sizes)
    found = np.maximum(np.floor(shares + 1e-9).astype(np.int64), 1)
    while found.sum() < total:
        found[np.argmax(shares - found)] += 1
    while found.sum() > total:
        found[np.argmax(np.where(found > 1, found - shares, -np.inf))] -= 1
    return [int(size) for size in found]


def exact_deals(tiles: Numbers, sizes: Sequence[int], wanted: int, rng: np.random.Generator) -> Numbers:
    """Return up to `wanted` random deals (deal, group) of exactly these sizes; remaining groups get the next number.

    The result is empty when no such deal exists, or when too many sums would have to be evaluated.
    """
    deals: list[Numbers] = []
    shape = [size + 1 for size in sizes]
    for _ in range(wanted):
        order = rng.permutation(len(tiles))
        layers = _sums(tiles[order], sizes)
        if layers is None or not _holds(layers[-1], [int(np.prod(shape)) - 1])[0]:
            break
        deal, at = np.full(len(tiles), len(sizes)), np.array(sizes)
        for group, before in zip(order[::-1], layers[-2::-1], strict=True):
            without = at - tiles[group] * np.eye(len(sizes) + 1, len(sizes), dtype=np.int64)
            fits = (without >= 0).all(axis=1)
            fits[fits] = _holds(before, np.ravel_multi_index(tuple(without[fits].T), shape))
            deal[group] = rng.choice(np.flatnonzero(fits))
            at = without[deal[group]]
        deals.append(deal)
    return np.array(deals, dtype=np.int64).reshape(-1, len(tiles))


def nearest_sizes(tiles: Numbers, sizes: Sequence[int]) -> list[int] | None:
    """Return the sizes nearest to `sizes` that whole groups add up to, none of them 0; None if none are found.

    Nearest means the least sum of absolute differences; of equals, the one most similar to `sizes` in its proportions.
    """
    most, slack = int(tiles.max()) - 1, 0
    while True:
        # larger slack is useless: a part that exceeds its size by its largest group or more can give up a group
        limits = [min(size + slack, int(tiles.sum())) for size in sizes]
        layers = _sums(np.sort(tiles), limits)
        if layers is None:
            return None
        found = np.stack(np.unravel_index(layers[-1], [limit + 1 for limit in limits]), axis=1)
        found = found[(found > 0).all(axis=1)]
        if len(found):
            apart = np.abs(found - sizes).sum(axis=1)
            unlike = np.abs(found / found.sum(axis=1, keepdims=True) - np.array(sizes) / sum(sizes)).sum(axis=1)
            best = int(np.lexsort((unlike, apart))[0])
            if apart[best] <= slack or slack >= most:
                return [int(size) for size in found[best]]
        if slack >= most:
            return None
        slack = min(most, 2 * slack + 1)


def _sums(tiles: Numbers, limits: Sequence[int]) -> list[Numbers] | None:
    """Return the sizes, up to `limits`, that the first 0, 1, 2, ... groups can add up to; None if there are too many.

    The sizes of all parts are packed into one number by `numpy.ravel_multi_index`. The numbers are sorted.
    """
    shape = [limit + 1 for limit in limits]
    layers, work, full = [np.zeros(1, dtype=np.int64)], 0, 0
    for size in tiles.tolist():
        last = layers[-1]
        if size == full:  # one more group of this size adds no new sums
            layers.append(last)
            continue
        work += len(last)
        if work > WORK:
            return None
        more = [last]
        for part, sizes in enumerate(np.unravel_index(last, shape)):
            more.append(last[sizes + size < shape[part]] + size * int(np.prod(shape[part + 1 :])))
        layers.append(np.unique(np.concatenate(more)))
        full = size if len(layers[-1]) == len(last) else 0
    return layers


def _holds(layer: Numbers, sums: Sequence[int] | Numbers) -> npt.NDArray[np.bool_]:
    at = np.searchsorted(layer, sums).clip(max=len(layer) - 1)
    return np.asarray(layer[at] == sums)
