"""Count the labels in the untouched tiles of each split. The pixels are read from the mask cache before training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fmcache.cache.reader import Cache
from fmcache.errors import ManifestError, some
from fmcache.manifest import IGNORE, SPLITS, Split, Splits
from fmcache.scores.dice import Reduction

TilePixels = Mapping[str, npt.NDArray[np.int64]]
"""Number of pixels of each label, shape (label,), by tile id."""
SHOWN = 8


def label_pixels(masks: Cache, tiles: Iterable[str], n_labels: int, sides: Collection[int]) -> Mapping[int, TilePixels]:
    """Return the number of pixels of each label in view 0 of tiles, within the top left square of each of `sides` (px).

    A grid that crops covers less than the tile. Training and scores use only the covered pixels. Each tile is read
    once.

    Raises
    ------
    CacheMismatch, CacheCorrupt
        When the mask cache lacks a tile, or a tile cannot be read.
    """
    counts: dict[int, dict[str, npt.NDArray[np.int64]]] = {side: {} for side in sides}
    for tile in tiles:
        mask = masks.read(tile, 0, 1)[0]
        for side, found in counts.items():
            found[tile] = np.bincount(mask[:side, :side].ravel(), minlength=IGNORE + 1)[:n_labels]
    return counts


def split_pixels(splits: Splits, pixels: TilePixels) -> dict[Split, tuple[int, ...]]:
    """Return the number of pixels of each label by split, in the order of the labels."""
    return {split: tuple(np.sum([pixels[tile] for tile in splits.of(split)], axis=0).tolist()) for split in SPLITS}


def check_labelled(dataset: str, fold: int | None, splits: Splits, pixels: TilePixels) -> None:
    """Check that every split has at least one labelled pixel.

    Raises
    ------
    ManifestError
        When all pixels of a split are ignored: then nothing can be trained, chosen or tested on it. The message names
        the split.
    """
    for split, counts in split_pixels(splits, pixels).items():
        if any(counts):
            continue
        sizes = "/".join(str(len(splits.of(part))) for part in SPLITS)
        again = f"--split {sizes} --seed 1" if fold is None else "--folds K, with fewer folds"
        raise ManifestError(
            f"{place(dataset, fold)}: {split} has no labelled pixel, so {_CONSEQUENCE[split]}",
            expected=f"at least one labelled pixel in the tiles of {split}",
            found=f"all pixels are ignored in {some(splits.of(split), SHOWN)}",
            next_step=f"label one of these tiles, or put other tiles into {split}: edit the manifest, or run "
            f"fmcache data split {dataset} {again}; then run fmcache data check {dataset}",
        )


def label_notes(
    where: str, splits: Splits, pixels: TilePixels, labels: Sequence[str], reduction: Reduction
) -> list[str]:
    """Return a line about labels that splits lack and its effect, and a line about tiles without a label, if any."""
    lines = []
    lacks = [
        f"{split} lacks {', '.join(absent)} ({_meaning(split, len(absent), len(scored), reduction)})"
        for split, counts in split_pixels(splits, pixels).items()
        # the PUMA challenge does not score its first label, the background
        if (scored := range(reduction == "puma" and split != "train", len(labels)))
        and (absent := [repr(labels[i]) for i in scored if not counts[i]])
    ]
    if lacks:
        lines.append(f"{where}: {'; '.join(lacks)}")
    empty = [f"{tile} ({split})" for split in SPLITS for tile in splits.of(split) if not pixels[tile].any()]
    if empty:
        lines.append(f"{where}: tiles without a labelled pixel, of no use for training or scores: {some(empty, SHOWN)}")
    return lines


def place(dataset: str, fold: int | None) -> str:
    """Return the name of a dataset's fixed split, or of one of its folds, for messages."""
    return dataset if fold is None else f"{dataset}, fold {fold}"


def _meaning(split: Split, absent: int, scored: int, reduction: Reduction) -> str:
    if split == "train":
        return f"the decoder cannot learn {'it' if absent == 1 else 'them'}"
    mean = "weights are chosen by a mean" if split == "val" else "test Dice is a mean"
    if reduction == "puma":
        return f"{mean} over {scored} labels, and a lacking label counts as 0"
    return f"{mean} over {scored - absent} of {scored} labels; a lacking label counts as 0 if it is predicted"


_CONSEQUENCE: Mapping[Split, str] = {
    "train": "no decoder can be trained",
    "val": "the best weights cannot be chosen",
    "test": "there is nothing to test on",
}
