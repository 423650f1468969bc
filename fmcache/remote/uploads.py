"""The upload of a cache while it is written: finished shards meanwhile, the seal at the end (REMOTE.md)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fmcache.cache.checksums import CHECKSUMS, DAMAGED, Record, bound_to
from fmcache.cache.header import ARRAY, FILLING, METADATA, ZARR_FORMAT, Header, read_header
from fmcache.errors import CacheCorrupt
from fmcache.identity import fingerprint
from fmcache.remote.background import repeated
from fmcache.remote.copied_shards import (
    CHUNKS,
    NAMED,
    OF,
    REDO,
    VIEWS,
    Place,
    Shards,
    Stamp,
    stored_places,
    stored_views,
)
from fmcache.remote.lease import Lease
from fmcache.remote.objects import THREADS
from fmcache.runtime.prefetch import pool_of, prefetch

if TYPE_CHECKING:
    from fmcache.remote.cache_copies import CacheCopy

POLL_S = 1.0


class Upload:
    """Writes shards to the URL while the body of `CacheCopy.writing` makes them, and at the end the seal."""

    def __init__(self, copy: CacheCopy, lease: Lease, there: dict[Place, Stamp]) -> None:
        self._copy, self._lease, self._there = copy, lease, there
        self._at, self._path, self._begun = copy.home.objects, copy.path, False
        self._stopped = threading.Event()

    def meanwhile(self) -> AbstractContextManager[None]:
        """Upload recorded shards in a thread while the body runs; raises as the uploads, after the body."""
        return repeated(self._upload_recorded, POLL_S, self._stopped)

    def finish(self) -> None:
        """Upload what is left; if the copy is sealed, write the seal to the URL, as the last object."""
        header = read_header(self._path)
        shards = self._copy.shards(header)
        stored = stored_places(header, shards)
        todo = self._todo(shards, stored)
        data, key = (self._path / METADATA).read_bytes(), self._copy.key(METADATA)
        if not (todo or self._begun) and (found := self._at.read(key)) and found.data == data:
            return
        self._begin(header, todo)
        for _ in self._copy.concurrently("write", functools.partial(self._upload, header, shards), todo):
            pass
        if header.state != "sealed":
            return
        listed, described = CHECKSUMS.format(header.checksums_sha256[:16]), f"{ARRAY[header.kind]}/{METADATA}"
        for name in (listed, described):
            self._lease.check()
            self._at.write(self._copy.key(name), (self._path / name).read_bytes())
        keep = {self._copy.key(listed), self._copy.key(described), *(self._copy.key_of(shards, one) for one in stored)}
        listing = self._at.below(self._copy.key())
        if lacking := keep - listing.keys():
            raise CacheCorrupt(f"{self._at.url(min(lacking))} is missing: the cache is not sealed", next_step=REDO)
        self._lease.check()
        self._at.write(key, data)  # from here the cache is complete
        marks = {self._copy.key(f"{DAMAGED}/{name}") for name in names_in(self._path / DAMAGED)}
        self._at.remove(listing.keys() - keep - marks - {key})

    def _upload_recorded(self) -> None:
        named = [found for found in map(NAMED.fullmatch, names_in(self._path / FILLING)) if found]
        header = read_header(self._path) if named else None
        if header is None or header.state != "filling":
            return
        shards = self._copy.shards(header)
        todo = self._todo(shards, [(int(one[1]), int(one[2])) for one in named])
        self._begin(header, todo)
        with pool_of(THREADS, "store") as pool:
            for _ in prefetch(pool, functools.partial(self._upload, header, shards), todo, 2 * THREADS):
                pass

    def _todo(self, shards: Shards, places: Iterable[Place]) -> list[Place]:
        return [place for place in places if (stamp := shards.stamp(place)) and stamp != self._there.get(place)]

    def _begin(self, header: Header, todo: Sequence[Place]) -> None:
        """Say at the URL that the cache is filling, before the first of its shards changes."""
        if self._begun or not todo:
            return
        filling = msgspec.structs.replace(header, state="filling", array_sha256="")
        if header.state == "sealed":  # what it says is stored is not at the URL yet: metadata of each shard decides
            filling = msgspec.structs.replace(filling, stored=(), checksums_sha256="")
        self._lease.check()
        described = f"{ARRAY[header.kind]}/{METADATA}"
        self._at.write(self._copy.key(described), (self._path / described).read_bytes())
        said = {"attributes": filling.attributes(), "zarr_format": ZARR_FORMAT, "node_type": "group"}
        self._at.write(self._copy.key(METADATA), msgspec.json.encode(said))
        self._begun = True

    def _upload(self, header: Header, shards: Shards, place: Place) -> None:
        stamp, name = shards.stamp(place), f"{place[0]}.{place[1]}"
        of, views = bound_to(header.identity, header.tiles[place[0]]), stored_views(header, shards, place)
        if header.state == "filling":
            try:
                record = msgspec.json.decode((self._path / FILLING / name).read_bytes(), type=Record)
            except (FileNotFoundError, msgspec.DecodeError):  # sealed in this moment: `finish` uploads it
                return
            of, views = record.of, len(record.crc32c)
        if self._stopped.is_set() or stamp is None:
            return
        crcs = shards.crcs(place, views)
        if crcs is None and shards.files:
            found = "the file lacks views, or is damaged"
            raise CacheCorrupt(f"{shards.path(place)} is not uploaded", found=found, next_step=REDO)
        metadata = {OF: of, VIEWS: str(views), CHUNKS: fingerprint(crcs)}
        self._lease.check()
        self._at.write(self._copy.key_of(shards, place), shards.path(place).read_bytes(), metadata)
        self._there[place] = stamp


def names_in(folder: Path) -> list[str]:
    try:
        return [file.name for file in folder.iterdir()]
    except FileNotFoundError:  # also when the writer removes it in this moment, because it seals the cache
        return []
