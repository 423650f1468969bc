"""A working folder at a URL and its local copy. The copy is an ordinary working folder; `HOME` in it names the URL.

All stages work in the copy, with the paths, bytes and locks of any working folder. What they miss is first read from
the URL, and what they finish is written to it (REMOTE.md).
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from fmcache.errors import SpecError
from fmcache.identity import whole_file
from fmcache.remote.clients import SCHEMES
from fmcache.remote.objects import Objects, connect

HOME = "home.json"
COPIES = "FMCACHE_COPIES"
"""The environment variable that names the folder of all local copies."""
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/*(?P<rest>(?<=/).*|)"
)  # pathlib makes one slash of two, or none
_CACHES = "cache"


class Home(NamedTuple):
    """A URL and the folder of its local copy."""

    folder: Path
    objects: Objects

    def key(self, path: Path) -> str:
        """Return the key of a file or folder of the copy."""
        return path.relative_to(self.folder).as_posix()

    def url(self, path: Path) -> str:
        """Return the URL of a file or folder of the copy."""
        return self.objects.url(self.key(path))


def is_url(path: Path | str) -> bool:
    """Return whether a path is a URL (also one that went through `pathlib`)."""
    return _URL.fullmatch(str(path)) is not None


def _shown(url: Path | str) -> str:
    """Return a URL with both slashes."""
    parts = _URL.fullmatch(str(url))
    return f"{parts['scheme']}://{parts['rest']}" if parts else str(url)


def local_work(work: Path | str) -> Path:
    """Return the local copy of a working folder at a URL; any other path as it is.

    Raises
    ------
    SpecError
        When the URL is not of the form ``s3://BUCKET/PREFIX``, or a setting of the store is missing.
    ExtraMissing
        When the client of the store is not installed.
    """
    if not (parts := _URL.fullmatch(str(work))):
        return Path(work)
    bucket, *names = [name for name in parts["rest"].split("/") if name] or [""]
    prefix = "/".join(names)
    scheme = parts["scheme"].lower()
    if scheme not in SCHEMES or not bucket or {".", ".."} & {bucket, *names}:
        step = "write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        raise SpecError(f"{_shown(work)} is not the URL of a working folder", next_step=step)
    host = re.sub(r"[^A-Za-z0-9.-]", "_", connect(bucket, prefix, scheme).host)
    folder = _copies(scheme) / host / bucket / prefix
    if not (folder / HOME).exists():
        with whole_file(folder / HOME) as file:
            file.write(msgspec.json.encode({"scheme": scheme, "bucket": bucket, "prefix": prefix}))
    return folder


def local_cache(path: Path) -> Path:
    """Return the path of a cache in the local copy of its URL; any other path as it is. Raises as `local_work`."""
    if not is_url(path):
        return path
    parents = path.parents
    if len(parents) < 5 or path.parents[2].name != _CACHES:
        step = "fmcache cache ls --work URL lists the URLs of all caches"
        raise SpecError(f"{_shown(path)} is not the URL of a cache", next_step=step)
    work = parents[3]
    return local_work(work) / path.relative_to(work)


def home_of(work: Path) -> Home | None:
    """Return the home of a working folder that is the copy of a URL; None for any other folder."""
    file = work / HOME
    return _home(work, file.read_bytes()) if file.is_file() else None


def home_of_cache(path: Path) -> Home | None:
    """Return the home of the working folder that holds a cache; None when it is not the copy of a URL."""
    return home_of(path.parents[3]) if len(path.parents) > 3 else None  # WORK/cache/DATASET/ENCODER/NAME.zarr


@functools.lru_cache
def _home(work: Path, said: bytes) -> Home:
    at = msgspec.json.decode(said, type=dict[str, str])
    return Home(work, connect(at["bucket"], at["prefix"], at.get("scheme", "s3")))  # an older copy names no scheme


def _copies(scheme: str) -> Path:
    if named := os.environ.get(COPIES):
        return Path(named) if scheme == "s3" else Path(named) / scheme
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmcache" / scheme
