"""data_manifest.yaml -> Manifest: the one list of inputs. Datasets, tiles, checksums, labels, um/px, groups and splits.

Only the file itself is read here; images and masks are opened (and hash-checked) in `fmcache.tiles`, so that stage two
can read the manifest on a machine that has no images.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal

from fmcache.errors import ManifestError
from fmcache.strict import Document, Frozen

IGNORE = 255
"""Label id of pixels that are neither trained on nor scored."""

FORMAT = 1
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Label(Frozen, frozen=True):
    """A label: its name, display colour (``#rrggbb``) and the mask values that mean it.

    `values` are grey or palette indices (0..255), or ``#rrggbb`` colours of an RGB mask.
    """

    name: str
    colour: str
    values: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        if not _COLOUR.fullmatch(self.colour):
            raise ValueError(f"colour of label {self.name!r}: expected '#rrggbb', found {self.colour!r}")
        check_mask_values(self.values)


class TileEntry(Frozen, frozen=True):
    """One tile: its id, group (patient or slide; tiles of a group never part) and, for files, paths and sha256."""

    id: str
    group: str = ""
    image: str = ""
    mask: str = ""
    image_sha256: str = ""
    mask_sha256: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.id):
            raise ValueError(f"tile id {self.id!r}: expected letters, digits, '.', '_' and '-'")
        for digest in (self.image_sha256, self.mask_sha256):
            if digest and not _SHA256.fullmatch(digest):
                raise ValueError(f"tile {self.id!r}: expected a sha256 of 64 hex digits, found {digest!r}")


class Splits(Frozen, frozen=True):
    """Tile ids to train on, to choose the weights with, and to test on.

    `subsets` are the steps of a learning curve: parts of `train`, smallest first, each inside the next.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    subsets: tuple[tuple[str, ...], ...] = ()

    def of(self, split: Split) -> tuple[str, ...]:
        """Return the tile ids of one split."""
        ids: tuple[str, ...] = getattr(self, split)
        return ids


class Dataset(Frozen, frozen=True, tag_field="format"):
    """What every dataset has: labels, tiles, splits, and where its pixels stand in the world."""

    labels: tuple[Label, ...]
    tiles: tuple[TileEntry, ...]
    splits: Splits
    title: str = ""
    source: str = ""
    licence: str = ""
    mpp: float | None = None
    """um per pixel of the images as they are listed; None when unknown."""
    folds: tuple[Splits, ...] = ()
    """Rotating splits beside the fixed one, for recipes with ``folds: true``; each tile is tested in one of them."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels; the position is the label id in masks and counts."""
        return tuple(label.name for label in self.labels)


class DemoDataset(Dataset, frozen=True, tag="demo", kw_only=True):
    """Tiles drawn procedurally from `seed`, at `size_px`; needs no files."""

    seed: int
    size_px: int = 512


class FolderDataset(Dataset, frozen=True, tag="folder", kw_only=True):
    """Images and masks in files below `root` (relative to the manifest, or absolute).

    `ignore_values` are mask values, written as in `Label.values`, that become the ignore label.
    """

    root: str
    ignore_values: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        check_mask_values(self.ignore_values)


AnyDataset = DemoDataset | FolderDataset


class _Head(Frozen, frozen=True):
    format: int
    default: str
    datasets: dict[str, dict[str, object]]


class Manifest:
    """The parsed manifest.

    Attributes
    ----------
    path
        The file; `folder` is where relative roots start.
    default
        Name of the dataset used when none is asked for.
    datasets
        Dataset by name.

    Raises
    ------
    ManifestError
        With file, line and key: unknown key, wrong type, repeated id, a tile in two splits, a group in two splits (of
        the fixed split or of any fold), an empty split, a tile tested in two folds, subsets that are not nested, a
        label that is there twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document = Document(path, ManifestError)
        head: _Head = self._document.convert(_Head)
        if head.format != FORMAT:
            raise ManifestError(
                f"{self._document.where('format')}: this manifest has another format",
                expected=f"format: {FORMAT}",
                found=f"format: {head.format}",
                next_step="install the fmcache release that wrote it, or rewrite the manifest",
            )
        self.default = head.default
        self.datasets: dict[str, AnyDataset] = {
            name: self._document.convert(AnyDataset, "datasets", name) for name in head.datasets
        }
        for name, dataset in self.datasets.items():
            self._check(name, dataset)
        if self.default not in self.datasets:
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
        """Return a dataset by name; the default one for an empty name.

        Raises
        ------
        ManifestError
            When no dataset has this name.
        """
        try:
            return self.datasets[name or self.default]
        except KeyError:
            raise ManifestError(
                f"{self.path} lists no dataset {name!r}",
                expected=" or ".join(self.datasets),
                next_step=f"fmcache data add {name} --images DIR --masks DIR --labels ...",
            ) from None

    def where(self, dataset: str, tile_id: str = "", key: str = "") -> str:
        """Return ``file:line: key`` of a dataset, of one of its tiles, or of a key there."""
        at: list[str | int] = ["datasets", dataset]
        if tile_id:
            ids = [tile.id for tile in self.datasets[dataset].tiles]
            at += ["tiles", ids.index(tile_id)]
        return self._document.where(*at, *([key] if key else []))

    def _check(self, name: str, dataset: AnyDataset) -> None:
        def refuse(at: tuple[str | int, ...], problem: str, next_step: str) -> ManifestError:
            return ManifestError(f"{self._document.where('datasets', name, *at)}: {problem}", next_step=next_step)

        if not _NAME.fullmatch(name):
            raise refuse((), f"dataset name {name!r}", "use letters, digits, '.', '_' and '-'")
        if not 2 <= len(dataset.labels) < IGNORE:
            raise refuse(("labels",), f"expected 2 to 254 labels, found {len(dataset.labels)}", "list the labels")
        if twice := _repeated(dataset.label_names):
            raise refuse(("labels",), f"label {twice!r} is listed twice", "give every label its own name")
        values = [v for label in dataset.labels for v in label.values]
        values += dataset.ignore_values if isinstance(dataset, FolderDataset) else ()
        if twice := _repeated(values):
            raise refuse(("labels",), f"mask value {twice!r} means two things", "list each mask value once")
        ids = [tile.id for tile in dataset.tiles]
        if twice := _repeated(ids):
            second = max(i for i, tile_id in enumerate(ids) if tile_id == twice)
            raise refuse(("tiles", second), f"tile id {twice!r} is listed twice", "give every tile its own id")
        if isinstance(dataset, FolderDataset):
            for i, tile in enumerate(dataset.tiles):
                if not (tile.image and tile.mask and tile.image_sha256 and tile.mask_sha256):
                    keys = "image, mask, image_sha256 and mask_sha256"
                    raise refuse(("tiles", i), f"tile {tile.id!r} needs {keys}", "fmcache data add writes them")
        groups = {tile.id: tile.group for tile in dataset.tiles}
        self._check_splits(groups, dataset.splits, "datasets", name, "splits")
        for i, fold in enumerate(dataset.folds):
            self._check_splits(groups, fold, "datasets", name, "folds", i)
        if twice := _repeated([tile_id for fold in dataset.folds for tile_id in fold.test]):
            raise refuse(("folds",), f"tile {twice!r} is tested in two folds", f"fmcache data split {name} --folds K")

    def _check_splits(self, groups: dict[str, str], splits: Splits, *key: str | int) -> None:
        split_of: dict[str, str] = {}
        split_of_group: dict[str, tuple[str, str]] = {}
        for split in SPLITS:
            at = self._document.where(*key, split)
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
            # what lies inside the training tiles cannot share a group with the tiles tested on
            if not subset or not set(subset) <= outer or len(set(subset)) < len(subset):
                raise ManifestError(
                    f"{self._document.where(*key, 'subsets', i)}: the subset is not part of the next larger one",
                    expected="training tiles, each once; smallest subset first, each inside the next",
                    next_step="fmcache data split NAME --subsets 5,10,15 writes them",
                )
            outer = set(subset)


def check_mask_values(values: tuple[int | str, ...]) -> None:
    """Raise ValueError unless every mask value is 0..255 or ``#rrggbb``."""
    for value in values:
        if isinstance(value, int) and not 0 <= value <= 255:
            raise ValueError(f"mask value {value}: expected 0 to 255 or '#rrggbb'")
        if isinstance(value, str) and not _COLOUR.fullmatch(value):
            raise ValueError(f"mask value {value!r}: expected 0 to 255 or '#rrggbb'")


def _repeated(values: list[int | str] | list[str] | tuple[str, ...]) -> int | str | None:
    return next((value for value, n in Counter(values).items() if n > 1), None)
