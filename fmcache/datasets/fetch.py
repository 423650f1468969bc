"""`fmcache data fetch`: download or find the files of a dataset, list and split them, keep the list in a lock file.

In an existing lock file, only the folder of the files may change. Fetching again on any machine therefore gives the
same tiles and the same splits, or an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from fmcache.datasets import download
from fmcache.datasets.archives import unpack
from fmcache.datasets.balance import balanced_split
from fmcache.datasets.entries import WAIT_S
from fmcache.datasets.folder import find_pairs
from fmcache.datasets.groups import group_of
from fmcache.datasets.listing import Listing, list_tiles
from fmcache.datasets.split_remarks import lacking_labels, split_line
from fmcache.datasets.split_sizes import split_sizes
from fmcache.errors import Busy, ManifestError, SpecError
from fmcache.identity import sha256_file, sweep_beside, whole_file
from fmcache.locks import locked
from fmcache.manifest import FORMAT, SPLITS, Archive, Fetch, FolderDataset, GeojsonDataset, Lock, Manifest, Splits
from fmcache.runtime.progress import progress
from fmcache.strict import builtins
from fmcache.tiles.geojson import ENDINGS as REGIONS
from fmcache.tiles.pictures import MASK_SUFFIXES

HEADER = """\
# Tiles, hashes and splits of dataset {name}, written by `fmcache data fetch {name}`. Results refer to them.
# Keep this file with the manifest: with it, fetching again gives the same tiles and splits, or an error.
"""


def fetch(manifest: Manifest, name: str, into: Path | None = None, source: str = "") -> str:
    """Fetch the files of a dataset to `into` (default: its root) and write its lock file; return lines on the result.

    Parameters
    ----------
    source
        Address of the archives, used instead of the manifest's `url`. ``{file}`` stands for the archive's name; without
        ``{file}``, the name is appended.

    Raises
    ------
    SpecError
        When the dataset has no `fetch` entry.
    DataUnavailable, ManifestError, TileError
        When files are unavailable, differ from those listed or recorded, or cannot be used.
    """
    dataset, how = _how(manifest, name)
    locked = manifest.datasets.get(name)
    root = (into or manifest.folder / dataset.root).resolve()
    if locked and _all_there(dataset, root, name):
        _write(manifest, name, Lock(FORMAT, _listed_root(root, manifest), locked.tiles, locked.splits))
        return f"{name}: complete, {len(locked.tiles)} tiles in {root}"
    new: list[str] = []
    said: list[str] = []
    if how.archives:
        root.mkdir(parents=True, exist_ok=True)
        new = _bring(dataset, how, root, source)
    listing = _list(manifest, name, dataset, how, root)
    if locked:
        _refuse_other(manifest, name, dataset, listing)
        lock = Lock(FORMAT, _listed_root(root, manifest), locked.tiles, locked.splits)
    else:
        splits, said = _splits(manifest, name, how, listing)
        lock = Lock(FORMAT, _listed_root(root, manifest), listing.entries, splits)
    _write(manifest, name, lock)
    parts = [f"{manifest.lock_path(name)}: {len(lock.tiles)} tiles in {root}", *said[:1]]
    if new:
        parts.append(f"checksums recorded at this first download: {', '.join(new)}")
    return "\n".join(["; ".join(parts), *(f"note: {line}" for line in (*said[1:], *listing.notes))])


def _how(manifest: Manifest, name: str) -> tuple[FolderDataset | GeojsonDataset, Fetch]:
    dataset = manifest.unfetched.get(name) or manifest.dataset(name)
    how = dataset.fetch if isinstance(dataset, FolderDataset | GeojsonDataset) else None
    if not isinstance(dataset, FolderDataset | GeojsonDataset) or how is None:
        fetched = [n for n, d in (manifest.datasets | manifest.unfetched).items() if getattr(d, "fetch", None)]
        raise SpecError(
            f"dataset {name!r} has nothing to fetch",
            expected=" or ".join(fetched) or "a dataset with `fetch:` in the manifest",
            next_step=f"fmcache data check {name}",
        )
    return dataset, how


def _all_there(dataset: FolderDataset | GeojsonDataset, root: Path, name: str) -> bool:
    """Return whether every file of the lock file is in `root` and has the listed hash."""
    files = [(tile.image, tile.image_sha256) for tile in dataset.tiles]
    files += [(tile.mask, tile.mask_sha256) for tile in dataset.tiles]
    if not all((root / file).is_file() for file, _ in files):
        return False
    with progress(f"checking {name}", len(files), "files") as tick:
        for file, listed in files:
            if sha256_file(root / file) != listed:
                return False
            tick(1)
    return True


def _bring(dataset: FolderDataset | GeojsonDataset, how: Fetch, root: Path, source: str) -> list[str]:
    """Download, check and unpack all archives; return the names of those whose checksum was not known before."""
    new = []
    try:
        with locked(root / "fetch"):
            for archive in how.archives:
                path, url = root / archive.file, _url(source or how.url, archive)
                fresh = not path.exists()
                if fresh:
                    download.download_file(url, path)
                sha256 = download.check_file(path, archive, url, fresh)
                regions = archive.holds == "masks" and isinstance(dataset, GeojsonDataset)
                unpack(path, root / getattr(how, archive.holds), REGIONS if regions else MASK_SUFFIXES)
                # recorded only now: later downloads must not be checked against a file that cannot be unpacked
                first = download.Recorded(path.stat().st_size, sha256, url)
                if download.downloads(path.parent).add(path.name, first) and not archive.md5:
                    new.append(archive.file)
    except Busy as busy:
        raise Busy(f"another process is fetching into {root}", found=busy.found, next_step=busy.next_step) from None
    return new


def _list(manifest: Manifest, name: str, dataset: FolderDataset | GeojsonDataset, how: Fetch, root: Path) -> Listing:
    images, masks = root / how.images, root / how.masks
    if not images.is_dir() or not masks.is_dir():
        raise ManifestError(
            f"{manifest.where(name)}: the folders of {name!r} do not exist",
            expected=f"{images} and {masks}\n{how.place}".rstrip(),
            next_step=f"put the files there (or pass --into DIR), then run fmcache data fetch {name}",
        )
    pairs = find_pairs(images, masks)
    with progress(f"reading {name}", len(pairs), "tiles") as tick:
        return list_tiles(dataset, pairs, group_of(how.groups, pairs), root, tick)


def _splits(manifest: Manifest, name: str, how: Fetch, listing: Listing) -> tuple[Splits, list[str]]:
    """Return the splits, and lines that report their sizes and balance, then the labels that they lack."""
    ids, groups = [e.id for e in listing.entries], [e.group for e in listing.entries]
    way = f"write `split: {{}}` below `fetch:` of {name} in {manifest.path}"
    sizes = split_sizes(how.split)
    chosen = balanced_split(ids, groups, listing.pixels, sizes, how.seed, way)
    train, val, test = (tuple(ids[i] for i in members) for members in chosen.members)
    names = manifest.unfetched[name].label_names
    lacking = lacking_labels(chosen.members, listing.pixels, names, groups)
    return Splits(train, val, test), [split_line(chosen, len(ids), sizes), *lacking]


def _refuse_other(manifest: Manifest, name: str, dataset: FolderDataset | GeojsonDataset, listing: Listing) -> None:
    """Refuse files that differ from those of the lock file. Groups and splits of the lock file are kept."""
    listed = {tile.id: (tile.image_sha256, tile.mask_sha256) for tile in dataset.tiles}
    found = {tile.id: (tile.image_sha256, tile.mask_sha256) for tile in listing.entries}
    if odd := sorted(id_ for id_ in listed.keys() | found.keys() if listed.get(id_) != found.get(id_)):
        raise ManifestError(
            f"the files of {name!r} are not those that {manifest.lock_path(name)} lists",
            expected=f"{len(listed)} tiles with the hashes of the lock file",
            found=f"{len(odd)} that differ, are missing or are new: {', '.join(odd[:5])}",
            next_step="restore the files; or remove the lock file to start again with other tiles and splits",
        )


def _url(source: str, archive: Archive) -> str:
    return (source if "{file}" in source else source.rstrip("/") + "/{file}").replace("{file}", archive.file)


def _listed_root(root: Path, manifest: Manifest) -> str:
    return Path(os.path.relpath(root, manifest.folder.resolve())).as_posix()


def _root_of(manifest: Manifest, name: str) -> str:
    dataset = manifest.dataset(name)
    return dataset.root if isinstance(dataset, FolderDataset | GeojsonDataset) else ""


def _write(manifest: Manifest, name: str, lock: Lock) -> None:
    if manifest.lock_path(name).exists() and name in manifest.datasets and _root_of(manifest, name) == lock.root:
        return
    document: dict[str, Any] = builtins(lock)
    document["tiles"] = [{key: text for key, text in tile.items() if text} for tile in document["tiles"]]
    document["splits"] = {split: list(lock.splits.of(split)) for split in SPLITS}
    # each innermost list or mapping is on one line, so each tile is on one line
    listed = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=4096)
    text = HEADER.format(name=name) + listed
    with locked(manifest.path, WAIT_S):
        Manifest(manifest.path, locks={name: text})
        sweep_beside(manifest.lock_path(name))
        with whole_file(manifest.lock_path(name)) as file:
            file.write(text.encode())
