"""Separate images from masks in a folder that holds both: by subfolder, by type, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.datasets.file_names import stripped
from fmcache.datasets.matching import File
from fmcache.datasets.scan import Scan
from fmcache.errors import ManifestError
from fmcache.tiles.containers import look

LOSSY = (".jpg", ".jpeg")


class Parted(NamedTuple):
    """Images, masks, and image files that are neither, because they lie outside folders of images and of masks."""

    images: list[File]
    masks: list[File]
    neither: list[File]


def part(of_images: Scan, of_masks: Scan, pictures: list[File], drawn: list[File]) -> Parted:
    """Separate images from masks. `pictures` and `drawn` are all image files of their folder or pattern.

    Raises
    ------
    ManifestError
        When two files have the same name and either could be the image.
    """
    base, mask_base = of_images.base.resolve(), of_masks.base.resolve()
    if base != mask_base:
        if mask_base.is_relative_to(base):
            pictures = [file for file in pictures if not file.path.parent.resolve().is_relative_to(mask_base)]
        else:
            drawn = [file for file in drawn if not file.path.parent.resolve().is_relative_to(base)]
    elif of_masks.pattern:
        taken = {file.path for file in drawn}
        pictures = [file for file in pictures if file.path not in taken]
    elif of_images.pattern:
        taken = {file.path for file in pictures}
        drawn = [file for file in drawn if file.path not in taken]
    elif {"image", "mask"} <= {file.role for file in drawn}:
        neither = [file for file in drawn if not file.role]
        return Parted([f for f in pictures if f.role == "image"], [f for f in drawn if f.role == "mask"], neither)
    else:
        masks = _masks_among(drawn)
        pictures = [file for file in pictures if file.path not in masks]
        drawn = [file for file in drawn if file.path in masks]
    # a folder named with --images or --masks holds images or masks, even if names of its subfolders say otherwise
    named = base != mask_base
    images = [f for f in pictures if f.role != "mask"] or pictures * named
    return Parted(images, [f for f in drawn if f.role != "image"] or drawn * named, [])


def _masks_among(files: Sequence[File]) -> set[Path]:
    """Return the masks among the files of one folder.

    They are found by subfolder, by type when two files have the same name, else by name.
    """
    masks = {file.path for file in files if file.role == "mask" or file.path.suffix.lower() == ".npy"}
    open_files = [file for file in files if file.path not in masks and file.role != "image"]
    named: dict[tuple[tuple[str, ...], str], list[File]] = {}
    for file in open_files:
        named.setdefault((file.place, file.stem.casefold()), []).append(file)
    for twins in named.values():
        if len(twins) > 1:
            masks.add(_mask_of_twins(twins))
    marked = {
        (f.place, rest.casefold()): f for f in open_files for n in (1, 0) for rest in stripped(f.stem, "image", n)
    }
    for file in open_files:
        rests = {rest for times in (1, 2) for rest in stripped(file.stem, "mask", times)}
        partners = [marked.get((file.place, rest.casefold())) for rest in rests]
        if any(partner and partner.path != file.path for partner in partners):
            masks.add(file.path)
    return masks


def _mask_of_twins(twins: Sequence[File]) -> Path:
    """Return the mask of two files with the same name: the other file is a JPEG, or is the only one in colour."""
    lossless = [file.path for file in twins if file.path.suffix.lower() not in LOSSY]
    plain = [path for path in lossless if not _in_colour(path)]
    for masks in (lossless, plain):
        if len(twins) == 2 and len(masks) == 1:
            return masks[0]
    raise ManifestError(
        f"{twins[0].path.parent}: {' and '.join(file.path.name for file in twins)} have the same name",
        expected="an image and its mask: one of them JPEG, or one in grey or palette and one in colour",
        next_step="pass patterns, such as --images 'DIR/*.tif' --masks 'DIR/*.png', or put masks into another folder",
    )


def _in_colour(path: Path) -> bool:
    facts = look(path)
    return facts is None or facts.mode not in ("1", "L", "LA", "P", "PA", "I", "I;16", "I;16B", "I;16L", "F")
