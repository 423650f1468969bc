"""Sentences on a split: its sizes, its deviation, the labels that its parts lack, and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from fmcache.datasets.balance import BalancedSplit
from fmcache.datasets.split_sizes import USUAL, shown
from fmcache.manifest import SPLITS


def split_line(split: BalancedSplit, n_tiles: int, asked: Sequence[int] | None) -> str:
    """Return the sizes of a split, as in `sizes_line`, and its largest deviation."""
    sizes = sizes_line(split.members, n_tiles, asked)
    return f"{sizes}; label shares of a split differ from those of all tiles by at most {100 * split.off:.1f} points"


def sizes_line(members: Sequence[Sequence[int]], n_tiles: int, asked: Sequence[int] | None) -> str:
    """Return the sizes of a split of `n_tiles` tiles as text.

    `asked` are the requested sizes; None means 15/5/10 or the nearest possible sizes.
    """
    sizes = tuple(len(part) for part in members)
    spare = n_tiles - sum(sizes)
    whole = " to whole groups" if n_tiles >= sum(USUAL) else ""
    return (
        f"split {shown(sizes)}"
        + (f", {shown(USUAL)} scaled{whole}" if not asked and sizes != USUAL else "")
        + (f" ({spare} in no split)" if spare else "")
    )


def lacking_labels(
    members: Sequence[Sequence[int]], pixels: npt.NDArray[Any], names: Sequence[str], groups: Sequence[str]
) -> list[str]:
    """Return a sentence on each label that train, val or test lacks: where it occurs, and why not everywhere.

    Parameters
    ----------
    members
        Positions of tiles in train, val and test.
    pixels
        (tile, label): pixels, or shares of pixels, of each label.
    names, groups
        Names of labels; groups of tiles, empty for a tile that is a group by itself.
    """
    found = []
    for label, name in enumerate(names):
        holders = [i for i in range(len(groups)) if pixels[i, label] > 0]
        has = [part for part, tiles in zip(SPLITS, members, strict=True) if pixels[list(tiles), label].any()]
        if len(has) == len(SPLITS):
            continue
        if not holders:
            found.append(f"label {name!r} is in no tile")
            continue
        owners = len({groups[i] or f"\0{i}" for i in holders})
        where = _where(len(holders), owners, any(groups))
        lack = [part for part in SPLITS if part not in has]
        found.append(f"label {name!r} is in {where}: {_have(has, lack)}; {_reason(owners, any(groups))}")
    return found


def labels_rarer_than_folds(
    pixels: npt.NDArray[Any], names: Sequence[str], groups: Sequence[str], folds: int
) -> list[str]:
    """Return a sentence on each label that occurs in too few tiles or groups to be tested in every fold."""
    found = []
    for label, name in enumerate(names):
        holders = [i for i in range(len(groups)) if pixels[i, label] > 0]
        owners = len({groups[i] or f"\0{i}" for i in holders})
        if 0 < owners < folds:
            where = _where(len(holders), owners, any(groups))
            found.append(f"label {name!r} is in {where}: at most {owners} of {folds} folds can test it")
    return found


def _where(holders: int, owners: int, grouped: bool) -> str:
    return _count(holders, "tile") + (f" of {_count(owners, 'group')}" if grouped else "")


def _have(has: Sequence[str], lack: Sequence[str]) -> str:
    lacking = f"{_and(lack)} {'lacks' if len(lack) == 1 else 'lack'} it"
    return f"{_and(has)} {'has' if len(has) == 1 else 'have'} it, {lacking}" if has else lacking


def _reason(owners: int, grouped: bool) -> str:
    one = "group (patient or slide)" if grouped else "tile"
    if owners < len(SPLITS):
        return f"no split can avoid this: each of {len(SPLITS)} splits needs a {one} that has it"
    kind = " of whole groups (patients or slides)" if grouped else ""
    return f"no split of these sizes{kind} was found in which every split has every label"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _and(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
