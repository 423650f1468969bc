"""data_manifest.yaml -> Manifest: the only list of inputs. It lists datasets, tiles, checksums, labels, um/px, groups
and splits.

The tiles and splits of a dataset that is fetched are in its own lock file beside the manifest, ``NAME.lock.yaml``.

This module reads only these files. Images and masks are opened (and hash-checked) in `fmcache.tiles`, so that stage two
can read the manifest on a machine that has no images.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from fmcache.errors import ManifestError
from fmcache.strict import Document, Frozen, decodable

IGNORE = 255
"""Label id of pixels that are neither trained on nor scored."""

FORMAT = 1
MASK_MAX = 2**31 - 1
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

NAME_BYTES = 200  # of UTF-8; file names add to a name, and systems allow 255 bytes
RESERVED_NAMES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))]
)
"""Names that Windows reserves for devices, with any file ending."""

NAME_RULE = f"letters and digits of any script, '.', '_' and '-', at most {NAME_BYTES} bytes"

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_RANGE = re.compile(r"([0-9]+)-([0-9]*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_name_character(character: str) -> bool:
    """Return whether a name may contain a character: a letter, mark or digit of any script, '.', '_' or '-'."""
    return character in "._-" or unicodedata.category(character)[0] in "LMN"


def is_name(text: str) -> bool:
    """Return whether a text may be a dataset or tile id: it follows `NAME_RULE`, and is a safe file name everywhere.

    It starts with a letter or digit, does not end with a dot, is in Unicode NFC (so that equal names are equal text)
    and is not a name that Windows reserves.
    """
    return (
        0 < len(text.encode("utf-8", "surrogatepass")) <= NAME_BYTES
        and all(map(is_name_character, text))
        and unicodedata.category(text[0])[0] in "LN"
        and not text.endswith(".")
        and unicodedata.is_normalized("NFC", text)
        and text.partition(".")[0].lower() not in RESERVED_NAMES
    )


@decodable
class Label(Frozen, frozen=True):
    """A label: its name, display colour (``#rrggbb``) and the mask values that mean it.

    `values` are grey values or palette indices, ranges of them (``1-``: every instance of an instance mask), or
    ``#rrggbb`` colours of an RGB mask. For annotated regions they are names of classes; without `values` the class has
    the name of the label.
    """

    name: str
    colour: str
    values: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        if not _COLOUR.fullmatch(self.colour):
            raise ValueError(f"colour of label {self.name!r}: expected '#rrggbb', found {self.colour!r}")


@decodable
class TileEntry(Frozen, frozen=True):
    """One tile: its id, group (patient or slide; all its tiles are in one split) and, for files, paths and sha256."""

    id: str
    group: str = ""
    image: str = ""
    mask: str = ""
    image_sha256: str = ""
    mask_sha256: str = ""

    def __post_init__(self) -> None:
        if not is_name(self.id):
            raise ValueError(f"tile id {self.id!r}: expected {NAME_RULE}")
        for digest in (self.image_sha256, self.mask_sha256):
            if digest and not _SHA256.fullmatch(digest):
                raise ValueError(f"tile {self.id!r}: expected a sha256 of 64 hex digits, found {digest!r}")


@decodable
class Splits(Frozen, frozen=True):
    """Tile ids for training, for choosing the weights, and for testing.

    `subsets` are the steps of a learning curve: subsets of `train`, smallest first, each contained in the next.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    subsets: tuple[tuple[str, ...], ...] = ()

    def of(self, split: Split) -> tuple[str, ...]:
        """Return the tile ids of one split."""
        ids: tuple[str, ...] = getattr(self, split)
        return ids


@decodable
class Dataset(Frozen, frozen=True, tag_field="format"):
    """What every dataset has: labels, tiles, splits, origin and um/px."""

    labels: tuple[Label, ...]
    tiles: tuple[TileEntry, ...] = ()
    splits: Splits = Splits((), (), ())
    title: str = ""
    source: str = ""
    licence: str = ""
    mpp: float | None = None
    """um per pixel of the listed images; None when unknown."""
    folds: tuple[Splits, ...] = ()
    """Rotating splits besides the fixed split, for recipes with ``folds: true``; each tile is tested in one of them."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels; the position is the label id in masks and counts."""
        return tuple(label.name for label in self.labels)


@decodable
class DemoDataset(Dataset, frozen=True, tag="demo", kw_only=True):
    """Tiles drawn by a program from `seed`, with a side of `size_px`; needs no files."""

    seed: int
    size_px: int = 512


@decodable
class Archive(Frozen, frozen=True):
    """A zip file of images or masks. An unknown checksum is recorded at the first download."""

    file: str
    holds: Literal["images", "masks"]
    md5: str = ""


@decodable
class Fetch(Frozen, frozen=True):
    """How `fmcache data fetch` makes the list of tiles and splits, which is kept in a lock file beside the manifest.

    `url` is the address of the archives, with ``{file}`` for the file name. Without archives, the user puts the files
    in place, as `place` describes. `images` and `masks` are folders below the dataset's root; `groups`, `split` and
    `seed` are those of `fmcache data add`.
    """

    url: str = ""
    archives: tuple[Archive, ...] = ()
    place: str = ""
    images: str = "images"
    masks: str = "masks"
    groups: str = ""
    split: str = "15/5/10"
    seed: int = 0


@decodable
class FileDataset(Dataset, frozen=True, kw_only=True):
    """Images and masks in files below `root` (relative to the manifest, or absolute).

    `ignore_values` are mask values, written as in `Label.values`, that become the ignore label. `view_mpp` is the um
    per pixel that encoders must see: a recipe whose tile size gives another value is refused. A dataset that has
    `fetch` lists no tiles in the manifest.
    """

    root: str
    ignore_values: tuple[int | str, ...] = ()
    view_mpp: float | None = None
    fetch: Fetch | None = None


@decodable
class FolderDataset(FileDataset, frozen=True, tag="folder", kw_only=True):
    """Masks that are pictures: grey, palette or RGB."""

    def __post_init__(self) -> None:
        check_mask_values(self.ignore_values)


@decodable
class GeojsonDataset(FileDataset, frozen=True, tag="geojson", kw_only=True):
    """Masks that are annotated regions in pixels of the image, as QuPath exports them; values are names of classes.

    `order` lists all classes from lowest to highest: where regions overlap, the pixel gets the higher class. Without
    `order` it gets the class of the later region in the file. `fill` is the label of pixels in no region, or
    ``ignore``. Regions without a class have an empty class name.

    Regions whose class is in `skip` are left out. If `objects` lists kinds (QuPath's objectType), regions of other
    kinds are left out too. `class_property` is the property that names the class, if it is not QuPath's
    ``classification``.
    """

    order: tuple[str, ...] = ()
    fill: str = "ignore"
    skip: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    class_property: str = ""

    def classes(self) -> dict[str, int]:
        """Return label id by name of class, `IGNORE` for classes that are ignored."""
        ids = {str(value): IGNORE for value in self.ignore_values}
        for i, label in enumerate(self.labels):
            ids |= {str(value): i for value in label.values or (label.name,)}
        return ids

    def __post_init__(self) -> None:
        if self.fill not in (*self.label_names, "ignore"):
            raise ValueError(
                f"fill {self.fill!r}: expected ignore or a label: {', '.join(map(repr, self.label_names))}"
            )
        if self.order and sorted(self.order) != sorted(self.classes()):
            odd = sorted(set(self.order) ^ set(self.classes()))
            raise ValueError(
                f"order: expected each class of the labels once; see {', '.join(map(repr, odd or self.order))}"
            )
        if both := sorted(set(self.skip) & set(self.classes())):
            raise ValueError(f"skip: {', '.join(map(repr, both))} is also a class of a label or ignored; list it once")


AnyDataset = DemoDataset | FolderDataset | GeojsonDataset


@decodable
class Lock(Frozen, frozen=True):
    """What `fmcache data fetch` found: the folder of a dataset's files, its tiles with their hashes, its splits."""

    format: int
    root: str
    tiles: tuple[TileEntry, ...]
    splits: Splits


@decodable
class _Head(Frozen, frozen=True):
    format: int
    default: str
    datasets: dict[str, dict[str, object]]


class Manifest:
    """The parsed manifest.

    If `text` (and `locks`, the text of lock files by dataset) is given, it is read instead of the files: so files can
    be checked before they are written.

    Attributes
    ----------
    path
        The file; relative roots start from its `folder`.
    default
        Name of the dataset that is used when no name is given.
    datasets
        Dataset by name.
    unfetched
        Datasets whose tiles are not listed yet, because `fmcache data fetch` has not run for them.

    Raises
    ------
    ManifestError
        With file, line and key: unknown key, wrong type, repeated id, a tile in two splits, a group in two splits (of
        the fixed split or of any fold), an empty split, a tile tested in two folds, subsets that are not nested, a
        repeated label.
    """

    def __init__(self, path: Path, text: str | None = None, locks: Mapping[str, str] | None = None) -> None:
        self.path = path
        if text is None and not path.exists():
            step = "go to the folder that has it, name it with --manifest, or make one: fmcache data add --help"
            raise ManifestError(f"there is no manifest {path}: it lists the tiles of all datasets", next_step=step)
        self._document = Document(path, ManifestError, text)
        value = self._document.value
        if value is None or (isinstance(value, dict) and value.get("datasets", ...) in (None, {})):
            raise ManifestError(
                f"{path} lists no datasets",
                next_step="remove it: fmcache data add makes a new one with the first dataset",
            )
        head: _Head = self._document.convert(_Head)
        if head.format != FORMAT:
            raise ManifestError(
                f"{self._document.where('format')}: this manifest has another format version",
                expected=f"format: {FORMAT}",
                found=f"format: {head.format}",
                next_step="install the fmcache release that wrote the manifest, or write it again",
            )
        self.default = head.default
        self.datasets: dict[str, AnyDataset] = {}
        self.unfetched: dict[str, FolderDataset | GeojsonDataset] = {}
        self._locks: dict[str, Document] = {}
        self._lock_texts = locks or {}
        for name in head.datasets:
            self._add(name, self._document.convert(AnyDataset, "datasets", name))
        if self.default not in {**self.datasets, **self.unfetched}:
            raise ManifestError(
                f"{self._document.where('default')}: no dataset has this name",
                expected=", ".join(self.datasets) or "a dataset",
                found=self.default,
                next_step="name one of the datasets below `datasets:`",
            )

    @property
    def folder(self) -> Path:
        """The folder that relative roots start from."""
        return self.path.parent

    def dataset(self, name: str = "") -> AnyDataset:
        """Return a dataset by name; the default dataset for an empty name.

        Raises
        ------
        ManifestError
            When no dataset has this name, or its tiles are not listed yet.
        """
        name = name or self.default
        if name in self.unfetched:
            raise ManifestError(
                f"{self.where(name)}: the tiles of {name!r} are not fetched yet",
                expected=f"{self.lock_path(name)}, which lists them",
                next_step=f"fmcache data fetch {name}",
            )
        try:
            return self.datasets[name]
        except KeyError:
            raise ManifestError(
                f"{self.path} lists no dataset {name!r}",
                expected=" or ".join([*self.datasets, *self.unfetched]),
                next_step=f"fmcache data add {name} --images DIR --masks DIR --labels ...",
            ) from None

    def where(self, dataset: str, tile_id: str = "", key: str = "") -> str:
        """Return ``file:line: key`` of a dataset, of one of its tiles, or of one of their keys."""
        at: list[str | int] = []
        if tile_id:
            ids = [tile.id for tile in self.datasets[dataset].tiles]
            at += ["tiles", ids.index(tile_id)]
        return self._where(dataset, *at, *([key] if key else []))

    def lock_path(self, name: str) -> Path:
        """Return the file in which `fmcache data fetch` lists the tiles of a dataset."""
        return self.folder / f"{name}.lock.yaml"

    def _where(self, name: str, *at: str | int) -> str:
        if name in self._locks and at and at[0] in Lock.__struct_fields__:
            return self._locks[name].where(*at)
        return self._document.where("datasets", name, *at)

    def _add(self, name: str, dataset: AnyDataset) -> None:
        self.check_rules(name, dataset, lambda *at: self._where(name, *at))
        if not isinstance(dataset, DemoDataset) and dataset.fetch:
            if dataset.tiles or any(dataset.splits.of(split) for split in SPLITS):
                raise ManifestError(
                    f"{self._where(name, 'fetch')}: a fetched dataset lists no tiles and splits in the manifest",
                    next_step="remove `fetch:`, or `tiles:` and `splits:`",
                )
            text = self._lock_texts.get(name)
            if text is None and not self.lock_path(name).exists():
                self.unfetched[name] = dataset
                return
            self._locks[name] = Document(self.lock_path(name), ManifestError, text)
            lock: Lock = self._locks[name].convert(Lock)
            if lock.format != FORMAT:
                raise ManifestError(
                    f"{self._where(name, 'format')}: this lock file has another format version",
                    expected=f"format: {FORMAT}",
                    found=f"format: {lock.format}",
                    next_step=f"remove it and run fmcache data fetch {name}",
                )
            dataset = msgspec.structs.replace(dataset, root=lock.root, tiles=lock.tiles, splits=lock.splits)
        self.datasets[name] = dataset
        self._check_tiles(name, dataset)
        self._check_all_splits(name, dataset)

    @staticmethod
    def check_name(name: str, where: str = "NAME") -> None:
        """Raise ManifestError when a dataset cannot have this name."""
        if not is_name(name):
            raise ManifestError(f"{where}: dataset name {name!r}", next_step=f"use {NAME_RULE}")

    @staticmethod
    def check_rules(name: str, dataset: AnyDataset, where: Callable[..., str]) -> None:
        """Check the name, labels, mask values and um/px of a dataset; its tiles are not needed.

        `where` returns the place (file, line) of a key, for the message.

        Raises
        ------
        ManifestError
            With that place, when one of them is not allowed.
        """

        def refuse(at: tuple[str | int, ...], problem: str, next_step: str) -> ManifestError:
            return ManifestError(f"{where(*at)}: {problem}", next_step=next_step)

        Manifest.check_name(name, where())
        if not 2 <= len(dataset.labels) < IGNORE:
            raise refuse(("labels",), f"expected 2 to 254 labels, found {len(dataset.labels)}", "list 2 to 254")
        if twice := _repeated(dataset.label_names):
            raise refuse(("labels",), f"label {twice!r} is listed twice", "give every label its own name")
        for key in ("mpp", "view_mpp"):
            if (mpp := getattr(dataset, key, None)) is not None and not (math.isfinite(mpp) and mpp > 0):
                raise refuse((key,), f"{mpp:g} um per pixel", "give um per pixel above 0, such as 0.5, or leave it out")
        if isinstance(dataset, FileDataset) and dataset.view_mpp and not dataset.mpp:
            raise refuse(("view_mpp",), "it needs the um/px of the files", "add mpp:")
        values: list[int | str] = [v for label in dataset.labels for v in label.values]
        if isinstance(dataset, GeojsonDataset):
            values += [label.name for label in dataset.labels if not label.values]
        else:
            values = values or list(range(len(dataset.labels)))
            for i, label in enumerate(dataset.labels):
                try:
                    check_mask_values(label.values)
                except ValueError as reason:
                    raise refuse(("labels", i, "values"), str(reason), "correct it") from None
        values += dataset.ignore_values if isinstance(dataset, FileDataset) else ()
        if (twice := _repeated(values)) is not None:
            raise refuse(("labels",), f"mask value {twice!r} means two things", "list each mask value once")
        if not isinstance(dataset, GeojsonDataset) and (both := _overlapping(values)):
            raise refuse(("labels",), f"mask values {both} overlap", "list each mask value once")

    def _check_tiles(self, name: str, dataset: AnyDataset) -> None:
        ids = [tile.id for tile in dataset.tiles]
        if twice := _repeated(ids):
            second = max(i for i, tile_id in enumerate(ids) if tile_id == twice)
            raise ManifestError(
                f"{self._where(name, 'tiles', second)}: tile id {twice!r} is listed twice",
                next_step="give every tile its own id",
            )
        for i, tile in enumerate(dataset.tiles if isinstance(dataset, FileDataset) else ()):
            if not (tile.image and tile.mask and tile.image_sha256 and tile.mask_sha256):
                raise ManifestError(
                    f"{self._where(name, 'tiles', i)}: a tile needs image, mask, image_sha256 and mask_sha256",
                    found=f"tile {tile.id!r} without some of them",
                    next_step="fmcache data add writes them",
                )

    def _check_all_splits(self, name: str, dataset: AnyDataset) -> None:
        groups = {tile.id: tile.group for tile in dataset.tiles}
        self._check_splits(name, groups, dataset.splits, "splits")
        for i, fold in enumerate(dataset.folds):
            self._check_splits(name, groups, fold, "folds", i)
        if twice := _repeated([tile_id for fold in dataset.folds for tile_id in fold.test]):
            raise ManifestError(
                f"{self._where(name, 'folds')}: tile {twice!r} is tested in two folds",
                next_step=f"fmcache data split {name} --folds K",
            )

    def _check_splits(self, name: str, groups: dict[str, str], splits: Splits, *key: str | int) -> None:
        split_of: dict[str, str] = {}
        split_of_group: dict[str, tuple[str, str]] = {}
        for split in SPLITS:
            at = self._where(name, *key, split)
            if not splits.of(split):
                raise ManifestError(f"{at}: the split is empty", next_step="put at least one tile into it")
            for tile_id in splits.of(split):
                if tile_id not in groups:
                    raise ManifestError(f"{at}: no tile has the id {tile_id!r}", next_step="list it under tiles:")
                if tile_id in split_of:
                    raise ManifestError(
                        f"{at}: tile {tile_id!r} is in {split_of[tile_id]!r} and again in {split!r}",
                        next_step="keep each tile in one split, once",
                    )
                split_of[tile_id] = split
                if group := groups[tile_id]:
                    other, its_split = split_of_group.setdefault(group, (tile_id, split))
                    if its_split != split:
                        raise ManifestError(
                            f"{at}: group {group!r} is in two splits",
                            expected="all tiles of a patient or slide in one split",
                            found=f"tile {other!r} in {its_split!r}, tile {tile_id!r} in {split!r}",
                            next_step="move one of them, so that no test tile has a sibling in training",
                        )
        outer = set(splits.train)
        for i, subset in reversed(list(enumerate(splits.subsets))):
            # subsets of the training tiles share no group with val or test tiles, because train shares none
            if not subset or not set(subset) <= outer or len(set(subset)) < len(subset):
                raise ManifestError(
                    f"{self._where(name, *key, 'subsets', i)}: the subset is not part of the next larger one",
                    expected="training tiles, each once; smallest subset first, each inside the next",
                    next_step="fmcache data split NAME --subsets 5,10,15 writes them",
                )
            outer = set(subset)


def check_mask_values(values: tuple[int | str, ...]) -> None:
    """Raise ValueError unless every mask value is a number, a range or ``#rrggbb``."""
    for value in values:
        mask_span(value)


def mask_span(value: int | str) -> tuple[int, int]:
    """Return the first and last packed value that a mask value means.

    Numbers (0 to 2147483647) are packed unchanged. ``5-9`` and ``1-`` (to the end) are ranges, for masks that number
    instances. ``#rrggbb`` is packed as -1 minus its number, so that grey values and colours are never equal.

    Raises
    ------
    ValueError
        When the value is none of these.
    """
    if isinstance(value, str) and _COLOUR.fullmatch(value):
        return (-1 - int(value[1:], 16),) * 2
    found = _RANGE.fullmatch(value if isinstance(value, str) else f"{value}-{value}")
    low, high = (int(found[1]), int(found[2] or MASK_MAX)) if found else (1, 0)
    if not low <= high <= MASK_MAX:
        raise ValueError(f"mask value {value!r}: expected a number such as 3, a range such as 1- or 5-9, or '#rrggbb'")
    return low, high


def _overlapping(values: list[int | str]) -> str:
    """Return the text of two mask values that have a pixel value in common; '' when there are none."""
    spans = sorted((*mask_span(value), str(value)) for value in values)
    pairs = itertools.pairwise(spans)
    return next((f"{one} and {two}" for (_, last, one), (first, _, two) in pairs if first <= last), "")


def _repeated(values: list[int | str] | list[str] | tuple[str, ...]) -> int | str | None:
    return next((value for value, n in Counter(values).items() if n > 1), None)
