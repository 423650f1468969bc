"""Find a free mask value for ignored pixels of a square: pixels outside the image, and transparent pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from fmcache.errors import TileError
from fmcache.manifest import MASK_MAX, FolderDataset, mask_span
from fmcache.tiles.values import is_colour, mask_values, reads_by_colour, shown_key

MOST = 65535
"""The largest number that a PNG holds."""


class Rim(NamedTuple):
    """The number and the colour (keys of `RawMask`) that mark ignored pixels, and the dataset that ignores both.

    A key is None when masks do not need it, or when no value is free.
    """

    dataset: FolderDataset
    number: int | None
    colour: int | None

    def key(self, in_colour: bool) -> int:
        """Return the key that marks ignored pixels.

        Raises
        ------
        TileError
            When no value is free.
        """
        found = self.colour if in_colour else self.number
        if found is None:
            raise TileError(
                "no mask value is free to mark pixels that lie outside an image or are transparent",
                expected="a value from 0 to 255 that no label has",
                next_step="end a range of --labels earlier, such as 'nucleus=1-65534'",
            )
        return found


def with_rim(dataset: FolderDataset) -> Rim:
    """Return the keys that mark ignored pixels.

    These are values that the dataset already ignores, or else free values, which are then added to its ignored values.
    When a range without end, such as ``1-``, leaves no number free, it is cut off below `MOST`, and `MOST` is used.
    """
    values = [*(value for value, _ in mask_values(dataset.labels)), *dataset.ignore_values]
    ignored = [mask_span(value)[0] for value in dataset.ignore_values]
    free = _free_grey(values)
    number = colour = None
    if not reads_by_colour(dataset):
        number = next((key for key in ignored if 0 <= key <= 255), free)
        if number is None:
            dataset, number = _ended(dataset)
    if any(map(is_colour, values)):
        colour = next((key for key in ignored if key < 0), None if free is None else -1 - free * 0x010101)
    for key in (number, colour):
        if key is not None and key not in ignored:
            value = key if key >= 0 else shown_key(key)
            dataset = msgspec.structs.replace(dataset, ignore_values=(*dataset.ignore_values, value))
    return Rim(dataset, number, colour)


def _free_grey(values: Sequence[int | str]) -> int | None:
    """Return a grey value of 8 bits that is listed neither as a number nor as a colour, because colours take
    precedence; None if there is none."""
    spans = [mask_span(value) for value in values]
    return next(
        (n for n in range(255, -1, -1) if not any(a <= k <= b for a, b in spans for k in (n, -1 - n * 0x010101))), None
    )


def _ended(dataset: FolderDataset) -> tuple[FolderDataset, int | None]:
    """Return the dataset with a range without end, such as ``1-``, cut off below `MOST`, and `MOST`, which is free
    then; if another value covers `MOST`, the unchanged dataset and None."""

    def ended(value: int | str) -> int | str:
        low, high = mask_span(value)
        return f"{low}-{MOST - 1}" if low < MOST and high == MASK_MAX else value

    labels = tuple(msgspec.structs.replace(label, values=tuple(map(ended, label.values))) for label in dataset.labels)
    spans = [mask_span(value) for label in labels for value in label.values]
    if any(low <= MOST <= high for low, high in spans):
        return dataset, None
    return msgspec.structs.replace(dataset, labels=labels), MOST
