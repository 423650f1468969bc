"""Zip files of images or masks -> files in one folder. Nothing is written unless every name in the archive is safe."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fmcache.errors import ManifestError, NoRoom
from fmcache.identity import whole_file

BLOCK = 1 << 20


def unpack(archive: Path, into: Path, suffixes: Sequence[str]) -> int:
    """Write the archive's files that end in `suffixes` directly into one folder, and return their number.

    Subfolders of the archive are dropped. Files that already exist with the same content are kept, so an interrupted
    call resumes.

    Raises
    ------
    ManifestError
        When the archive is damaged, holds none of these files, holds two files of the same name, or holds a name that
        points outside the folder or to another file (``..``, an absolute path, a link).
    NoRoom
        When the disk cannot hold the files.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _members(archive, zipped.infolist(), suffixes)
            missing = {name: info for name, info in members.items() if not _is_there(into / name, info)}
            _refuse_too_large(archive, into, sum(info.file_size for info in missing.values()))
            for name, info in missing.items():
                with zipped.open(info) as source, whole_file(into / name) as file:
                    shutil.copyfileobj(source, file, BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as reason:
        raise ManifestError(
            f"{archive} cannot be unpacked",
            found=str(reason)[:200],
            next_step="remove the file and fetch it again",
        ) from None
    return len(members)


def _members(archive: Path, infos: Sequence[zipfile.ZipInfo], suffixes: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if is_link or path.is_absolute() or ".." in path.parts or ":" in info.filename:
            raise ManifestError(
                f"{archive}: the name {info.filename!r} points outside the folder it is unpacked into",
                expected="names inside the folder, and no links",
                next_step="do not use this archive; get it from its publisher",
            )
        hidden = path.name.startswith(".") or "__MACOSX" in path.parts
        if info.is_dir() or hidden or path.suffix.lower() not in suffixes:
            continue
        if path.name in members:
            raise ManifestError(
                f"{archive} holds two files named {path.name}", next_step="keep only one of them in the archive"
            )
        members[path.name] = info
    if not members:
        raise ManifestError(
            f"{archive} holds no files of the expected types",
            expected=", ".join(suffixes),
            found=", ".join(info.filename for info in infos[:5]) or "nothing",
            next_step="check that this is the right archive",
        )
    return members


def _is_there(path: Path, info: zipfile.ZipInfo) -> bool:
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC


def _refuse_too_large(archive: Path, into: Path, size: int) -> None:
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    if size > free:
        raise NoRoom(
            f"{archive} does not fit on the disk when unpacked",
            expected=f"{size / 1e6:.0f} MB free",
            found=f"{free / 1e6:.0f} MB free",
            next_step="free space, or choose another folder with --into",
        )
