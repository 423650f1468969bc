"""Folders of images and masks side by side -> pairs by name, and the entry that lists them in a manifest."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.errors import ManifestError, SpecError
from fmcache.manifest import IGNORE, Label, check_mask_values, mask_span

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
REGIONS = (".geojson",)
MASK_ENDINGS = re.compile(r"[-_](mask|masks|label|labels|seg|gt|annotation|annotations|tissue)$", re.IGNORECASE)
# Okabe & Ito 2008: told apart by people of all colour vision
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")


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


def parse_labels(text: str, regions: bool = False) -> tuple[Label, ...]:
    """Return labels from ``name=value|value,name=#rrggbb,...``; without values, a label's position is its value.

    With `regions`, values are names of classes (a ``#rrggbb`` among them is the label's colour), and the name of a
    label without any is its class.

    Raises
    ------
    SpecError
        When a part cannot be read.
    """
    labels = []
    for i, part in enumerate(text.split(",")):
        name, _, values = part.strip().partition("=")
        parsed = parse_classes(values) if regions else parse_values(values)
        colours = [value for value in parsed if isinstance(value, str) and value.startswith("#")]
        if regions:
            parse_values("|".join(colours))
            parsed = tuple(value for value in parsed if value not in colours)
        if not name:
            raise SpecError(f"--labels {text!r}: a label has no name", expected="such as 'other=0,tumour=1|2'")
        labels.append(Label(name, colours[0].lower() if colours else PALETTE[i % len(PALETTE)], parsed))
    return tuple(labels)


def parse_values(text: str) -> tuple[int | str, ...]:
    """Return mask values from ``0|2``, ``1-`` or ``#ff0000|#00ff00``.

    Raises
    ------
    SpecError
        When one is no number, range or ``#rrggbb``.
    """
    values = tuple(int(value) if value.isdecimal() else value.lower() for value in text.split("|") if value)
    try:
        check_mask_values(values)
    except ValueError as reason:
        raise SpecError(str(reason)) from None
    return values


def parse_classes(text: str) -> tuple[str, ...]:
    """Return names of classes from ``Tumor|Tumor: invasive``."""
    return tuple(name.strip() for name in text.split("|") if name.strip())


def parse_order(text: str, labels: Sequence[Label], ignored: Sequence[str]) -> tuple[str, ...]:
    """Return all classes from lowest to highest, from labels (whose classes keep their order) and classes.

    Raises
    ------
    SpecError
        When one is named twice, is unknown, or is left out.
    """
    classes = {label.name: tuple(str(v) for v in label.values) or (label.name,) for label in labels}
    known = {name for names in classes.values() for name in names} | set(ignored)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    order = tuple(name for part in parts for name in classes.get(part, (part,)))
    if order and sorted(order) != sorted(known):
        raise SpecError(
            f"--order {text!r} does not name every class once",
            expected=f"from lowest to highest, labels or classes: {', '.join(sorted(known))}",
            found=", ".join(order),
            next_step="complete it",
        )
    return order


def ignored_values(text: str, labels: Sequence[Label]) -> tuple[int | str, ...]:
    """Return the values to ignore, less those that are a label's (so that the default 255 may be a label)."""
    used = [value for label in labels for value in label.values] or list(range(len(labels)))
    taken = any(low <= IGNORE <= high for low, high in map(mask_span, used))
    return tuple(value for value in parse_values(text) if value != IGNORE or not taken)


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
