"""One writer at a time: a lock beside the file or folder, for processes on one machine or on several that share it.

The operating system releases its lock whenever the process ends. But on some shared folders (SMB, and several ways to
mount Lustre or FUSE) that lock works on one machine only, and it never names its holder. Therefore the holder also
writes an owner file beside the lock, and renews the time of that file as long as it works. A process that gets the
system's lock but finds an owner file of another machine does not write, unless that file has not been renewed for
`STALE_S`. Ages are measured with the clock of the shared folder only, because the clocks of machines differ.
"""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from filelock import FileLock, Timeout

from fmcache.errors import Busy
from fmcache.identity import sweep_beside
from fmcache.strict import decodable

STALE_S = 60.0
"""A holder on another machine counts as dead after this time without a sign of life."""
BEAT_S = 10.0
POLL_S = 0.2
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@decodable
class Owner(msgspec.Struct, frozen=True):
    """The holder of a lock; `machine` differs between machines of the same host name, and between boots of one."""

    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    since: str = "an unknown time"
    command: str = ""

    def __str__(self) -> str:
        text = f"process {self.pid} on {self.host}, since {self.since}"
        return f"{text}: {self.command}" if self.command else text


class _Seen(NamedTuple):
    owner: Owner
    mtime: float


@contextlib.contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file or folder, which lies beside it as ``.NAME.lock``; wait for it up to `wait_s` seconds.

    The lock of a dead process is taken over, and a line on standard error names that process. What it left unfinished
    of `path` is removed.

    Raises
    ------
    Busy
        When another process holds the lock (the message names it), or took it over while this one gave no sign of life.
    """
    path = path.resolve()  # a link and its target share one lock
    latest = time.monotonic() + wait_s
    while True:
        try:
            held = _Held(path)
            break
        except Busy:
            if time.monotonic() >= latest:
                raise
            time.sleep(POLL_S)
    try:
        sweep_beside(path)
        yield
    except BaseException:
        held.release()
        raise
    if taken := held.release():
        raise Busy(
            f"{path} was taken over by another process, while this one gave no sign of life for {STALE_S:g} s",
            found=str(taken),
            next_step="wait until it ends, then run the same command again",
        )


def lock_files(path: Path) -> list[Path]:
    """Return the lock files beside `path`; only the holder of the lock may remove them."""
    return [_lock(path), _owner(path)]


class _Held:
    """The lock of a path, held from here to `release`."""

    def __init__(self, path: Path) -> None:
        self._owner, self._me, self._done = _owner(path), this_process(), threading.Event()
        self._owner.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(_lock(path), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise _busy(path, _seen(self._owner)) from None
        try:
            _claim(path, self._owner, self._me)
        except BaseException:
            self._lock.release()
            raise
        self._beat = threading.Thread(target=self._show_life, name="lock", daemon=True)
        self._beat.start()

    def release(self) -> Owner | None:
        """Release the lock; return the process that took it over in the meantime, or None."""
        self._done.set()
        self._beat.join(BEAT_S)
        found = _seen(self._owner)
        if mine := found and found.owner == self._me:
            self._owner.unlink(missing_ok=True)
        self._lock.release()
        return None if mine or not found else found.owner

    def _show_life(self) -> None:
        while not self._done.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the shared folder may be away for a moment: try again at the next beat
                if (found := _seen(self._owner)) and found.owner == self._me:
                    os.utime(self._owner)


def _claim(path: Path, file: Path, me: Owner) -> None:
    """Write the owner file: this process holds the operating system's lock of `path`.

    Raises
    ------
    Busy
        When a living process of another machine has written the same.
    """
    mine = _beside(file)
    try:
        mine.write_bytes(msgspec.json.encode(me))
        if there := _seen(file):
            age = mine.stat().st_mtime - there.mtime
            # on the same machine, having the operating system's lock proves that the former holder is dead
            if there.owner.machine != me.machine and age < STALE_S:
                raise _busy(path, there, age)
            _take_away(path, file, there)
            gone = "is gone" if there.owner.machine == me.machine else f"gave no sign of life for {age:.0f} s"
            print(f"{path}: taken over from {there.owner}; it {gone}", file=sys.stderr)
        _put(path, mine, file)
    finally:
        mine.unlink(missing_ok=True)
    for left in file.parent.glob(f"{glob.escape(file.name)}.*.partial"):
        left.unlink(missing_ok=True)


def _take_away(path: Path, file: Path, there: _Seen) -> None:
    """Remove an owner file, but only if it is still the one that was seen."""
    if (found := _seen(file)) != there:
        raise _busy(path, found)
    aside = _beside(file)
    try:
        file.rename(aside)
    except FileNotFoundError:
        return
    if (found := _seen(aside)) != there:  # just before the rename, another process came or the owner renewed the file
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)
        aside.unlink(missing_ok=True)
        raise _busy(path, found)
    aside.unlink(missing_ok=True)


def _put(path: Path, mine: Path, file: Path) -> None:
    """Rename a finished owner file into place as one whole, unless another process was faster."""
    try:
        try:
            os.link(mine, file)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with file.open("xb") as other:
                other.write(mine.read_bytes())
    except FileExistsError:
        if not mine.exists() or not mine.samefile(file):  # NFS may report this of the link that it has just made
            raise _busy(path, _seen(file)) from None


def _seen(file: Path) -> _Seen | None:
    """Return the content of an owner file and when it was last renewed; None when there is none."""
    try:
        with file.open("rb") as opened:  # opening makes NFS ask its server for the time
            content, mtime = opened.read(), os.fstat(opened.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        return _Seen(msgspec.json.decode(content, type=Owner), mtime)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Seen(Owner(), mtime)


def _busy(path: Path, there: _Seen | None, age: float | None = None) -> Busy:
    next_step = "wait until it ends, then run the same command again"
    if age is not None:
        next_step += (
            f"; if it no longer runs, the lock is free {max(STALE_S - age, 0):.0f} s from now "
            f"({STALE_S:g} s after its last sign of life)"
        )
    found = str(there.owner) if there else "a process without an owner file"
    return Busy(f"another process is writing {path}", found=found, next_step=next_step)


def this_process() -> Owner:
    """Return this process as the holder of a lock."""
    host, machine = here()
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200].encode(errors="replace").decode()
    return Owner(host, machine, os.getpid(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), command)


def here() -> tuple[str, str]:
    """Return the name of this host, and an id of this boot of this machine."""
    host = socket.gethostname()
    try:
        return host, BOOT_ID.read_text().strip()
    except OSError:
        return host, host


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _owner(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock.owner")


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
