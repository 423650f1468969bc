"""The local copy of one cache at a URL: read it from there, and write to it what an extract finished (REMOTE.md).

Every file of a cache is one object with the same bytes. A shard's object also states, as metadata, what the record of
the shard states on disk: so a cache whose upload was interrupted is resumed on any machine.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fmcache.cache.checksums import (
    CHECKSUMS,
    DAMAGED,
    UNKNOWN,
    Crcs,
    Record,
    bound_to,
    drop_other_checksums,
    mark_damaged,
    read_checksums,
    write_record,
)
from fmcache.cache.header import ARRAY, FILLING, METADATA, ZARR_FORMAT, Header, parse_header, read_header
from fmcache.cache.shardfile import ShardFiles, shard_files
from fmcache.cache.zarr_array import open_array
from fmcache.errors import CacheCorrupt, CacheNotFound
from fmcache.identity import fingerprint, remove_folder, sha256_file, whole_file
from fmcache.locks import locked
from fmcache.remote.copies import Home
from fmcache.remote.lease import Lease, leased
from fmcache.remote.objects import THREADS, Found
from fmcache.remote.shard_parts import checked_crc, index_bytes, joined, shard_of, spans_of
from fmcache.runtime.prefetch import pool_of, prefetch
from fmcache.runtime.progress import progress

OF, VIEWS, CHUNKS = "fmcache-of", "fmcache-views", "fmcache-chunks"
"""Metadata of a shard's object: `of` of its record, the number of its views, the fingerprint of their CRC-32C."""
POLL_S = 1.0
STOP_S = 5.0
"""Seconds to wait for uploads under way when the body failed or was interrupted."""
WAIT_S = 60.0
"""Seconds to wait for another process of this machine that changes the same copy."""
_NAMED = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")

Place = tuple[int, int]
"""(tile, block) of a shard."""


class _Stamp(NamedTuple):
    size: int
    mtime_ns: int


class Shards(NamedTuple):
    """The shards of the copy of a cache; `files` is None when we do not write its format."""

    folder: Path
    block: int
    axes: int
    files: ShardFiles | None

    def path(self, place: Place) -> Path:
        return self.folder / "/".join(["c", *map(str, place), *["0"] * (self.axes - 2)])

    def place(self, key: str) -> Place | None:
        """Return the place of a shard by the end of its key; None for another key."""
        named = re.search(rf"/{self.folder.name}/c/([0-9]{{1,18}})/([0-9]{{1,18}})(/0){{{self.axes - 2}}}$", key)
        return (int(named[1]), int(named[2])) if named else None

    def crcs(self, place: Place, views: int, first: int = 0) -> list[int] | None:
        """Return the CRC-32C of chunks `first` to `views` - 1 of a shard; None when they cannot be read."""
        at = place[1] * self.block
        try:
            return self.files.crcs(place[0], at + first, at + views) if self.files else None
        except (OSError, ValueError):
            return None

    def hold(self, place: Place, views: int) -> bool:
        """Return whether the first chunks of a shard are in its file; a partial shard has fewer than the cache."""
        first = place[1] * self.block
        return self.files.hold(place[0], first, first + views) if self.files else self.path(place).exists()

    def agree(self, place: Place, listed: Sequence[int]) -> bool:
        """Return whether a shard holds any of the listed chunks, and no other chunk in their place."""
        if (whole := self.crcs(place, len(listed))) is not None:
            return whole == listed
        held = [crcs[0] if (crcs := self.crcs(place, i + 1, i)) else None for i in range(len(listed))]
        return held.count(None) < len(held) and all(
            one in (None, other) for one, other in zip(held, listed, strict=True)
        )

    def chunks(self, place: Place, listed: Sequence[int]) -> dict[int, bytes]:
        """Return the chunks that a shard has and that are the listed ones, by position; those that are damaged not."""
        try:
            data = self.path(place).read_bytes()
            spans = spans_of(data, self.block)
        except (OSError, ValueError):
            return {}
        found = {position: data[span.first : span.stop] for position, span in spans.items() if position < len(listed)}
        return {position: chunk for position, chunk in found.items() if _is_listed(chunk, listed[position])}

    def stamp(self, place: Place) -> _Stamp | None:
        try:
            facts = self.path(place).stat()
        except FileNotFoundError:
            return None
        return _Stamp(facts.st_size, facts.st_mtime_ns)


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
            upload = _Upload(self, lease, there)
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
        for place in _places(mine, shards):
            views = _stored(mine, shards, place)
            if (crcs := shards.crcs(place, views)) == _listed(listed, shards, place, views):
                write_record(self.path, *place, Record(bound_to(mine.identity, mine.tiles[place[0]]), tuple(crcs)))

    def _prune(self, header: Header) -> None:
        """Remove shards of the copy whose chunks are not those of the list of a header."""
        shards, listed = self.shards(header), read_checksums(self.path, header)
        for file in list((shards.folder / "c").rglob("*")):
            place = shards.place(file.as_posix()) if file.is_file() else None
            if place is None or not (views := _stored(header, shards, place)):
                continue  # of a filling cache: its record decides
            if listed is None or not shards.agree(place, _listed(listed, shards, place, views)):
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
            views = _stored(header, shards, place)
            crcs = _listed(listed, shards, place, views) if listed is not None and shards.files else None
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
        if not all(_is_listed(chunks[position], crc) for position, crc in enumerate(listed)):
            return _OTHER
        _write(shards.path(place), shard_of(chunks, shards.block))
        return ""

    def key_of(self, shards: Shards, place: Place) -> str:
        """Return the key of a shard."""
        return self.home.key(shards.path(place))

    def _fetch_for_writing(self) -> dict[Place, _Stamp]:
        """Make the copy whole, so that a writer finds in it what the URL has; return the shards that are at the URL."""
        header = self._adopted()
        if header is None:
            return {}
        shards = self._fetch_shards(header, None)
        keys = self._at.below(self.key())
        for name in (key.rpartition("/")[2] for key in keys if key.startswith(self.key(f"{DAMAGED}/"))):
            if named := _NAMED.fullmatch(name):
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


class _Upload:
    """Writes shards to the URL while the body of `CacheCopy.writing` makes them, and at the end the seal."""

    def __init__(self, copy: CacheCopy, lease: Lease, there: dict[Place, _Stamp]) -> None:
        self._copy, self._lease, self._there = copy, lease, there
        self._at, self._path, self._begun = copy.home.objects, copy.path, False
        self._stopped = threading.Event()
        self._failed: Exception | None = None

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Upload recorded shards in a thread while the body runs; `finish` raises an error of the thread."""
        ended = threading.Event()

        def poll() -> None:
            while not ended.wait(POLL_S):
                try:
                    self._upload_recorded()
                except Exception as error:  # noqa: BLE001 - raised in the thread that waits for it
                    self._failed = error
                    return

        thread = threading.Thread(target=poll, name="upload", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._stopped.set()
            ended.set()
            thread.join(STOP_S)
            raise
        ended.set()
        thread.join()

    def finish(self) -> None:
        """Upload what is left; if the copy is sealed, write the seal to the URL, as the last object."""
        if self._failed:
            raise self._failed
        header = read_header(self._path)
        shards = self._copy.shards(header)
        stored = _places(header, shards)
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
            raise CacheCorrupt(f"{self._at.url(min(lacking))} is missing: the cache is not sealed", next_step=_REDO)
        self._lease.check()
        self._at.write(key, data)  # from here the cache is complete
        marks = {self._copy.key(f"{DAMAGED}/{name}") for name in _names(self._path / DAMAGED)}
        self._at.remove(listing.keys() - keep - marks - {key})

    def _upload_recorded(self) -> None:
        named = [found for found in map(_NAMED.fullmatch, _names(self._path / FILLING)) if found]
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
        of, views = bound_to(header.identity, header.tiles[place[0]]), _stored(header, shards, place)
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
            raise CacheCorrupt(f"{shards.path(place)} is not uploaded", found=found, next_step=_REDO)
        metadata = {OF: of, VIEWS: str(views), CHUNKS: fingerprint(crcs)}
        self._lease.check()
        self._at.write(self._copy.key_of(shards, place), shards.path(place).read_bytes(), metadata)
        self._there[place] = stamp


def _parsed(path: Path, found: Found) -> Header:
    """Return the header in a group's ``zarr.json`` at the URL of `path`; raises as `parse_header`."""
    try:
        attributes = msgspec.json.decode(found.data)["attributes"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as reason:
        raise CacheCorrupt(f"{path}: {METADATA} cannot be read", found=str(reason)[:200], next_step=_REDO) from None
    return parse_header(path, attributes if isinstance(attributes, dict) else {})


def _stored(header: Header, shards: Shards, place: Place) -> int:
    """Return the number of views of a shard that the header says are stored."""
    tile, block = place
    return min(max(header.stored[tile] - block * shards.block, 0), shards.block) if tile < len(header.stored) else 0


def _places(header: Header, shards: Shards) -> list[Place]:
    """Return the places of all shards that the header says are stored."""
    return [(tile, block) for tile, views in enumerate(header.stored) for block in range(-(-views // shards.block))]


def _listed(listed: Sequence[Crcs], shards: Shards, place: Place, views: int) -> list[int]:
    first = place[1] * shards.block
    crcs: list[int] = listed[place[0]][first : first + views].tolist()
    return crcs


def _is_listed(chunk: bytes, listed: int) -> bool:
    """Return whether a chunk is complete and has the CRC-32C of the list, where that is known."""
    try:
        return checked_crc(chunk) == listed or listed == UNKNOWN
    except ValueError:
        return False


def _names(folder: Path) -> list[str]:
    try:
        return [file.name for file in folder.iterdir()]
    except FileNotFoundError:  # also when the writer removes it in this moment, because it seals the cache
        return []


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)


_REDO = "run the same fmcache extract again"
_GONE = "is missing"
_OTHER = "is damaged, or was written after the cache was opened"
