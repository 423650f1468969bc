"""Match masks with images by names alone: first equal names, then names without the marks of masks and images.

A file that could belong to two others is refused, because a wrong pair would give wrong results without any message.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.datasets.file_names import stripped
from fmcache.errors import ManifestError
from fmcache.quoting import quoted

Key = tuple[tuple[str, ...], str]


class File(NamedTuple):
    """A file and the parts of its name.

    `place` are its folders below the given one, without those called images or masks; such a folder gives the file its
    `role`. `stem` is the name without its ending, in Unicode NFC.
    """

    path: Path
    place: tuple[str, ...]
    stem: str
    role: str = ""


class Matched(NamedTuple):
    """Images with their masks, and images and masks without a partner."""

    pairs: list[tuple[File, File]]
    lone_images: list[File]
    lone_masks: list[File]


def match(images: Sequence[File], masks: Sequence[File]) -> Matched:
    """Return images with their masks, in the order of the images.

    Names are compared in rounds: first equal names; then names of masks without marks of a mask; then also names of
    images without marks of an image; then all of these again without regard to upper and lower case. Only files of the
    same place (`File`) are compared.

    Raises
    ------
    ManifestError
        When two masks could belong to one image, or one mask to two images.
    """
    mask_of: dict[Path, File] = {}
    image_of: dict[Path, File] = {}
    for of_image, of_mask in _rounds():
        open_images = [file for file in images if file.path not in mask_of]
        open_masks = [file for file in masks if file.path not in image_of]
        for image, mask in _met(open_images, open_masks, of_image, of_mask):
            for one, other, known in ((image, mask, mask_of), (mask, image, image_of)):
                if (before := known.setdefault(one.path, other)).path != other.path:
                    raise _ambiguous(one, before, other, known is mask_of)
    lone_images = [file for file in images if file.path not in mask_of]
    lone_masks = [file for file in masks if file.path not in image_of]
    for of_image, of_mask in _rounds() if lone_images or lone_masks else ():
        for image, mask in _met(images, lone_masks, of_image, of_mask):
            raise _ambiguous(image, mask_of[image.path], mask, True)
        for image, mask in _met(lone_images, masks, of_image, of_mask):
            raise _ambiguous(mask, image_of[mask.path], image, False)
    return Matched([(file, mask_of[file.path]) for file in images if file.path in mask_of], lone_images, lone_masks)


Keys = Callable[[File], set[Key]]


def _rounds() -> list[tuple[Keys, Keys]]:
    """Return for each round the functions that give the names of an image and of a mask to compare."""

    def keys(kind: str, times: int, fold: bool) -> Keys:
        return lambda file: {
            (file.place, name.casefold() if fold else name) for name in stripped(file.stem, kind, times)
        }

    marks = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    return [(keys("image", i, fold), keys("mask", m, fold)) for fold in (False, True) for i, m in marks]


def _met(images: Sequence[File], masks: Sequence[File], of_image: Keys, of_mask: Keys) -> list[tuple[File, File]]:
    named: dict[Key, list[File]] = defaultdict(list)
    for mask in masks:
        for key in of_mask(mask):
            named[key].append(mask)
    return [(image, mask) for image in images for key in sorted(of_image(image)) for mask in named.get(key, ())]


def _ambiguous(one: File, before: File, other: File, of_image: bool) -> ManifestError:
    kind, flag = ("masks", "--masks") if of_image else ("images", "--images")
    if before.path.name == other.path.name:
        one_each = ",".join(
            f"{quoted(file.path.parent.name)}={quoted(str(file.path.parent))}" for file in (before, other)
        )
        return ManifestError(
            f"{one.path} could belong to two {kind}: {before.path} and {other.path}",
            expected="one mask for an image, and one image for a mask",
            next_step="pass one of the folders; or, if each folder holds the masks of one label, pass --masks "
            f"{shlex.quote(one_each)}",
        )
    return ManifestError(
        f"{one.path} could belong to two {kind}: {before.path.name} and {other.path.name}",
        expected="one mask for an image, and one image for a mask",
        next_step=f"move one of them to another folder, or pass a pattern in which * is the name of the tile: "
        f"{flag} '{pattern_for(before, one)}' or {flag} '{pattern_for(other, one)}'",
    )


def shown(file: File) -> str:
    """Return the name of a file for a message, with the folders that distinguish it from others."""
    return "/".join([*file.place, file.path.name])


def pattern_for(file: File, partner: File) -> str:
    """Return a pattern that selects a file and similarly named files of its folder, such as ``masks/*_seg.png``."""
    stem, ending = file.path.stem, file.path.suffix
    mark = "*"
    if stem.startswith(partner.stem):
        mark = "*" + stem.removeprefix(partner.stem)
    elif stem.endswith(partner.stem):
        mark = stem.removesuffix(partner.stem) + "*"
    return str(file.path.with_name(mark + ending))
