"""Which mask belongs to which image, by names alone: the same name first, then names less what marks a mask or image.

What could belong to two is refused: a wrong pair gives wrong numbers, and nobody would be told.
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
    """A file by what its name says: `place` are the folders it lies in below the given one, less those called images or
    masks (then it has that `role`); `stem` is its name less the ending, in Unicode NFC."""

    path: Path
    place: tuple[str, ...]
    stem: str
    role: str = ""


class Matched(NamedTuple):
    """Images with their masks, and those that are alone."""

    pairs: list[tuple[File, File]]
    lone_images: list[File]
    lone_masks: list[File]


def match(images: Sequence[File], masks: Sequence[File]) -> Matched:
    """Return which mask belongs to which image, in the order of the images.

    The same name goes first; then a mask whose name less what marks a mask is an image's; then with what marks an image
    taken off too; then all of these whatever the case of letters. Names are compared within a place (`File`).

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
    """Return how names are read in each round: of images, of masks."""

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
            next_step="pass one of the folders; or, where each holds the masks of one label, --masks "
            f"{shlex.quote(one_each)}",
        )
    return ManifestError(
        f"{one.path} could belong to two {kind}: {before.path.name} and {other.path.name}",
        expected="one mask for an image, and one image for a mask",
        next_step=f"move one of them elsewhere, or say which by a pattern in which * is the name of the tile: "
        f"{flag} '{pattern_for(before, one)}' or {flag} '{pattern_for(other, one)}'",
    )


def shown(file: File) -> str:
    """Return the name of a file for a message, with the folders that tell it from others."""
    return "/".join([*file.place, file.path.name])


def pattern_for(file: File, partner: File) -> str:
    """Return the pattern that picks a file and its like from a folder, such as ``masks/*_seg.png``."""
    stem, ending = file.path.stem, file.path.suffix
    mark = "*"
    if stem.startswith(partner.stem):
        mark = "*" + stem.removeprefix(partner.stem)
    elif stem.endswith(partner.stem):
        mark = stem.removesuffix(partner.stem) + "*"
    return str(file.path.with_name(mark + ending))
