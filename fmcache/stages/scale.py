"""The um/px that the manifest states: no pixel depends on it, so it is in no identity, but results state it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmcache.cache.header import Header, read_header
from fmcache.errors import CacheMismatch, CacheNotFound
from fmcache.identity import differences
from fmcache.manifest import AnyDataset, FileDataset


def scale_of(dataset: AnyDataset) -> dict[str, Any]:
    """Return the um/px that a dataset states of its files, and that encoders must see (None: unknown, or any)."""
    return {"mpp": dataset.mpp, "view_mpp": dataset.view_mpp if isinstance(dataset, FileDataset) else None}


def is_recorded(path: Path, dataset: AnyDataset) -> bool:
    """Return whether the mask cache at `path` says what the dataset states; True when there is none yet."""
    try:
        return differences(scale_of(dataset), _recorded(read_header(path), dataset)) == []
    except CacheNotFound:
        return True


def check_scale(path: Path, header: Header, dataset: AnyDataset) -> None:
    """Check that a dataset states the um/px that it did when its mask cache was made, or last gone through by extract.

    A mask cache that says nothing of it (of fmcache 0.1.0) is taken as it is.

    Raises
    ------
    CacheMismatch
        Naming what differs.
    """
    recorded = _recorded(header, dataset)
    stated = {field: value for field, value in scale_of(dataset).items() if field in recorded}
    if lines := differences(stated, recorded):
        raise CacheMismatch(
            f"{path} was made when the manifest stated another um/px:\n    " + "\n    ".join(lines),
            next_step="restore it in the manifest, or run the same fmcache extract again: it runs no encoder, "
            "and records what the manifest states now",
        )


def _recorded(header: Header, dataset: AnyDataset) -> dict[str, Any]:
    return {field: header.about[field] for field in scale_of(dataset) if field in header.about}
