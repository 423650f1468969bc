"""The local copy of results and of small files at a URL: runs appear there whole, with ``run.json`` as the last object.

Files are compared by their MD5, which S3 states as the ETag of an object written in one request. Where the ETag is
something else, small files are read and compared: one request for each file and each run.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fmcache.errors import Busy
from fmcache.identity import whole_file
from fmcache.locks import locked
from fmcache.remote.background import repeated
from fmcache.remote.copies import Home
from fmcache.remote.lease import leased
from fmcache.remote.objects import THREADS, Listed
from fmcache.runtime.prefetch import pool_of, prefetch
from fmcache.runtime.progress import progress
from fmcache.scores.run_files import RECORD, whole_folder

POLL_S = 2.0
WAIT_S = 60.0
_RUN = "seed-"


def fetch_results(home: Home, results: Path) -> None:
    """Read the runs and pictures below a folder of results that the copy lacks, or of which it has others.

    A run without its ``run.json`` is not complete, and is left out. Runs that only the copy has stay.
    """
    listed = home.objects.below(home.key(results))
    runs: dict[Path, list[str]] = defaultdict(list)
    loose = []
    for key in listed:
        path = home.folder / key
        if path.parent.name.startswith(_RUN):
            runs[path.parent].append(key)
        elif not path.name.startswith("."):
            loose.append(key)
    whole = {folder: keys for folder, keys in runs.items() if home.key(folder / RECORD) in keys}
    missing = [folder for folder in whole if not _same(folder / RECORD, listed[home.key(folder / RECORD)])]

    def fetch(folder: Path) -> None:
        if (mine := folder / RECORD).is_file():  # the ETag may be no MD5
            found = home.objects.read(home.key(mine))
            if found is None or found.data == mine.read_bytes():
                return
        with whole_folder(folder) as partial:
            for key in whole[folder]:
                if found := home.objects.read(key):
                    (partial / Path(key).name).write_bytes(found.data)

    _concurrently(f"{home.url(results)} · read", "runs", fetch, missing)
    _fetch(home, loose, listed)


Known = dict[Path, str]
"""The MD5 of the files of a copy that are known to be at the URL."""


def fetch_files(home: Home, folder: Path) -> Known:
    """Read the files below a folder that the copy lacks, or of which it has others; return those that it then has."""
    listed = home.objects.below(home.key(folder))
    _fetch(home, [key for key in listed if not Path(key).name.startswith(".")], listed)
    return _known(home, listed)


def push_files(home: Home, folder: Path, known: Known) -> None:
    """Write the files below a folder of the copy that are not known to be at the URL."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    _push(home, files, known)


def share_pins(home: Home, file: Path) -> None:
    """Make a YAML file of pins (`fmcache.pins`) the same here and at the URL: it gets the entries of both.

    Where both have an entry, that of the URL stays.
    """
    key = home.key(file)
    for _ in range(5):  # another process may write it between reading and writing
        found = home.objects.read(key)
        with locked(file, WAIT_S):
            mine = file.read_bytes() if file.exists() else b""
            theirs = found.data if found else b""
            if mine == theirs:
                return
            pins = (yaml.safe_load(mine) or {}) | (yaml.safe_load(theirs) or {})
            heading = (mine or theirs).partition(b"\n")[0]
            merged = heading + b"\n" + yaml.safe_dump(pins).encode()
            with whole_file(file) as written:
                written.write(merged)
        if merged == theirs or (
            home.objects.replace(key, merged, found.tag) if found else home.objects.create(key, merged)
        ):
            return
    raise Busy(f"{home.url(file)} is changed by other processes", next_step="run the same command again")


@contextlib.contextmanager
def writing_results(home: Home, study: Path) -> Iterator[None]:
    """Hold the lease of a study's results; the body adds runs to the copy, and each is uploaded when it is finished.

    Raises
    ------
    Busy
        When another process fits the study at the URL.
    StoreUnavailable
        When the store refuses, does not answer, or has no conditional writes. Finished runs stay in the copy, and the
        next fit uploads them.
    """
    with leased(home.objects, home.key(study.with_name(f".{study.name}.lock"))) as lease:
        fetch_results(home, study)
        stopped = threading.Event()
        known = _known(home, home.objects.below(home.key(study)))

        def push() -> None:
            for folder in sorted(study.rglob(f"{_RUN}*")):
                if stopped.is_set():
                    return
                record = folder / RECORD
                if folder.name.startswith(_RUN) and record.exists() and _md5(record) != known.get(record):
                    lease.check()
                    _push_run(home, folder)
                    known[record] = _md5(record)

        def push_finished() -> None:
            with contextlib.suppress(FileNotFoundError):  # a folder got its final name just now: the next look finds it
                push()

        with repeated(push_finished, POLL_S, stopped):
            yield
        push()
        loose = [
            file for file in sorted(study.rglob("*"))
            if file.is_file() and not file.name.startswith(".") and not file.parent.name.startswith(_RUN)
        ]  # fmt: skip
        lease.check()
        _push(home, loose, known)


def _push_run(home: Home, folder: Path) -> None:
    """Write the files of a run: its record is removed first and written last, so that a mixture is never complete."""
    key = home.key(folder / RECORD)
    home.objects.remove([key])
    for file in sorted(folder.iterdir()):
        if file.name != RECORD:
            home.objects.write(home.key(file), file.read_bytes())
    home.objects.write(key, (folder / RECORD).read_bytes())


def _fetch(home: Home, keys: Iterable[str], listed: dict[str, Listed]) -> None:
    def fetch(key: str) -> None:
        if found := home.objects.read(key):
            with whole_file(home.folder / key) as file:
                file.write(found.data)

    missing = [key for key in keys if not _same(home.folder / key, listed[key])]
    _concurrently(f"{home.objects.url()} · read", "files", fetch, missing)


def _push(home: Home, files: Iterable[Path], known: Known) -> None:
    def push(file: Path) -> None:
        home.objects.write(home.key(file), file.read_bytes())

    missing = [file for file in files if _md5(file) != known.get(file)]
    _concurrently(f"{home.objects.url()} · write", "files", push, missing)


def _concurrently(title: str, unit: str, one: Callable[[Any], None], items: list[Any]) -> None:
    if items:
        with progress(title, len(items), unit) as tick, pool_of(THREADS, "store") as pool:
            for _ in prefetch(pool, one, items, 2 * THREADS):
                tick(1)


def _known(home: Home, listed: Iterable[str]) -> Known:
    """Return what the copy and the URL have in common, right after what is listed there was read."""
    files = [home.folder / key for key in listed]
    return {file: _md5(file) for file in files if file.is_file()}


def _same(file: Path, listed: Listed | None) -> bool:
    return listed is not None and file.is_file() and _md5(file) == listed.etag


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
