"""Labels that occur in no tile. They can be neither trained nor scored; the usual cause is a mistyped value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fmcache.datasets.label_flags import classes_of
from fmcache.errors import TileError
from fmcache.manifest import IGNORE, FolderDataset, Label
from fmcache.quoting import quoted
from fmcache.tiles.annotation_notes import listed
from fmcache.tiles.pictures import TRANSPARENT
from fmcache.tiles.values import ignored_keys, listed_values, shown_key

Counts = npt.NDArray[np.int64]
NEXT_STEP = "give the label a value or class that occurs, or leave it out (--labels, --fill)"
HIDDEN = "its regions lie outside the tiles, or under other regions (--order names labels from lowest to highest); "


def absent_values(dataset: FolderDataset, pixels: Counts, n_tiles: int, found: Mapping[int, int]) -> TileError | None:
    """Return an error when labels of image masks have no pixel in any of `n_tiles` tiles, else None.

    When exactly one label is missing and exactly one value is ignored, that value probably belongs to the label. The
    error then says so.

    Parameters
    ----------
    pixels
        (label,): pixels of each label, summed over all tiles.
    found
        The keys of `read_values` that occur, with their numbers of pixels.
    """
    lacking = _lacking(pixels)
    if not lacking:
        return None
    total, ignored = max(sum(found.values()), 1), ignored_keys(dataset, found)
    seen = {key: n for key, n in found.items() if key not in ignored}
    unseen = {key: n for key, n in found.items() if key in ignored}
    parts = [
        listed_values(seen, lambda n: _share(n, total)),
        listed_values(unseen, lambda n: f"{_share(n, total)}, ignored"),
    ]
    by_position = not any(label.values for label in dataset.labels)
    names = [(dataset.labels[i].name, (i,) if by_position else dataset.labels[i].values) for i in lacking]
    problem = _problem(names, "value", n_tiles)
    if TRANSPARENT in found:
        problem += f"; transparent pixels ({_share(found[TRANSPARENT], total)}) are ignored"
    next_step, candidates = NEXT_STEP, sorted(ignored - {TRANSPARENT})
    if len(lacking) == len(candidates) == 1:
        elsewhere = "" if dataset.ignore_values == (IGNORE,) else ", and removed from --ignore"
        meant = f"{quoted(names[0][0])}={shown_key(candidates[0])}"
        next_step = f"did you mean {meant} (in --labels{elsewhere})? If not, {NEXT_STEP}"
    if TRANSPARENT in found:
        next_step += "; if transparent pixels should be a label, save the masks without transparency"
    return _error(problem, ", ".join(part for part in parts if part), next_step)


def absent_classes(
    labels: Sequence[Label], pixels: Counts, n_tiles: int, classes: Mapping[str, int]
) -> TileError | None:
    """Return an error when labels of annotated regions have no pixel in any tile, else None.

    `classes` is the number of regions of each class in all annotations.
    """
    if not (lacking := _lacking(pixels)):
        return None
    names = [(labels[i].name, classes_of(labels[i])) for i in lacking]
    drawn = any(str(value) in classes for _, values in names for value in values)
    return _error(
        _problem(names, "class", n_tiles), listed(classes) or "no regions", (HIDDEN if drawn else "") + NEXT_STEP
    )


def _lacking(pixels: Counts) -> list[int]:
    return [i for i, n in enumerate(pixels.tolist()) if n == 0]


def _problem(names: Sequence[tuple[str, Sequence[int | str]]], word: str, n_tiles: int) -> str:
    labels = ", ".join(
        f"{name!r} ({word} {'|'.join(quoted(str(value)) if word == 'class' else str(value) for value in values)})"
        for name, values in names
    )
    subject = f"label {labels} has" if len(names) == 1 else f"labels {labels} have"
    return f"{subject} no pixel in any of {n_tiles} tiles"


def _error(problem: str, found: str, next_step: str) -> TileError:
    return TileError(problem, expected="every label in at least one tile", found=found, next_step=next_step)


def _share(n: int, total: int) -> str:
    return f"{100 * n / total:.0f} %" if n * 200 >= total else "< 1 %"
