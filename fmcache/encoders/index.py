"""Weights in several files, listed by an index (``model.safetensors.index.json``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from fmcache.errors import WeightsMismatch
from fmcache.identity import sha256_file

SUFFIX = ".index.json"
MAX_BYTES = 64 * 2**20


def is_index(path: Path) -> bool:
    """Return whether a path has the name of an index."""
    return path.name.endswith(SUFFIX)


def listed_files(index: Path) -> dict[str, set[str]]:
    """Return the names of the files that an index lists, all beside it, and the names of the tensors in each.

    Raises
    ------
    WeightsMismatch
        When it is not an index, or lists a file that is not beside it.
    """
    try:
        if index.stat().st_size > MAX_BYTES:
            raise ValueError(f"{index.stat().st_size} bytes")
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        if not entries or not all(isinstance(file, str) for _, file in entries):
            raise ValueError("`weight_map` does not map names to files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as reason:
        raise WeightsMismatch(
            f"{index} is not an index of weights files",
            expected="JSON with a `weight_map` from names of tensors to files beside it",
            found=f"no {reason}" if isinstance(reason, KeyError) else str(reason) or type(reason).__name__,
            next_step="fetch the index again, or pass the weights file itself",
        ) from reason
    files: dict[str, set[str]] = {}
    for name, file in entries:
        if file in ("", ".", "..") or {PurePosixPath(file).name, PureWindowsPath(file).name} != {file}:
            raise WeightsMismatch(
                f"{index} lists a file that is not beside it",
                expected="names of files",
                found=file,
                next_step="do not use this index; fetch it again from its publisher",
            )
        files.setdefault(file, set()).add(name)
    return files


def parts_of(index: Path) -> dict[Path, set[str]]:
    """Return the files that an index lists, and the names of the tensors in each; raises as `listed_files`.

    Raises
    ------
    WeightsMismatch
        When one of the files is missing.
    """
    parts = {index.with_name(name): tensors for name, tensors in listed_files(index).items()}
    missing = sorted(part.name for part in parts if not part.is_file())
    if missing:
        raise WeightsMismatch(
            f"{index} lists {len(parts)} files, and {len(missing)} of them are not beside it",
            found=f"missing: {', '.join(missing)}",
            next_step=f"put them into {index.parent}",
        )
    return parts


def sha256_weights(path: Path, sha256_of: Callable[[Path], str] = sha256_file) -> str:
    """Return the sha256 of a weights file; for an index, over the lines ``SHA256  NAME`` of the index and its files.

    `sha256_of` gives the sha256 of one file. Raises as `parts_of`.
    """
    if not is_index(path):
        return sha256_of(path)
    files = [path, *sorted(parts_of(path))]
    return hashlib.sha256("".join(f"{sha256_of(file)}  {file.name}\n" for file in files).encode()).hexdigest()
