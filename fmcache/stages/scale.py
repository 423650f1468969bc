"""The um/px that the manifest states. No pixel depends on it, so it is not in any identity, but results state it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmcache.cache.header import Header, read_header
from fmcache.errors import CacheMismatch, CacheNotFound
from fmcache.identity import differences
from fmcache.manifest import AnyDataset, FileDataset


def scale_of(dataset: AnyDataset) -> dict[str, Any]:
    """Return the um/px of a dataset's files (`mpp`; None: unknown) and for encoders (`view_mpp`; None: any)."""
    return {"mpp": dataset.mpp, "view_mpp": dataset.view_mpp if isinstance(dataset, FileDataset) else None}


def is_recorded(path: Path, dataset: AnyDataset) -> bool:
    """Return whether the mask cache at `path` records the um/px that the dataset states; True if there is no cache."""
    try:
        return differences(scale_of(dataset), _recorded(read_header(path), dataset)) == []
    except CacheNotFound:
        return True


def check_scale(path: Path, header: Header, dataset: AnyDataset) -> None:
    """Check that a dataset still states the um/px that it stated when extract last wrote or checked its mask cache.

    A mask cache that records no um/px (written by fmcache 0.1.0) is accepted.

    Raises
    ------
    CacheMismatch
        When the um/px differ. The message names each difference.
    """
    recorded = _recorded(header, dataset)
    stated = {field: value for field, value in scale_of(dataset).items() if field in recorded}
    if lines := differences(stated, recorded):
        raise CacheMismatch(
            f"{path} was made when the manifest stated another um/px:\n    " + "\n    ".join(lines),
            next_step="restore the um/px in the manifest, or run the same fmcache extract again: it runs no encoder, "
            "and records the um/px that the manifest states now",
        )


def _recorded(header: Header, dataset: AnyDataset) -> dict[str, Any]:
    return {field: header.about[field] for field in scale_of(dataset) if field in header.about}
