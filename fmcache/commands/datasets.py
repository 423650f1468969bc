"""The table of `fmcache data list`: what the manifest says of each dataset. No image is opened."""

from __future__ import annotations

from rich import box
from rich.table import Table

from fmcache.manifest import SPLITS, AnyDataset, FileDataset, Manifest


def list_datasets(listed: Manifest) -> Table:
    """Return a table of the datasets of a manifest, including those that are not fetched yet."""
    caption = f"default dataset: {listed.default}\nsplit: tiles to train / validate / test"
    if listed.unfetched:
        caption += "\nnot fetched: fmcache data fetch NAME downloads it, or says which files are needed and where"
    table = Table(caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("name", "tiles", "groups", "split", "folds", "subsets", "um/px"):
        table.add_column(column, no_wrap=True)
    for column in ("labels", "files", "licence"):
        table.add_column(column)
    for name in sorted(listed.datasets | listed.unfetched):
        known = listed.datasets.get(name)
        dataset: AnyDataset = known or listed.unfetched[name]
        sizes = _sizes(known) if known else ("–",) * 5
        mpp = f"{dataset.mpp:g}" if dataset.mpp else "–"
        table.add_row(name, *sizes, mpp, ", ".join(dataset.label_names), _files(listed, name), dataset.licence or "–")
    return table


def _sizes(dataset: AnyDataset) -> tuple[str, ...]:
    """Return tiles, groups (a tile without a group counts as one group), split, folds and subsets, as table cells."""
    groups = {tile.group or f"\0{tile.id}" for tile in dataset.tiles}
    split = "/".join(str(len(dataset.splits.of(part))) for part in SPLITS)
    subsets = ",".join(str(len(subset)) for subset in dataset.splits.subsets)
    return str(len(dataset.tiles)), str(len(groups)), split, str(len(dataset.folds) or "–"), subsets or "–"


def _files(listed: Manifest, name: str) -> str:
    if name in listed.unfetched:
        return "not fetched"
    dataset = listed.datasets[name]
    if not isinstance(dataset, FileDataset):
        return "drawn"
    return dataset.root if (listed.folder / dataset.root).is_dir() else f"missing: {dataset.root}"
