"""Check that the files that the manifest lists have not changed. This runs before a cache is reported as complete."""

from __future__ import annotations

import os
from pathlib import Path

from fmcache.demand import Demand
from fmcache.errors import ManifestError, some
from fmcache.manifest import FileDataset
from fmcache.remembered import Remembered
from fmcache.runtime.prefetch import pool_of, prefetch
from fmcache.runtime.progress import progress

MANY = 200
"""Progress is shown for at least this many files."""


def check_sources(demand: Demand, folder: Path, remembered: Remembered) -> None:
    """Compare the images and masks of `demand`, below the manifest's folder, with the hashes that the manifest lists.

    A file with the same size, times and inode as last time is not read again.

    Raises
    ------
    ManifestError
        When files are missing, unreadable or changed. The message names the first of them and gives their number.
    """
    name, dataset = demand.name, demand.dataset
    if not isinstance(dataset, FileDataset):
        return
    root = folder / dataset.root
    listed = [
        (root / file, sha256)
        for entry in demand.entries
        for file, sha256 in ((entry.image, entry.image_sha256), (entry.mask, entry.mask_sha256))
    ]

    def state(file: tuple[Path, str]) -> str:
        path, sha256 = file
        try:
            return "" if remembered.sha256(path) == sha256 else "has changed"
        except OSError as reason:
            return reason.strerror or "cannot be read"

    threads = min(8, os.cpu_count() or 1)
    with pool_of(threads, "hash") as pool:
        states = prefetch(pool, state, listed, 4 * threads)
        if len(listed) < MANY:
            found = list(states)
        else:
            found = []
            with progress(f"{name} · checking files", len(listed), "files") as tick:
                for one in states:
                    found.append(one)
                    tick(1)
    remembered.keep()
    odd = [f"{path} ({what})" for (path, _), what in zip(listed, found, strict=True) if what]
    if odd:
        raise ManifestError(
            f"{len(odd)} of {len(listed)} files of {name!r} are not the files that the manifest lists",
            expected="files with the listed sha256",
            found=some(odd),
            next_step="restore them, or list the new files with fmcache data add --replace, then compute their caches "
            "again with --recompute",
        )
