"""Remembered hashes of large files: a file with the same size, times and inode as last time is not read again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from fmcache.identity import sha256_file, sweep_beside, whole_file
from fmcache.strict import decodable

FRESH_S = 2.0
"""Hashes of files changed less than this long ago are not kept: such a file may change again within one clock tick."""


WAIT_S = 1.0
"""How long to wait for another process that is writing the store; after that, new hashes are not kept."""


@decodable
class _Seen(msgspec.Struct, frozen=True, array_like=True):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


class Remembered:
    """sha256 of files, kept in a JSON `store` between commands; without a store, in memory only.

    The store only saves time. If it is missing or damaged, files are hashed again; if it cannot be written, it is left
    as it is. A file counts as unchanged when its size, its inode and both its times (mtime and ctime) are the same as
    last time.
    """

    def __init__(self, store: Path | None = None) -> None:
        self._store = store
        self._seen: dict[str, _Seen] = {}
        self._changed = False
        if store:
            with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._seen = msgspec.json.decode(store.read_bytes(), type=dict[str, _Seen])

    def sha256(self, path: Path) -> str:
        """Return the sha256 (64 hex digits) of a file; raises OSError when it cannot be read."""
        key, facts = str(path.absolute()), path.stat()
        seen = self._seen.get(key)
        if seen and seen == _facts(facts, seen.sha256):
            return seen.sha256
        digest = sha256_file(path)
        after = _facts(path.stat(), digest)
        if after == _facts(facts, digest) and time.time() - max(facts.st_mtime, facts.st_ctime) > FRESH_S:
            self._seen[key] = after
            self._changed = True
        return digest

    def keep(self) -> None:
        """Write new hashes to the store; what other processes wrote there in the meantime is kept."""
        if not (self._store and self._changed):
            return
        with contextlib.suppress(OSError, Timeout):
            self._store.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._store.with_name(f".{self._store.name}.lock"), timeout=WAIT_S):
                sweep_beside(self._store)
                others = Remembered(self._store)._seen
                with whole_file(self._store) as file:
                    file.write(msgspec.json.encode(_sorted(others | self._seen)))
                self._changed = False


def _facts(facts: os.stat_result, sha256: str) -> _Seen:
    return _Seen(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, sha256)


def _sorted(seen: Mapping[str, _Seen]) -> dict[str, _Seen]:
    return dict(sorted(seen.items()))
