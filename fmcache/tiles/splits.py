"""Splits that can be defended: balanced by label share, patients or slides never parted, the same every time."""

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


class Split(NamedTuple):
    """Positions of tiles in train, val and test; `off` is the largest difference of a label's share from all tiles'."""

    members: tuple[tuple[int, ...], ...]
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
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    teams: dict[str, list[int]] = {}
    for i in order:
        teams.setdefault(groups[i] or f"\0{ids[i]}", []).append(i)
    rng = np.random.Generator(np.random.Philox(key=random_key("split", seed)))
    best: Split | None = None
    for _ in range(TRIES):
        members = _deal([list(teams.values())[i] for i in rng.permutation(len(teams))], sizes)
        if members and (best is None or (off := _off(members, pixels)) < best.off):
            best = Split(members, _off(members, pixels) if best is None else off)
    if best is None:
        raise SpecError(
            f"no choice of whole groups gives a split of {'/'.join(map(str, sizes))}",
            found=f"groups of {', '.join(str(len(team)) for team in teams.values())} tiles",
            next_step="choose other sizes with --split",
        )
    return Split(tuple(tuple(sorted(part, key=lambda i: ids[i])) for part in best.members), best.off)


def _deal(teams: list[list[int]], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """Put each team into the first split it fits into whole; None when a split stays short."""
    parts: list[list[int]] = [[] for _ in SPLITS]
    for team in teams:
        for part, size in zip(parts, sizes, strict=True):
            if len(part) + len(team) <= size:
                part += team
                break
    full = all(len(part) == size for part, size in zip(parts, sizes, strict=True))
    return tuple(tuple(part) for part in parts) if full else None


def _off(members: tuple[tuple[int, ...], ...], pixels: npt.NDArray[np.int64]) -> float:
    whole = pixels.sum(axis=0) / max(pixels.sum(), 1)
    off = 0.0
    for part in members:
        counts = pixels[list(part)].sum(axis=0)
        share = counts / max(counts.sum(), 1)
        missing = MISSING_LABEL if ((counts == 0) & (whole > 0)).any() else 0.0
        off = max(off, float(np.abs(share - whole).max()) + missing)
    return off
