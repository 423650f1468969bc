"""Folders of images and masks side by side -> pairs by name, and the entry that lists them in a manifest."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.errors import ManifestError, SpecError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
REGIONS = (".geojson",)
MASK_ENDINGS = re.compile(r"[-_](mask|masks|label|labels|seg|gt|annotation|annotations|tissue)$", re.IGNORECASE)


class Pair(NamedTuple):
    """An image, its mask, and the tile id made from their name."""

    id: str
    image: Path
    mask: Path


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """Return images and masks of the same name (the mask's may end in _mask, _labels, ...), sorted by name.

    A folder that holds GeoJSON files holds no other masks; it may be the folder of the images.

    Raises
    ------
    ManifestError
        When a folder is empty, a name occurs twice, or an image or mask is alone.
    """
    of_image = by_stem(images, SUFFIXES, strip=False)
    of_mask = by_stem(masks, REGIONS if holds_regions(masks) else SUFFIXES, strip=True)
    if alone := sorted(of_image.keys() ^ of_mask.keys()):
        without_mask, without_image = sorted(of_image.keys() - of_mask.keys()), sorted(of_mask.keys() - of_image.keys())
        raise ManifestError(
            f"{len(alone)} files have no partner of the same name",
            expected="an image in one folder and a mask in the other, such as a.png and a.png or a_mask.png",
            found=f"without mask: {_some(without_mask)}; without image: {_some(without_image)}",
            next_step="rename or remove them",
        )
    pairs = [
        Pair(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-"), of_image[stem], of_mask[stem]) for stem in of_image
    ]
    ids = [pair.id for pair in pairs]
    for pair, stem in zip(pairs, of_image, strict=True):
        if not pair.id or ids.count(pair.id) > 1:
            raise ManifestError(
                f"{pair.image}: no tile id can be made from the name {stem!r}",
                expected="names that differ in letters, digits, '.', '_' and '-'",
                next_step="rename the image and its mask",
            )
    return sorted(pairs)


def holds_regions(masks: Path) -> bool:
    """Return whether a folder of masks holds annotated regions (GeoJSON)."""
    return masks.is_dir() and any(path.suffix.lower() in REGIONS for path in masks.iterdir())


def group_of(groups: str, pairs: Sequence[Pair]) -> list[str]:
    """Return the group of each tile: from a CSV file with columns tile and group, or a regex with one (group).

    Raises
    ------
    SpecError
        When the rule leaves a tile without a group.
    """
    if not groups:
        return [""] * len(pairs)
    if Path(groups).suffix == ".csv":
        with Path(groups).open(newline="", encoding="utf-8") as file:
            listed = {row["tile"]: row["group"] for row in csv.DictReader(file)}
        found = [listed.get(pair.id, "") or listed.get(pair.image.stem, "") for pair in pairs]
    else:
        try:
            rule = re.compile(groups)
            matches = [rule.search(pair.image.stem) for pair in pairs]
            found = [match.group(1) if match else "" for match in matches]
        except (re.error, IndexError) as reason:
            raise SpecError(f"--groups {groups!r} is no regex with one (group): {reason}") from None
    if lone := [pair.id for pair, group in zip(pairs, found, strict=True) if not group]:
        raise SpecError(
            f"--groups {groups!r} gives no group to {len(lone)} tiles", found=_some(lone), next_step="mend the rule"
        )
    return found


def by_stem(folder: Path, suffixes: Sequence[str], strip: bool) -> dict[str, Path]:
    """Return the files of a folder by name, less what marks a mask where `strip` is set.

    Raises
    ------
    ManifestError
        When there is no folder, it holds no such files, or two have the same name.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder} is no folder", next_step="check --images and --masks")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = MASK_ENDINGS.sub("", path.stem) if strip else path.stem
        if stem in files:
            raise ManifestError(
                f"{folder}: {files[stem].name} and {path.name} have the same name {stem!r}",
                next_step="keep one of them",
            )
        files[stem] = path
    if not files:
        raise ManifestError(f"{folder} holds no images", expected=", ".join(suffixes), next_step="check the path")
    return files


def _some(names: Sequence[str]) -> str:
    return (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
