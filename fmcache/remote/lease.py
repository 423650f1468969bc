"""One writer at a time at a URL: an object that says who writes, made and renewed by conditional writes.

The holder creates the object only if there is none (``If-None-Match: *``), and renews it every `BEAT_S` only if it is
still its own (``If-Match``). A process that finds an object that was not renewed for `STALE_S`, by the clock of the
store, replaces it on the same condition: of several, one succeeds. To learn the time at the store, it writes an object
beside the lease, and removes it: clocks of machines do not matter. When the holder ends, the object stays and says that
the lease is free: removing it could remove that of a process which has taken over in the meantime.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator

import msgspec

from fmcache.errors import Busy, StoreUnavailable
from fmcache.locks import Owner, this_process
from fmcache.remote.objects import NO_TAG, Found, Objects, Tag
from fmcache.strict import decodable

STALE_S = 60.0
"""A holder counts as dead after this time without a sign of life."""
BEAT_S = 10.0
_WAIT = "wait until it ends, then run the same command again"


@decodable
class Stated(msgspec.Struct, frozen=True):
    """The content of a lease. `token` differs between holders, `beat` between renewals, so that no two tags agree."""

    owner: Owner = Owner()
    token: str = ""
    beat: int = 0
    free: bool = False


class Lease:
    """The lease of `key`, held from here to `release`.

    Raises
    ------
    Busy
        When another process holds it; the message names the process.
    StoreUnavailable
        When the store has no conditional writes, so that it cannot keep two writers apart.
    """

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key, self._done = objects, key, threading.Event()
        self._said = Stated(this_process(), uuid.uuid4().hex)
        self._lost = ""
        self._tag, self._renewed = self._acquired(), time.monotonic()
        self._beat = threading.Thread(target=self._show_life, name="lease", daemon=True)
        self._beat.start()

    def check(self) -> None:
        """Raise Busy when another process took over, or when the lease could not be renewed for too long."""
        if not self._lost and time.monotonic() - self._renewed > STALE_S:
            self._lost = "possibly another process: the store did not answer for too long"
        if self._lost:
            url = self._objects.url(self._key)
            raise Busy(f"{url} is no longer held by this process", found=self._lost, next_step=_WAIT)

    def release(self) -> None:
        """Say that the lease is free, if it is still held."""
        self._done.set()
        self._beat.join(BEAT_S)
        if not self._lost:
            self._objects.replace(self._key, _encoded(msgspec.structs.replace(self._said, free=True)), self._tag)

    def _acquired(self) -> Tag:
        content = _encoded(self._said)
        try:
            if tag := self._objects.create(self._key, content):
                if self._objects.create(self._key, content) or self._objects.replace(self._key, content, NO_TAG):
                    self._objects.remove([self._key])
                    raise _refusal(self._objects.url(), "it ignores If-None-Match or If-Match")
                return tag
        except StoreUnavailable as error:
            if error.found.startswith("NotImplemented"):
                raise _refusal(self._objects.url(), error.found) from None
            raise
        if not (found := self._objects.read(self._key)):
            raise Busy(f"another process is writing {self._objects.url(self._key)}", next_step=_WAIT)
        there = _decoded(found)
        if there.token == self._said.token:  # the answer to our own request was lost, and the client repeated it
            return found.tag
        if not there.free and (age_s := self._age_s(found)) < STALE_S:
            raise self._busy(there, age_s)
        if self._objects.replace(self._key, content, NO_TAG):
            raise _refusal(self._objects.url(), "it ignores If-Match")
        if not (tag := self._objects.replace(self._key, content, found.tag)):
            raise Busy(f"another process is writing {self._objects.url(self._key)}", next_step=_WAIT)
        return tag

    def _age_s(self, found: Found) -> float:
        """Return the age of an object by the clock of the store: an object that is written now has its time."""
        beside = f"{self._key}.{self._said.token}"
        self._objects.write(beside, b"")
        now = self._objects.facts(beside)
        self._objects.remove([beside])
        return (now.modified - found.modified).total_seconds() if now else 0.0

    def _busy(self, there: Stated, age_s: float) -> Busy:
        step = f"{_WAIT}; if it no longer runs, the lease is free {STALE_S - age_s:.0f} s from now"
        url = self._objects.url(self._key)
        return Busy(f"another process is writing {url}", found=str(there.owner), next_step=step)

    def _show_life(self) -> None:
        while not self._done.wait(BEAT_S):
            self._said = msgspec.structs.replace(self._said, beat=self._said.beat + 1)
            with contextlib.suppress(StoreUnavailable):  # it may answer at the next beat
                tag = self._objects.replace(self._key, _encoded(self._said), self._tag)
                found = None if tag else self._objects.read(self._key)
                if found and _decoded(found) == self._said:  # the answer was lost, and the client repeated the request
                    tag = found.tag
                if not tag:
                    self._lost = str(_decoded(found).owner) if found else "nothing: it was removed"
                    return
                self._tag, self._renewed = tag, time.monotonic()


@contextlib.contextmanager
def leased(objects: Objects, key: str) -> Iterator[Lease]:
    """Hold the lease of `key`; raises as `Lease`. When the body succeeds, also Busy if the lease was lost meanwhile."""
    lease = Lease(objects, key)
    try:
        yield lease
        lease.check()
    finally:
        with contextlib.suppress(StoreUnavailable):  # it expires
            lease.release()


def _refusal(url: str, found: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{url}: this store has no conditional writes, so it cannot keep two writers apart: nothing was written",
        found=found,
        next_step="use a store with conditional writes (If-None-Match and If-Match), or --work with a folder",
    )


def _encoded(said: Stated) -> bytes:
    return msgspec.json.encode(said)


def _decoded(found: Found) -> Stated:
    try:
        return msgspec.json.decode(found.data, type=Stated)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Stated()
