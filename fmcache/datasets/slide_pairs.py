"""Find the annotation file of each slide by its name, and name the slide's tiles."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fmcache.datasets.file_names import to_id
from fmcache.datasets.folder import Pair
from fmcache.errors import SpecError, some
from fmcache.manifest import NAME_BYTES
from fmcache.tiles.geojson import ENDINGS, EXPORT

OF_ONE_IMAGE = re.compile(r"\.ome(\.tiff?|\.btf|\.zarr)$", re.IGNORECASE)  # o1.ome.tif is o1
KIN = re.compile(
    r"([-_. ]+(annotations?|regions?|rois?|objects?|labels?|masks?|tissue|qupath|export))+$", re.IGNORECASE
)
MOST_BYTES = NAME_BYTES - len("_x00000000_y00000000")  # a tile's position is appended to the name of its slide
OTHERS = (".xml", ".geojson.zip", ".zip")  # used only if nothing else matches, so that the reader reports the problem
RULE = "NAME.geojson (or .json, .geojson.gz, NAME.svs.geojson, NAME_annotations.geojson) for every slide NAME.*"


def pair_slides(slides: Sequence[Path], annotations: Path) -> tuple[list[Pair], list[str]]:
    """Return each slide with its annotation file and the name of its tiles; and its patient, if folders name it.

    A folder of annotations is searched with its subfolders. Slides with the same name are distinguished by their
    folders: names of folders are put before their names, and their annotation files must lie in folders of the same
    names. The folders are then patients.

    Raises
    ------
    SpecError
        When slides cannot be distinguished, or a slide has no annotation file or several.
    """
    folders = _telling_folders(slides)
    names = _names(slides, folders)
    groups = ["-".join(_kept(folder)) for folder in folders] if any(folders) else [""] * len(slides)
    if not annotations.is_dir():
        if len(slides) != 1:
            raise SpecError(
                f"{annotations} is one file for {len(slides)} slides",
                expected=f"a folder with {RULE}",
                next_step="pass the folder to --annotations",
            )
        return [Pair(names[0], slides[0], annotations)], groups
    files = _files(annotations)
    owned = {_plain(base) for slide in slides for base in _bases(slide)}
    often = Counter(_plain(slide.stem) for slide in slides)
    found = [
        _of_slide(slide, folder if often[_plain(slide.stem)] > 1 else (), files, owned)
        for slide, folder in zip(slides, folders, strict=True)
    ]
    _refuse_all_but_one(slides, found, annotations, files)
    return [
        Pair(name, slide, annotations / file) for name, slide, (file,) in zip(names, slides, found, strict=True)
    ], groups


def _telling_folders(slides: Sequence[Path]) -> list[tuple[str, ...]]:
    """Return for every slide the folders that distinguish slides of the same name; empty if all names differ."""
    above = [slide.absolute().parts[-2:0:-1] for slide in slides]  # nearest first
    same: dict[str, list[int]] = {}
    for i, slide in enumerate(slides):
        same.setdefault(_plain(slide.stem), []).append(i)
    depths: set[int] = set()
    for members in same.values():
        depth = 0
        while len(members) > 1 and len({_at(above[i], depths) for i in members}) < len(members):
            if all(depth >= len(above[i]) for i in members):
                break  # the same file twice: its name is refused later
            if len({_at(above[i], {depth}) for i in members}) > 1:
                depths.add(depth)
            depth += 1
    return [_at(parts, depths) for parts in above]


def _at(nearest_first: Sequence[str], depths: Iterable[int]) -> tuple[str, ...]:
    return tuple(nearest_first[d] if d < len(nearest_first) else "" for d in sorted(depths, reverse=True))


def _kept(folder: Iterable[str]) -> list[str]:
    return [part for part in folder if part]


def _names(slides: Sequence[Path], folders: Sequence[tuple[str, ...]]) -> list[str]:
    often = Counter(_plain(slide.stem) for slide in slides)
    names = [
        to_id("-".join([*(_kept(folder) if often[_plain(slide.stem)] > 1 else []), slide.stem]), MOST_BYTES)
        for slide, folder in zip(slides, folders, strict=True)
    ]
    for name, path in zip(names, slides, strict=True):
        if not name or names.count(name) > 1:
            raise SpecError(
                f"{path}: tiles cannot be named after this slide",
                expected="slides whose names (or folders) differ in letters and digits (of any script)",
                found="the same name as another slide" if name else "no letters or digits in its name",
                next_step="rename the slide",
            )
    return names


def _files(annotations: Path) -> list[tuple[Path, str]]:
    """Return the files below a folder that may contain annotations, and their names without endings."""
    files = []
    for folder, _, names in os.walk(annotations):
        for name in sorted(names):
            ending = next((e for e in (*ENDINGS, *OTHERS)[::-1] if name.lower().endswith(e)), "")
            if ending and not name.startswith("."):
                files.append((Path(folder, name).relative_to(annotations), _plain(name[: -len(ending)])))
    return sorted(files)


def _of_slide(slide: Path, folder: tuple[str, ...], files: Sequence[tuple[Path, str]], owned: set[str]) -> list[Path]:
    """Return the files that are named after a slide; if there are several, those in folders of the slide's folders.

    Folders that distinguish the slide from slides of the same name must also be folders of the file.
    """
    bases, wanted = {_plain(base) for base in _bases(slide)}, set(_kept(folder))
    named = [
        file
        for file, base in files
        if (base in bases or (base not in owned and _plain(KIN.sub("", base)) in bases))
        and wanted <= set(file.parts[:-1])
    ]
    named = [file for file in named if file.name.lower().endswith(ENDINGS)] or named
    near = [file for file in named if len(file.parts) > 1 and set(file.parts[:-1]) <= set(slide.absolute().parts[:-1])]
    return near if near and not wanted else named


def _bases(slide: Path) -> set[str]:
    return {slide.name, slide.stem, OF_ONE_IMAGE.sub("", slide.name)}


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS separates accents from their letters


def _refuse_all_but_one(
    slides: Sequence[Path], found: Sequence[Sequence[Path]], annotations: Path, files: Sequence[tuple[Path, str]]
) -> None:
    if several := [(slide, its) for slide, its in zip(slides, found, strict=True) if len(its) > 1]:
        raise SpecError(
            f"{len(several)} of {len(slides)} slides have several files of annotations",
            expected="one file for each slide",
            found="; ".join(f"{slide.name}: {', '.join(map(str, its))}" for slide, its in several[:5]),
            next_step=f"move the files that should not be used out of {annotations}",
        )
    if missing := [slide for slide, its in zip(slides, found, strict=True) if not its]:
        taken = {file for its in found for file in its}
        left = [str(file) for file, _ in files if file not in taken]
        raise SpecError(
            f"{len(missing)} of {len(slides)} slides have no annotations",
            expected=RULE + "; for slides of the same name, in folders named like the folders of the slides",
            found=f"missing for: {', '.join(map(str, missing[:5]))}; files in {annotations} that match no slide: "
            + (some(left) or "none"),
            next_step=f"{EXPORT}, or leave these slides out",
        )
