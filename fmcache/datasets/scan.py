"""List the files of a folder or pattern: their names and subfolders, which of them count, and which are left out."""

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
"""Number of levels of subfolders that are searched."""

_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".vsi", ".isyntax", ".dcm")
ADVICE = {
    **dict.fromkeys(_SLIDES, "whole slides: fmcache data cut cuts tiles out of them"),
    ".xml": f"XML is not supported: {EXPORT}",
    ".annotations": "XML of HALO is not supported: export GeoJSON from HALO, or write each Region's V X, Y as the ring "
    "of a feature, and the Name of its Annotation into properties.classification.name",
    ".qpdata": "QuPath's internal format: in QuPath, use File > Export objects as GeoJSON, one file for each image",
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
    "arrays are supported only as masks: save each image as PNG with a = numpy.load('images.npy') and "
    "PIL.Image.fromarray(a[i].astype('uint8')).save(f'{i}.png')"
)


class Scan(NamedTuple):
    """All files below `base` that match the pattern, if there is one; sorted, without hidden and system files."""

    base: Path
    pattern: str
    files: list[File]

    def of(self, suffixes: Sequence[str]) -> list[File]:
        """Return the files that end in one of `suffixes`."""
        return [file for file in self.files if file.path.name.lower().endswith(tuple(suffixes))]

    def strangers(self, suffixes: Sequence[str]) -> Counter[str]:
        """Return the number of other files by ending, for the endings in `ADVICE`."""
        readable = {file.path for file in self.of(suffixes)}
        endings = (_ending(file.path) for file in self.files if file.path not in readable)
        return Counter(ending for ending in endings if ending in ADVICE)


def scan(place: Path) -> Scan:
    """Return the files of a folder and of a few levels of subfolders; or the files that match a pattern.

    In a pattern, the last ``*`` is the name of the tile. A ``*`` for a folder, as in ``set/Slide_*/*.png``, gives the
    place of the file (`fmcache.datasets.matching.File`).

    Raises
    ------
    ManifestError
        When the folder does not exist, or the name of a file is not text.
    """
    base, pattern = _parsed(place)
    if not base.is_dir():
        raise ManifestError(
            f"{base} is not a folder",
            expected="a folder, or a pattern such as masks/*_mask.png",
            found="a file" if base.exists() else "nothing of this name",
            next_step="check --images and --masks",
        )
    named = [_rule(part) for part in pattern.split("/")] if pattern else []
    files = (_named(path, place, named) for path, place in _walk(base, (), DEPTH))
    return Scan(base, pattern, sorted((file for file in files if file), key=lambda file: file.path.as_posix()))


def _parsed(place: Path) -> tuple[Path, str]:
    """Return the folder to search, and the pattern below it if there is one."""
    at = next((i for i, part in enumerate(place.parts) if "*" in part), len(place.parts))
    return (place, "") if place.is_dir() else (Path(*place.parts[:at]), "/".join(place.parts[at:]))


def _rule(part: str) -> re.Pattern[str]:
    """Return the regex of one part of a pattern: the first ``*`` is the name, every further ``*`` matches any text."""
    first, star, rest = re.sub(r"\*+", "*", part).partition("*")
    return re.compile(re.escape(first) + "(.+)" * bool(star) + ".*".join(map(re.escape, rest.split("*"))))


def _walk(folder: Path, place: tuple[str, ...], depth: int) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for path in folder.iterdir():
        if is_clutter(path.name):
            continue
        if path.is_dir():
            if depth:
                yield from _walk(path, (*place, path.name), depth - 1)
        elif path.is_file() or path.is_symlink():  # not pipes: reading one would block
            yield path, place


def _named(path: Path, place: tuple[str, ...], named: Sequence[re.Pattern[str]]) -> File | None:
    """Return a `File`, or None when it does not match the pattern. A pattern of a single part matches in any folder."""
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
    """Return the `File`: its place leaves out folders that only name a role, and has folders of splits as train, val or
    test."""
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
    """Return the files that count as tiles, and the files left out because they lie in deeper folders.

    If files lie in the folder itself, files in subfolders are left out. Else folders named after splits count, if there
    are any; they may contain one folder for each patient. Else one level of other folders counts.
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
    """Return a line on images that lie in subfolders and were not listed; an empty list if there are none."""
    if not left:
        return []
    folders = Counter(file.path.parent.relative_to(scanned.base).as_posix() for file in left)
    named = ", ".join(f"{n} in {folder}/" for folder, n in sorted(folders.items())[:5])
    more = f" and {len(folders) - 5} more folders" if len(folders) > 5 else ""
    return [
        f"{len(left)} more images lie in subfolders of {scanned.base} and were not listed: {named}{more}; move them to "
        "the folder of the other images, or add their folder as a separate dataset"
    ]


def stranger_notes(scanned: Scan, suffixes: Sequence[str]) -> list[str]:
    """Return a line for each kind of file that was skipped and may have been intended, with advice on it."""
    return [
        f"{n} {ending} files in {scanned.base} were skipped ({ADVICE[ending]})"
        for ending, n in sorted(scanned.strangers(suffixes).items())
    ]


def _xml_advice(path: Path) -> str:
    """Return advice on annotations in XML, depending on the program that wrote them."""
    with path.open("rb") as file:
        text = file.read(XML_HEAD).decode(errors="replace")
    kind, way = xml_kind(text) or ("XML", EXPORT)
    return f"{path.name} is {kind}, which is not supported: {way}"


def nothing_there(scanned: Scan, what: str, suffixes: Sequence[str]) -> ManifestError:
    """Return the error for a folder without images or masks: expected endings, files found, and advice on them."""
    endings = Counter(_ending(file.path) or "no ending" for file in scanned.files)
    strangers = scanned.strangers(suffixes)
    advice = dict.fromkeys(ADVICE[ending] for ending in strangers)
    if what == "masks" and (xml := next((file.path for file in scanned.files if _ending(file.path) == ".xml"), None)):
        advice = {_xml_advice(xml): None}
    if what == "images" and endings[".npy"]:
        advice[IMAGE_ARRAYS] = None
    found_none = "matches" if scanned.pattern else "holds"
    return ManifestError(
        f"{scanned.base / scanned.pattern} {found_none} no {what}",
        expected=", ".join(suffixes),
        found=", ".join(f"{n} {ending}" for ending, n in endings.most_common(6)) or "no files",
        next_step="; ".join(advice) or "check the path",
    )
