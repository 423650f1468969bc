"""Folders of images and masks -> pairs by name, with the splits and groups that subfolders say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from fmcache.datasets.file_names import RULE, to_id
from fmcache.datasets.matching import File, Matched, match, shown
from fmcache.datasets.parting import Parted, part
from fmcache.datasets.scan import Scan, choose_level, left_out, nothing_there, scan, stranger_notes
from fmcache.errors import ManifestError, some
from fmcache.manifest import SPLITS
from fmcache.tiles.geojson import ENDINGS as REGIONS
from fmcache.tiles.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES


class Pair(NamedTuple):
    """An image, its mask, and the tile id made from their name."""

    id: str
    image: Path
    mask: Path


class FolderPairs(NamedTuple):
    """Pairs sorted by id; the split and group of each that its folders say ('' where they say none); whether masks are
    annotated regions; the folder that holds all of it; what is worth knowing, one line each."""

    pairs: list[Pair]
    splits: list[str]
    groups: list[str]
    regions: bool
    root: Path
    notes: list[str]


def find_tiles(images: Path, masks: Path, skip_lone: bool = False, other: Collection[Path] = ()) -> FolderPairs:
    """Return images and their masks, paired by name (`fmcache.datasets.matching`).

    Parameters
    ----------
    images, masks
        Folders, which may be the same, or patterns such as ``masks/*_seg.png``. In one folder, what is a mask shows in
        its name or, of two files of one name, in its type.
    skip_lone
        Pass over images without masks and masks without images, and tell how many.
    other
        Files that are no images, whatever their names.

    Raises
    ------
    ManifestError
        When a folder is empty, a name could mean two files, or an image or mask is alone.
    """
    of_images, of_masks = scan(images), scan(masks)
    none_of = set(other)
    pictures = [file for file in of_images.of(IMAGE_SUFFIXES) if file.path not in none_of]
    regions = of_masks.of(REGIONS)
    parted = part(of_images, of_masks, pictures, of_masks.of(MASK_SUFFIXES))
    if not parted.images:
        raise nothing_there(of_images, "images", IMAGE_SUFFIXES)
    if not parted.masks and not regions:
        raise _no_masks(of_images, of_masks)
    chosen, left = choose_level(parted.images)
    if not chosen:
        raise _too_deep(of_images, left)
    notes = left_out(of_images, left) + _passed_over(of_images, of_masks, parted)
    place_of = {file.path: file.place for file in chosen}
    matched, by_regions = _by_kind(of_masks, chosen, parted.masks, regions, notes)
    if not matched.pairs:
        raise _nothing_pairs(matched)
    _tell_lone(matched, skip_lone, notes)
    pairs = _named(matched.pairs, place_of)
    places = [place_of[pair.image] for pair in pairs]
    splits = [place[0] if place and place[0] in SPLITS else "" for place in places]
    splits = splits if all(splits) else [""] * len(pairs)
    root = _common(of_images.base, of_masks.base)
    return FolderPairs(pairs, splits, _groups(places, splits, notes), by_regions, root, notes)


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """Return the pairs of two folders, or of one, that hold images and masks themselves, not in subfolders.

    Raises
    ------
    ManifestError
        As `find_tiles`; or when images lie in subfolders.
    """
    found = find_tiles(images, masks)
    if any(found.groups) or any(found.splits):
        raise ManifestError(f"{images}: images lie in subfolders", next_step="put them all into this folder")
    return found.pairs


def find_images(images: Path, other: Collection[Path] = ()) -> tuple[list[File], list[str]]:
    """Return the images of a folder or pattern, less `other` files, and lines on what was left out.

    Raises
    ------
    ManifestError
        When there are none.
    """
    scanned = scan(images)
    none_of = set(other)
    files, left = choose_level([file for file in scanned.of(IMAGE_SUFFIXES) if file.path not in none_of])
    if not files:
        raise nothing_there(scanned, "images", IMAGE_SUFFIXES)
    return files, left_out(scanned, left)


def find_partners(place: Path, images: Sequence[File]) -> Matched:
    """Return which of the pictures in a folder or under a pattern is the mask of which image.

    Raises
    ------
    ManifestError
        When there is no such folder, or a mask could belong to two images, or the reverse.
    """
    known = {file.path.resolve() for file in images}
    return _match(images, [file for file in scan(place).of(MASK_SUFFIXES) if file.path.resolve() not in known])


def _no_masks(of_images: Scan, of_masks: Scan) -> ManifestError:
    """Return the error for a folder without masks; where images lie in it too, with how the two are told apart."""
    if of_images.base.resolve() != of_masks.base.resolve() or of_masks.pattern:
        return nothing_there(of_masks, "masks", (*MASK_SUFFIXES, *REGIONS))
    return ManifestError(
        f"{of_masks.base}: none of its files is told as a mask",
        expected=f"folders images/ and masks/ in it; or {RULE}; or a JPEG image and a lossless mask of one name",
        found=some([shown(file) for file in of_masks.files]),
        next_step="say which by patterns, such as --images 'DIR/*_HE.png' --masks 'DIR/*_tumour.png', or by folders, "
        "such as --images DIR/JPEGImages --masks DIR/SegmentationClass, or 'DIR/Slide_*/*.png' and 'DIR/GT_*/*.png'",
    )


def _passed_over(of_images: Scan, of_masks: Scan, parted: Parted) -> list[str]:
    """Return a line for each kind of file that was passed over and may have been meant."""
    notes = stranger_notes(of_images, (*IMAGE_SUFFIXES, *REGIONS, ".npy"))
    if of_masks.base.resolve() != of_images.base.resolve():
        notes += stranger_notes(of_masks, (*MASK_SUFFIXES, *REGIONS))
    if parted.neither:
        names = some([shown(file) for file in parted.neither])
        notes.append(f"{len(parted.neither)} pictures beside folders of images and masks were passed over: {names}")
    return notes


def _by_kind(
    of_masks: Scan, images: list[File], drawn: list[File], regions: list[File], notes: list[str]
) -> tuple[Matched, bool]:
    """Match images with pictures or with annotated regions: with what pairs, where a folder holds both."""
    pictures = _match(images, drawn) if drawn else Matched([], images, [])
    annotated = _match(images, regions) if regions else Matched([], images, [])
    if pictures.pairs and annotated.pairs:
        raise ManifestError(
            f"{of_masks.base} holds both pictures and annotated regions for these images",
            expected="masks of one kind",
            found=f"{len(pictures.pairs)} images with a picture ({pictures.pairs[0][1].path.name}, ...), "
            f"{len(annotated.pairs)} with regions ({annotated.pairs[0][1].path.name}, ...)",
            next_step=f"choose by a pattern: --masks '{of_masks.base}/*{pictures.pairs[0][1].path.suffix}' or "
            f"--masks '{of_masks.base}/*{annotated.pairs[0][1].path.suffix}'",
        )
    if not regions or pictures.pairs:
        if regions:
            names = some([file.path.name for file in regions])
            notes.append(f"{len(regions)} annotation files in {of_masks.base} belong to no image, passed over: {names}")
        return pictures, False
    if drawn and annotated.pairs:
        names = some([file.path.name for file in drawn])
        notes.append(f"{len(drawn)} pictures in {of_masks.base} belong to no image, passed over: {names}")
    if annotated.pairs and all(file.path.suffix == ".json" for file in annotated.lone_masks) and annotated.lone_masks:
        names = some([file.path.name for file in annotated.lone_masks])
        notes.append(f"{len(annotated.lone_masks)} .json files belong to no image, passed over: {names}")
        annotated = annotated._replace(lone_masks=[])
    if not annotated.pairs:
        return Matched([], images, [*drawn, *regions]), True
    return annotated, True


def _match(images: Sequence[File], masks: Sequence[File]) -> Matched:
    """Match within folders of the same place; where one side has no folders, by names, as P01_a or else as a."""
    masks, left = choose_level(masks)
    masks = masks or [file._replace(place=()) for file in left]
    if all(file.place for file in masks) and all(file.place for file in images):
        return match(images, masks)
    with_folders = match(
        *(
            [file._replace(place=(), stem="_".join([*file.place, file.stem])) for file in side]
            for side in (images, masks)
        )
    )
    if with_folders.pairs:
        return with_folders
    return match(*([file._replace(place=()) for file in side] for side in (images, masks)))


def _tell_lone(matched: Matched, skip: bool, notes: list[str]) -> None:
    without_mask, without_image = ([shown(file) for file in lone] for lone in matched[1:])
    if not without_mask and not without_image:
        return
    if not skip:
        raise ManifestError(
            f"{len(without_mask) + len(without_image)} files have no partner of the same name",
            expected=RULE,
            found=f"without mask: {some(without_mask) or 'none'}; without image: {some(without_image) or 'none'}",
            next_step="rename or remove them, or pass over them with --missing skip",
        )
    notes.append(
        f"{len(without_mask)} images without a mask and {len(without_image)} masks without an image passed over: "
        f"{some([*without_mask, *without_image])}"
    )


def _nothing_pairs(matched: Matched) -> ManifestError:
    images, masks = ([shown(file) for file in lone] for lone in matched[1:])
    in_place, drawn = (Counter(file.place for file in lone if file.place) for lone in matched[1:])
    if in_place and all(n == 1 < drawn[place] for place, n in in_place.items()):
        way = "where each object has a mask of its own, merge those of an image into one that numbers them from 1 on"
    else:
        way = "rename them"
    return ManifestError(
        "no image and mask go together by their names",
        expected=RULE,
        found=f"images: {some(images, 3)}; masks: {some(masks, 3)}",
        next_step=f"{way}, or say where the name of the tile stands in that of the mask, such as "
        "--masks 'masks/*_tumour.png', or in folders, such as --masks 'set/GT_*/*.png'",
    )


def _too_deep(scanned: Scan, left: Sequence[File]) -> ManifestError:
    folders = sorted({file.path.parent.relative_to(scanned.base).as_posix() for file in left})
    return ManifestError(
        f"the images of {scanned.base} lie several folders deep",
        expected="images in the folder, or in one level of folders (train, val and test, or one for each patient)",
        found=some(folders),
        next_step="pass a folder further down, or move the images",
    )


def _named(matched: Sequence[tuple[File, File]], place_of: dict[Path, tuple[str, ...]]) -> list[Pair]:
    """Return pairs with ids, sorted; folders are part of them where names repeat."""
    stems = [image.stem for image, _ in matched]
    repeat = len(set(map(to_id, stems))) < len(stems)
    names = ["_".join([*(place_of[image.path] if repeat else ()), image.stem]) for image, _ in matched]
    pairs = [Pair(to_id(name), i.path, m.path) for name, (i, m) in zip(names, matched, strict=True)]
    counts = Counter(pair.id for pair in pairs)
    for pair, stem in zip(pairs, stems, strict=True):
        if not pair.id or counts[pair.id] > 1:
            raise ManifestError(
                f"{pair.image}: no tile id can be made from the name {stem!r}",
                expected="names that differ in letters and digits (of any script), '.', '_' and '-'",
                next_step="rename the image and its mask",
            )
    return sorted(pairs)


def _groups(places: Sequence[tuple[str, ...]], splits: Sequence[str], notes: list[str]) -> list[str]:
    """Return the group that folders say: the patient's folder, where there are several."""
    inner = [place[1:] if split else place for place, split in zip(places, splits, strict=True)]
    folders = ["/".join(place) for place in inner]
    if len(set(folders)) < 2:
        return [""] * len(places)
    parts: dict[str, set[str]] = {}
    for folder, split in zip(folders, splits, strict=True):
        parts.setdefault(folder, set()).add(split)
    if shared := sorted(folder for folder, its in parts.items() if folder and len(its) > 1):
        notes.append(
            f"folders {some(shared)} are in several splits, so folders are not taken as patients; if they are "
            "patients, the test is not of new ones"
        )
        return [""] * len(places)
    notes.append(
        f"{len(parts)} folders of images are taken as patients or slides that no split parts, unless --groups says "
        f"otherwise: {some(sorted(parts))}"
    )
    return folders


def _common(one: Path, other: Path) -> Path:
    """Return the deepest folder that holds both."""
    first, second = one.resolve(), other.resolve()
    for folder in (first, *first.parents):
        if second.is_relative_to(folder):
            return folder
    raise ManifestError(f"{one} and {other} are on different drives", next_step="put both on one")
