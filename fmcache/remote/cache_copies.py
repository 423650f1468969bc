"""The local copy of one cache at a URL: read it from there, and write to it what an extract finished (REMOTE.md).

Every file of a cache is one object with the same bytes. A shard's object also states, as metadata, what the record of
the shard states on disk: so a cache whose upload was interrupted is resumed on any machine.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fmcache.cache.checksums import (
    CHECKSUMS,
    DAMAGED,
    Record,
    bound_to,
    drop_other_checksums,
    mark_damaged,
    read_checksums,
    write_record,
)
from fmcache.cache.header import ARRAY, FILLING, METADATA, Header, parse_header, read_header
from fmcache.cache.shardfile import shard_files
from fmcache.cache.zarr_array import open_array
from fmcache.errors import CacheCorrupt, CacheNotFound
from fmcache.identity import fingerprint, remove_folder, sha256_file, whole_file
from fmcache.locks import locked
from fmcache.remote.copied_shards import (
    CHUNKS,
    NAMED,
    OF,
    REDO,
    VIEWS,
    Place,
    Shards,
    Stamp,
    is_listed,
    listed_crcs,
    stored_places,
    stored_views,
)
from fmcache.remote.copies import Home
from fmcache.remote.lease import leased
from fmcache.remote.objects import THREADS, Found
from fmcache.remote.shard_parts import index_bytes, joined, shard_of, spans_of
from fmcache.remote.uploads import Upload
from fmcache.runtime.prefetch import pool_of, prefetch
from fmcache.runtime.progress import progress

WAIT_S = 60.0
"""Seconds to wait for another process of this machine that changes the same copy."""


class CacheCopy:
    """The copy at `path`, in the folder of `home`."""

    def __init__(self, home: Home, path: Path) -> None:
        self.home, self.path, self._at = home, path, home.objects

    def key(self, name: str = "") -> str:
        """Return the key of the cache, or of a file in it."""
        return "/".join([self.home.key(self.path), *([name] if name else [])])

    def header(self) -> Header:
        """Return the header at the URL; raises as `read_header`."""
        if not (found := self._at.read(self.key(METADATA))):
            url, step = self.home.url(self.path), "run fmcache extract: it creates the cache"
            raise CacheNotFound(f"there is no cache {url}", next_step=step)
        return _parsed(self.path, found)

    def exists(self) -> bool:
        """Return whether there is a cache at the URL, in whatever state."""
        return self._at.facts(self.key(METADATA)) is not None

    def bytes(self) -> int:
        """Return the bytes of all objects of the cache."""
        return sum(one.size for one in self._at.below(self.key()).values())

    def fetch(self, demand: Mapping[str, int] | None = None, *, fresh: bool = False) -> None:
        """Read what the copy lacks of a sealed cache; nothing of one that is not sealed, which readers refuse.

        Without a cache at the URL, the copy is removed: the URL decides.

        Parameters
        ----------
        demand
            Number of views by tile: only these views are read. None: all.
        fresh
            Read every shard again, also those that the copy has.
        """
        with locked(self.path, WAIT_S):
            header = self._adopted()
            if header and header.state == "sealed":
                self._fetch_shards(header, demand, fresh=fresh, strict=demand is not None)

    @contextlib.contextmanager
    def writing(self, *, recompute: bool = False) -> Iterator[None]:
        """Hold the cache's lease; the body extends the copy, and finished shards are uploaded meanwhile, then the seal.

        `recompute`: first remove the cache at the URL.

        Raises
        ------
        Busy
            When another process writes the cache at the URL.
        StoreUnavailable
            When the store refuses, does not answer, or has no conditional writes. Finished shards stay in the copy, and
            the next extract uploads them.
        """
        with leased(self._at, self._beside("lock")) as lease:
            if recompute:
                self._remove(self._at.below(self.key()))
            with locked(self.path, WAIT_S):
                there = self._fetch_for_writing()
            upload = Upload(self, lease, there)
            with upload.meanwhile():
                yield
            upload.finish()

    def push_marks(self) -> None:
        """Write the marks of damaged shards to the URL: the next extract on any machine writes these shards again."""
        for mark in sorted((self.path / DAMAGED).glob("[0-9]*")):
            self._at.write(self.key(f"{DAMAGED}/{mark.name}"), b"")

    def remove(self) -> int:
        """Remove the cache at the URL and its copy; return the freed bytes of the URL. The header goes first.

        Raises
        ------
        CacheNotFound, Busy, StoreUnavailable
            As `writing`, and when there is nothing at the URL.
        """
        if not (listed := self._at.below(self.key())):
            step = "fmcache cache ls --work URL lists all caches"
            raise CacheNotFound(f"there is no cache {self.home.url(self.path)}", next_step=step)
        with leased(self._at, self._beside("lock")):
            self._remove(listed)
            with locked(self.path, WAIT_S):
                remove_folder(self.path)
        return sum(one.size for one in listed.values())

    def _remove(self, listed: Iterable[str]) -> None:
        """Remove objects of the cache. Without the header, which goes first, the rest is no cache."""
        self._at.remove([self.key(METADATA)])
        self._at.remove(key for key in listed if key != self.key(METADATA))

    def _beside(self, ending: str) -> str:
        return self.home.key(self.path.with_name(f".{self.path.name}.{ending}"))

    # reading

    def _adopted(self) -> Header | None:
        """Make header, array and list of the copy those of the URL; return the header, None when there is no cache.

        Shards that the new header does not hold are removed before it is written: a kill leaves nothing that is wrong.
        """
        found = self._at.read(self.key(METADATA))
        if found is None:
            remove_folder(self.path)
            return None
        header = _parsed(self.path, found)
        listed = [CHECKSUMS.format(header.checksums_sha256[:16])] if header.checksums_sha256 else []
        described = f"{ARRAY[header.kind]}/{METADATA}"
        whole = all((self.path / name).exists() for name in (METADATA, described, *listed))
        if whole and (self.path / METADATA).read_bytes() == found.data:
            return header
        for name in (described, *listed):
            if (one := self._at.read(self.key(name))) is None:
                step = f"fmcache cache rm {self.home.url(self.path)}, then run the same fmcache extract again"
                raise CacheCorrupt(f"{self._at.url(self.key(name))} is missing", next_step=step)
            _write(self.path / name, one.data)
        if header.state == "filling":
            self._record_sealed()
        self._prune(header)
        _write(self.path / METADATA, found.data)
        if header.state == "sealed":
            shutil.rmtree(self.path / FILLING, ignore_errors=True)
            drop_other_checksums(self.path, header)
        return header

    def _record_sealed(self) -> None:
        """Record the shards of a copy that is sealed while the URL is not: their upload was interrupted."""
        if not (self.path / METADATA).exists() or (mine := read_header(self.path)).state != "sealed":
            return
        described = self.path / ARRAY[mine.kind] / METADATA
        if mine.array_sha256 != sha256_file(described) or not (listed := read_checksums(self.path, mine)):
            return
        shards = self.shards(mine)
        for place in stored_places(mine, shards):
            views = stored_views(mine, shards, place)
            if (crcs := shards.crcs(place, views)) == listed_crcs(listed, shards, place, views):
                write_record(self.path, *place, Record(bound_to(mine.identity, mine.tiles[place[0]]), tuple(crcs)))

    def _prune(self, header: Header) -> None:
        """Remove shards of the copy whose chunks are not those of the list of a header."""
        shards, listed = self.shards(header), read_checksums(self.path, header)
        for file in list((shards.folder / "c").rglob("*")):
            place = shards.place(file.as_posix()) if file.is_file() else None
            if place is None or not (views := stored_views(header, shards, place)):
                continue  # of a filling cache: its record decides
            if listed is None or not shards.agree(place, listed_crcs(listed, shards, place, views)):
                file.unlink()

    def shards(self, header: Header) -> Shards:
        """Return the shards of the copy, whose array and header must be there."""
        array, folder = open_array(self.path, header), self.path / ARRAY[header.kind]
        return Shards(folder, int(array.shards[1]), array.ndim, shard_files(folder, array))

    def _fetch_shards(
        self, header: Header, demand: Mapping[str, int] | None, *, fresh: bool = False, strict: bool = False
    ) -> Shards:
        """Read missing shards. `strict`: raise for one that is missing or not of this cache; else leave it out.

        Of a shard from which `demand` needs fewer views than it has, only the chunks of these views are read.
        """
        shards, listed = self.shards(header), read_checksums(self.path, header)
        wanted = {
            (tile, block): min(views - block * shards.block, shards.block)
            for tile, (id_, stored) in enumerate(zip(header.tiles, header.stored, strict=False))
            for views in [stored if demand is None else min(stored, demand.get(id_, 0))]
            for block in range(-(-views // shards.block))
        }
        missing = [place for place, views in wanted.items() if fresh or not shards.hold(place, views)]

        def fetch(place: Place) -> str:
            views = stored_views(header, shards, place)
            crcs = listed_crcs(listed, shards, place, views) if listed is not None and shards.files else None
            if crcs and wanted[place] < views:
                return self._fetch_part(shards, place, crcs[: wanted[place]])
            found = self._at.read(self.key_of(shards, place))
            if found is None:
                shards.path(place).unlink(missing_ok=True)
                return _GONE
            _write(shards.path(place), found.data)
            there = shards.crcs(place, views)
            if crcs and (there is None or any(one != other for one, other in zip(there, crcs, strict=True) if other)):
                if not fresh:
                    shards.path(place).unlink()
                return _OTHER
            return ""

        for place, problem in self.concurrently("read", fetch, missing):
            if problem and strict:
                step = f"fmcache cache verify {self.home.url(self.path)}: it marks damaged shards for extract"
                raise CacheCorrupt(f"{self._at.url(self.key_of(shards, place))} {problem}", next_step=step)
        return shards

    def _fetch_part(self, shards: Shards, place: Place, listed: Sequence[int]) -> str:
        """Read the listed chunks, the first of a shard: its index, then ranges of bytes; return what is wrong.

        What the copy has of them is not read again. In the copy the shard is then partial (`shard_parts`).
        """
        key, chunks = self.key_of(shards, place), shards.chunks(place, listed)
        end = self._at.read_end(key, index_bytes(shards.block))
        if end is None:
            return _GONE
        try:
            spans = spans_of(end.data, shards.block)
            todo = {position: spans[position] for position in range(len(listed)) if position not in chunks}
            for first, stop in joined(todo.values()):
                if (data := self._at.read_range(key, first, stop, end.tag)) is None:
                    return _OTHER
                chunks |= {
                    position: data[span.first - first : span.stop - first]
                    for position, span in todo.items()
                    if first <= span.first < stop
                }
        except (ValueError, KeyError):
            return _OTHER
        if not all(is_listed(chunks[position], crc) for position, crc in enumerate(listed)):
            return _OTHER
        _write(shards.path(place), shard_of(chunks, shards.block))
        return ""

    def key_of(self, shards: Shards, place: Place) -> str:
        """Return the key of a shard."""
        return self.home.key(shards.path(place))

    def _fetch_for_writing(self) -> dict[Place, Stamp]:
        """Make the copy whole, so that a writer finds in it what the URL has; return the shards that are at the URL."""
        header = self._adopted()
        if header is None:
            return {}
        shards = self._fetch_shards(header, None)
        keys = self._at.below(self.key())
        for name in (key.rpartition("/")[2] for key in keys if key.startswith(self.key(f"{DAMAGED}/"))):
            if named := NAMED.fullmatch(name):
                mark_damaged(self.path, int(named[1]), int(named[2]))
        there = {place for key in keys if (place := shards.place(key))}
        if header.state == "filling":
            done = self.concurrently("read", lambda place: self._recorded(header, shards, place), sorted(there))
            there = {place for place, is_recorded in done if is_recorded}
        return {place: stamp for place in there if (stamp := shards.stamp(place))}

    def _recorded(self, header: Header, shards: Shards, place: Place) -> bool:
        """Read a shard of a filling cache, unless the copy has it, and record it. Return whether it counts."""
        key, tile = self.key_of(shards, place), place[0]
        facts = self._at.facts(key)
        if facts is None:
            return False
        of, views = facts.metadata.get(OF, ""), int(facts.metadata.get(VIEWS, "0"))
        if tile >= len(header.tiles) or of != bound_to(header.identity, header.tiles[tile]):
            return False
        crcs = shards.crcs(place, views)
        if crcs is None or fingerprint(crcs) != facts.metadata.get(CHUNKS):
            if (found := self._at.read(key)) is None:
                return False
            _write(shards.path(place), found.data)
            crcs = shards.crcs(place, views)
            if crcs is None or fingerprint(crcs) != facts.metadata.get(CHUNKS):
                shards.path(place).unlink(missing_ok=True)
                return False
        if not (self.path / DAMAGED / f"{place[0]}.{place[1]}").exists():
            write_record(self.path, *place, Record(of, tuple(crcs)))
        return True

    def concurrently(self, doing: str, one: Callable[[Place], Any], places: list[Place]) -> Iterator[tuple[Place, Any]]:
        """Yield (place, result) of requests for many shards, with progress."""
        if not places:
            return
        title = f"{self.home.url(self.path)} · {doing}"
        with progress(title, len(places), "shards") as tick, pool_of(THREADS, "store") as pool:
            for place, result in zip(places, prefetch(pool, one, places, 2 * THREADS), strict=True):
                tick(1)
                yield place, result


def _parsed(path: Path, found: Found) -> Header:
    """Return the header in a group's ``zarr.json`` at the URL of `path`; raises as `parse_header`."""
    try:
        attributes = msgspec.json.decode(found.data)["attributes"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as reason:
        raise CacheCorrupt(f"{path}: {METADATA} cannot be read", found=str(reason)[:200], next_step=REDO) from None
    return parse_header(path, attributes if isinstance(attributes, dict) else {})


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)


_GONE = "is missing"
_OTHER = "is damaged, or was written after the cache was opened"
