"""Identities: canonical JSON, sha256 of files and values, keys for random generators made from names.

An identity is a plain dictionary of everything that can change a number. Its fingerprint is the sha256 of its canonical
JSON. Both are stored, so that an error message can name the fields that differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON with sorted keys and no spaces; equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def fingerprint(value: Any) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_key(*names: str | int) -> int:
    """Return a 128-bit key for a counter-based generator, derived from the names alone.

    The same names give the same key in every process and in any order of calls. Different lists of names give
    different keys.
    """
    return int.from_bytes(hashlib.sha256(canonical_json(list(names))).digest()[:16], "big")


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Return one line for each leaf in which two identities differ; the line starts with its dotted path."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(expected.keys() | found.keys()):
            at = f"{path}.{key}" if path else str(key)
            if key not in found:
                lines.append(f"{at}: expected {_short(expected[key])}, found nothing")
            elif key not in expected:
                lines.append(f"{at}: expected nothing, found {_short(found[key])}")
            else:
                lines += differences(expected[key], found[key], at)
        return lines
    if canonical_json(expected) == canonical_json(found):
        return []
    return [f"{path}: expected {_short(expected)}, found {_short(found)}"]


def _short(value: Any) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` for writing; on success, flush it to disk and rename it to `path`.

    A reader sees the old file or the new one, never an incomplete one. After an exception no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{own_number()}.partial")
    try:
        with partial.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the system's error of a failed write names no file
        raise
    finally:
        partial.unlink(missing_ok=True)


def own_number() -> str:
    """Return digits for the name of a temporary file: another number at each call, also on other machines.

    Processes of several machines or containers that share a folder may have the same process id.
    """
    return f"{os.getpid()}{secrets.randbelow(10**9):09}"


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists. It is renamed first, so that a half-removed one is never taken for a whole one."""
    aside = folder.with_name(f".{folder.name}.{own_number()}.removed")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside)


def sweep_beside(path: Path) -> None:
    """Remove what killed processes left beside a file or folder: unfinished or half-removed copies of it.

    Only the holder of its lock may call this.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.(partial|removed)")
    for left in path.parent.iterdir():
        if ours.fullmatch(left.name):
            _remove(left)


def sweep(folder: Path) -> None:
    """Remove what killed processes left below a folder: unfinished and half-removed files and folders.

    Only the holder of the folder's lock may call this: files that another process is writing would be removed too.
    """
    for left in sorted([*folder.rglob("*.partial"), *folder.rglob(".*.removed")]):
        _remove(left)


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)
