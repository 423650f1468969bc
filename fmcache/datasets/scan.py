"""What lies in a folder, or under a pattern: files by name and place, which of them count, and what is left out."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.datasets.file_names import is_clutter, role_of, split_of, stem_of
from fmcache.datasets.matching import File
from fmcache.errors import ManifestError
from fmcache.tiles.geojson import EXPORT, XML_HEAD, xml_kind

DEPTH = 4
"""Folders below the given one that are looked into."""

_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".vsi", ".isyntax", ".dcm")
ADVICE = {
    **dict.fromkeys(_SLIDES, "whole slides: fmcache data cut makes tiles of them"),
    ".xml": f"XML is not read: {EXPORT}",
    ".annotations": "XML of HALO is not read: export GeoJSON there, or write each Region's V X, Y as the ring of a "
    "feature, the Name of its Annotation in properties.classification.name",
    ".qpdata": "QuPath's own file: in QuPath, File > Export objects as GeoJSON, one file for an image",
    ".npz": "save each array as NAME.npy: numpy.save('NAME.npy', numpy.load('NAME.npz')['KEY'])",
    ".mat": "save each label array as NAME.npy: numpy.save('NAME.npy', scipy.io.loadmat('NAME.mat')['KEY'])",
    ".h5": "save each array as a PNG, or as NAME.npy",
    **dict.fromkeys((".nrrd", ".nii", ".nii.gz", ".mha", ".mhd"), "save each as NAME.npy: numpy.save('NAME.npy', "
    "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage('NAME.nrrd')))"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"), "unpack it first"),
    **dict.fromkeys((".webp", ".gif", ".heic", ".jp2", ".avif", ".jxl"), "convert it to PNG"),
    **dict.fromkeys((".svg", ".pdf", ".eps"), "export it as PNG, at the size of the image"),
}  # fmt: skip
IMAGE_ARRAYS = (
    "arrays are read as masks only: save each image as PNG, PIL.Image.fromarray(a[i].astype('uint8')).save(f'{i}.png') "
    "of a = numpy.load('images.npy')"
)


class Scan(NamedTuple):
    """All files below `base` that are not clutter, sorted; those that a pattern names where there is one."""

    base: Path
    pattern: str
    files: list[File]

    def of(self, suffixes: Sequence[str]) -> list[File]:
        """Return the files that end in one of `suffixes`."""
        return [file for file in self.files if file.path.name.lower().endswith(tuple(suffixes))]

    def strangers(self, suffixes: Sequence[str]) -> Counter[str]:
        """Return how many other files there are of kinds that people have, by ending."""
        readable = {file.path for file in self.of(suffixes)}
        endings = (_ending(file.path) for file in self.files if file.path not in readable)
        return Counter(ending for ending in endings if ending in ADVICE)


def scan(place: Path) -> Scan:
    """Return what lies in a folder and a few folders below; or what a pattern names.

    In a pattern, the last ``*`` is the name of the tile. One for a folder, as in ``set/Slide_*/*.png``, is its place.

    Raises
    ------
    ManifestError
        When there is no such folder, or a name is no text.
    """
    base, pattern = _parsed(place)
    if not base.is_dir():
        raise ManifestError(
            f"{base} is no folder",
            expected="a folder, or a pattern such as masks/*_mask.png",
            found="a file" if base.exists() else "nothing of this name",
            next_step="check --images and --masks",
        )
    named = [_rule(part) for part in pattern.split("/")] if pattern else []
    files = (_named(path, place, named) for path, place in _walk(base, (), DEPTH))
    return Scan(base, pattern, sorted((file for file in files if file), key=lambda file: file.path.as_posix()))


def _parsed(place: Path) -> tuple[Path, str]:
    """Return the folder that is looked into, and the pattern below it if there is one."""
    at = next((i for i, part in enumerate(place.parts) if "*" in part), len(place.parts))
    return (place, "") if place.is_dir() else (Path(*place.parts[:at]), "/".join(place.parts[at:]))


def _rule(part: str) -> re.Pattern[str]:
    """Return the regex of a part of a pattern: the first ``*`` is the name, further ones are anything."""
    first, star, rest = re.sub(r"\*+", "*", part).partition("*")
    return re.compile(re.escape(first) + "(.+)" * bool(star) + ".*".join(map(re.escape, rest.split("*"))))


def _walk(folder: Path, place: tuple[str, ...], depth: int) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for path in folder.iterdir():
        if is_clutter(path.name):
            continue
        if path.is_dir():
            if depth:
                yield from _walk(path, (*place, path.name), depth - 1)
        elif path.is_file() or path.is_symlink():  # a pipe would be waited for
            yield path, place


def _named(path: Path, place: tuple[str, ...], named: Sequence[re.Pattern[str]]) -> File | None:
    """Return a file by its name, or None when a pattern does not fit it; one of a single part fits in any folder."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"{str(path)!a}: the name of this file is not text", next_step="rename it") from None
    if not named:
        return _file(path, place, stem_of(path.name))
    parts = (*place, path.name)[-1:] if len(named) == 1 else (*place, path.name)
    found = [rule.fullmatch(part) for rule, part in zip(named, parts, strict=False)]
    if len(named) != len(parts) or not all(found):
        return None
    *folders, stem = [match[1] if match and match.re.groups else "" for match in found]
    place = place if len(named) == 1 else tuple(folder for folder in folders if folder)
    if not stem or named[-1].pattern.endswith("(.+)"):
        return _file(path, place, stem_of(stem or path.name))
    return _file(path, place, unicodedata.normalize("NFC", stem))


def _file(path: Path, place: tuple[str, ...], stem: str) -> File:
    """Return the file, its place without folders that only say what it is, and splits by the name that recipes use."""
    kept: list[str] = []
    role = ""
    for folder in place:
        if split := split_of(folder):
            kept.append(split[0])
            role = split[1] or role
        elif said := role_of(folder):
            role = said
        else:
            kept.append(unicodedata.normalize("NFC", folder))
    return File(path, tuple(kept), stem, role)


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def choose_level(files: Sequence[File]) -> tuple[list[File], list[File]]:
    """Return the files that count as tiles, and those left out because they lie deeper.

    Where files lie in the folder itself, those in its subfolders are left out. Else folders called after splits count
    where there are any (they may hold one folder for each patient), or one level of other folders.
    """
    if top := [file for file in files if not file.place]:
        return top, [file for file in files if file.place]
    inner = list(files)
    while len(first := {file.place[:1] for file in inner}) == 1 and first != {()} and not _split_names(inner):
        inner = [file._replace(place=file.place[1:]) for file in inner]
    splits = _split_names(inner)
    others = any(file.place and file.place[0] not in splits for file in inner)
    if splits and (len(splits) == 3 or not others):
        kept = [file for file in inner if file.place[:1] and file.place[0] in splits and len(file.place) <= 2]
    else:
        kept = [file for file in inner if len(file.place) <= 1]
    paths = {file.path for file in kept}
    return kept, [file for file in files if file.path not in paths]


def _split_names(files: Iterable[File]) -> set[str]:
    return {file.place[0] for file in files if file.place and split_of(file.place[0])}


def left_out(scanned: Scan, left: Sequence[File]) -> list[str]:
    """Return a line on images that lie in subfolders and were not listed; none where there are none."""
    if not left:
        return []
    folders = Counter(file.path.parent.relative_to(scanned.base).as_posix() for file in left)
    named = ", ".join(f"{n} in {folder}/" for folder, n in sorted(folders.items())[:5])
    more = f" and {len(folders) - 5} more folders" if len(folders) > 5 else ""
    return [
        f"{len(left)} more images lie below {scanned.base} and were not listed: {named}{more}; move them beside the "
        "others, or add their folder as a dataset of its own"
    ]


def stranger_notes(scanned: Scan, suffixes: Sequence[str]) -> list[str]:
    """Return a line for each kind of file that was passed over and may have been meant, with what to do with it."""
    return [
        f"{n} {ending} files in {scanned.base} were passed over ({ADVICE[ending]})"
        for ending, n in sorted(scanned.strangers(suffixes).items())
    ]


def _xml_advice(path: Path) -> str:
    """Return what is to be done with annotations in XML, by whose they are."""
    with path.open("rb") as file:
        text = file.read(XML_HEAD).decode(errors="replace")
    kind, way = xml_kind(text) or ("XML", EXPORT)
    return f"{path.name} is {kind}, which is not read: {way}"


def nothing_there(scanned: Scan, what: str, suffixes: Sequence[str]) -> ManifestError:
    """Return the error for a folder without images or masks: what was looked for, what is there, what to do with it."""
    endings = Counter(_ending(file.path) or "no ending" for file in scanned.files)
    strangers = scanned.strangers(suffixes)
    advice = dict.fromkeys(ADVICE[ending] for ending in strangers)
    if what == "masks" and (xml := next((file.path for file in scanned.files if _ending(file.path) == ".xml"), None)):
        advice = {_xml_advice(xml): None}
    if what == "images" and endings[".npy"]:
        advice[IMAGE_ARRAYS] = None
    at = f"{scanned.base / scanned.pattern} fits no {what}" if scanned.pattern else f"{scanned.base} holds no {what}"
    return ManifestError(
        at,
        expected=", ".join(suffixes),
        found=", ".join(f"{n} {ending}" for ending, n in endings.most_common(6)) or "no files",
        next_step="; ".join(advice) or "check the path",
    )
