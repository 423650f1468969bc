"""Download a file from the web, resume interrupted downloads, and check the file against its checksum.

When no checksum is published, it is recorded at the first download, in ``checksums.lock.yaml`` beside the files. After
that, a file that differs from the record is refused.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import requests

from fmcache.errors import DataUnavailable, ManifestError
from fmcache.manifest import Archive
from fmcache.pins import Pins
from fmcache.runtime.progress import progress
from fmcache.strict import Frozen, decodable

RECORD = "checksums.lock.yaml"
BLOCK = 1 << 16  # bytes; at most this much is lost when a connection breaks
MB = 10**6
TIMEOUT_S = (15, 60)  # to connect; between two blocks
ATTEMPTS = 5
WAIT_S = 1.0


@decodable
class Recorded(Frozen, frozen=True):
    """Size, checksum and address of a file at its first download."""

    bytes: int
    sha256: str
    url: str = ""


def download_file(url: str, path: Path) -> None:
    """Download `url` to `path`.

    `path` appears only when the file is complete. An interrupted download is kept as ``NAME.partial`` and resumed.

    Raises
    ------
    DataUnavailable
        When the server refuses, or the connection breaks at every attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        try:
            _resume(url, partial)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            reason = error
            continue
        except requests.RequestException as error:
            reason = error
            break
        partial.replace(path)
        return
    here = partial.stat().st_size if partial.exists() else 0
    raise DataUnavailable(
        f"{url} cannot be downloaded",
        found=f"{reason}; {here / MB:.1f} MB were downloaded"[:300],
        next_step=f"try again: the same command resumes the download; or put the file at {path} yourself",
    )


def check_file(path: Path, archive: Archive, url: str, fresh: bool) -> str:
    """Check a file against the manifest's checksum and against its record; return its sha256.

    `fresh` means that the file was downloaded just now. A fresh file that is wrong is deleted, so that the next call
    downloads it again.

    Raises
    ------
    ManifestError
        When a checksum differs.
    """
    md5, sha256 = _digests(path)
    known = downloads(path.parent).read().get(archive.file)
    for kind, expected, found in (("MD5", archive.md5, md5), ("SHA-256", known.sha256 if known else "", sha256)):
        if expected and found != expected:
            if fresh:
                path.unlink()
            raise ManifestError(
                f"{path} is not the file that was {'listed' if kind == 'MD5' else 'downloaded before'}",
                expected=f"{kind} {expected}",
                found=f"{kind} {found}, {'from ' + url if fresh else 'on this disk'}",
                next_step="fetch it again" if fresh else "remove it and fetch it again",
            )
    return sha256


def downloads(folder: Path) -> Pins[Recorded]:
    """Return the records of the files of a folder, by file name; ManifestError when they have another form."""
    heading = "sizes and checksums of these files at their first download; files that differ are refused"
    return Pins(folder / RECORD, Recorded, ManifestError, heading)


def _resume(url: str, partial: Path) -> None:
    """Download the missing rest of a file and append it to `partial`."""
    done = partial.stat().st_size if partial.exists() else 0
    # identity: with compression in transit, byte ranges would refer to the compressed body
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range", "").endswith(f"/{done}"):
                return
            partial.unlink()
            raise requests.ConnectionError("the partial file on this disk does not match the file on the server")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            done = 0  # the server sends the whole file again
        total = done + int(response.headers.get("Content-Length", 0))
        with (
            partial.open("ab" if done else "wb") as file,
            progress(f"fetching {partial.stem}", -(-total // MB), "MB", done=done // MB) as tick,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                tick((done + len(block)) // MB - done // MB)
                done += len(block)
    if done < total:
        raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")


def _digests(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()
