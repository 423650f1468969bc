"""Convert the values of a mask, numbers and colours, to label ids, and name values in messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.errors import TileError, some
from fmcache.manifest import IGNORE, FolderDataset, Label, mask_span
from fmcache.quoting import quoted
from fmcache.tiles.pictures import TRANSPARENT, RawMask
from fmcache.tiles.pixels import Pixels

Keys = npt.NDArray[np.int32]
UNKNOWN = -1
SHOWN = 8
MANY = 256
"""More unknown colours than this cannot come from a set of labels."""


class Palette(NamedTuple):
    """The colours of a palette mask, ``#rrggbb`` by index, and the indices that occur."""

    colours: tuple[str, ...]
    used: tuple[int, ...]


class Reading(NamedTuple):
    """A mask read with a dataset's values: label ids (y, x) uint8, 255 = ignore.

    `found` has the number of pixels by key, `unknown` the same for values that no label has. `palette` is set when a
    palette mask was read by index.
    """

    mask: Pixels
    found: Counter[int]
    unknown: Counter[int]
    palette: Palette | None


def read_values(raw: RawMask, dataset: FolderDataset) -> Reading:
    """Return the label ids of a mask for a dataset; the value of a label without values is its position.

    When all values of labels are colours, masks are read by the colours they show. Otherwise grey values and palette
    indices are read as stored; but if a grey value shows a listed colour, this colour takes precedence.
    """
    stored, inverse, counts = np.unique(raw.keys, return_inverse=True, return_counts=True)
    shown = _shown(stored, raw.colours)
    meanings = [(value, IGNORE) for value in dataset.ignore_values] + mask_values(dataset.labels)
    by_colour = reads_by_colour(dataset)
    keys = shown if by_colour else stored
    table = _meaning(keys, meanings)
    if not by_colour and not raw.is_palette:
        of_colour = _meaning(shown, [(value, label) for value, label in meanings if is_colour(value)])
        table = np.where(of_colour == UNKNOWN, table, of_colour)
    table[stored == TRANSPARENT] = IGNORE
    found, unknown = Counter[int](), Counter[int]()
    for key, label, count in zip(keys.tolist(), table.tolist(), counts.tolist(), strict=True):
        (unknown if label == UNKNOWN else found)[key] += count
    palette = None
    if raw.is_palette and not by_colour:
        used = tuple(int(key) for key in stored if 0 <= key < len(raw.colours))
        palette = Palette(tuple(_colour(*colour) for colour in raw.colours.tolist()), used)
    return Reading(table.astype(np.uint8)[inverse].reshape(raw.keys.shape), found, unknown, palette)


def unknown_values(where: str, counts: Mapping[int, int], dataset: FolderDataset) -> TileError:
    """Return the error for masks that hold values that no label has."""
    meanings = [*dataset.ignore_values, *(value for value, _ in mask_values(dataset.labels))]
    return TileError(
        f"{where}: mask values that no label has",
        expected=", ".join(str(value) for value in meanings),
        found=listed_values(counts, lambda n: f"{n} px"),
        next_step=_way_out(counts, dataset),
    )


def _way_out(counts: Mapping[int, int], dataset: FolderDataset) -> str:
    if sum(key < 0 for key in counts) > MANY:
        return (
            "files with so many colours are photographs, overlays, or masks that were smoothed or saved as JPEG: "
            "export label images, and check that --images and --masks are not interchanged"
        )
    way = (
        "add them to a label's values or to ignore_values (fmcache data add --labels, --ignore); for a mask of "
        "numbered instances, use a range, such as 'nucleus=1-'"
    )
    by_value = {value: dataset.labels[label].name for value, label in mask_values(dataset.labels)}
    if by_value.keys() == {0, 255} and len(counts) > 1:
        way += (
            "; if edges were smoothed, split the range in the middle: "
            f"'{quoted(by_value[0])}=0-127,{quoted(by_value[255])}=128-255'"
        )
    return way + ("; if the mask was smoothed or saved as JPEG, export it again" if len(counts) > SHOWN else "")


def mask_values(labels: tuple[Label, ...]) -> list[tuple[int | str, int]]:
    """Return each mask value with its label id."""
    if not any(label.values for label in labels):
        return [(i, i) for i in range(len(labels))]
    return [(value, i) for i, label in enumerate(labels) for value in label.values]


def reads_by_colour(dataset: FolderDataset) -> bool:
    """Return whether all values of labels are colours."""
    return all(is_colour(value) for value, _ in mask_values(dataset.labels))


def ignored_keys(dataset: FolderDataset, keys: Mapping[int, int]) -> set[int]:
    """Return the keys that are ignored, by the dataset's rule or because they are transparent."""
    array = np.array(list(keys), dtype=np.int32)
    table = _meaning(array, [(value, IGNORE) for value in dataset.ignore_values])
    return {int(key) for key in array[(table == IGNORE) | (array == TRANSPARENT)]}


def shown_keys(raw: RawMask) -> Keys:
    """Return the keys of a mask, (y, x) int32; each key that shows a colour is replaced by this colour's key."""
    return _shown(raw.keys, raw.colours)


def shown_key(key: int) -> str:
    """Return a key in the form that flags use: a number or ``#rrggbb``."""
    return str(key) if key >= 0 else f"#{-1 - key:06x}"


def listed_values(counts: Mapping[int, int], say: Callable[[int], str]) -> str:
    """Return values with their pixel counts as `say` formats them; when there are many, consecutive numbers become a
    range."""
    ordered = sorted((key for key in counts if key != TRANSPARENT), key=lambda key: (key < 0, abs(key)))
    rows: list[tuple[int, int, int]] = []
    for key in ordered:
        if rows and len(ordered) > SHOWN and key >= 0 and rows[-1][1] == key - 1 and rows[-1][0] >= 0:
            rows[-1] = (rows[-1][0], key, rows[-1][2] + counts[key])
        else:
            rows.append((key, key, counts[key]))
    texts = [f"{shown_key(a)}{f'-{shown_key(b)}' if b > a else ''} ({say(n)})" for a, b, n in rows]
    return some(texts, SHOWN)


def palette_clash(palettes: Sequence[tuple[str, Palette]]) -> str:
    """Return a difference between palettes of named masks: another colour for an index, or another index for a colour;
    empty when there is none."""
    by_index: dict[int, tuple[str, Palette]] = {}
    by_colour: dict[str, tuple[int, str, Palette]] = {}
    for name, palette in palettes:
        for i in palette.used:
            colour = palette.colours[i]
            at, other, theirs = by_colour.setdefault(colour, (i, name, palette))
            # not a difference if a palette holds the colour at both indices, as palettes of many labels do
            if at != i and colour not in (*palette.colours[at : at + 1], *theirs.colours[i : i + 1]):
                return f"{colour} has index {at} in {other} and index {i} in {name}"
            other, theirs = by_index.setdefault(i, (name, palette))
            if theirs.colours[i] != colour:
                return f"index {i} shows {theirs.colours[i]} in {other} and {colour} in {name}"
    return ""


def _shown(keys: Keys, colours: Pixels) -> Keys:
    shown = keys.copy()
    with_colour = (keys >= 0) & (keys < len(colours))
    rgb = colours[keys[with_colour]].astype(np.int32)
    shown[with_colour] = -1 - ((rgb[:, 0] << 16) + (rgb[:, 1] << 8) + rgb[:, 2])
    return shown


def _meaning(keys: Keys, meanings: list[tuple[int | str, int]]) -> Keys:
    table = np.full(len(keys), UNKNOWN, dtype=np.int32)
    for value, label in meanings:
        low, high = mask_span(value)
        table[(keys >= low) & (keys <= high)] = label
    return table


def is_colour(value: int | str) -> bool:
    """Return whether a mask value is ``#rrggbb``."""
    return isinstance(value, str) and value.startswith("#")


def _colour(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"
