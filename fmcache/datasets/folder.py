"""Folders of images and masks -> pairs by name, with the splits and groups that subfolders name."""

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
    """Pairs of image and mask, with what their folders say about them.

    `pairs` is sorted by id. `splits` and `groups` have one entry per pair, '' where folders name none. `regions` says
    whether masks are annotated regions. `root` is the folder that contains all files. `notes` has one line per note.
    """

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
        Folders, which may be the same, or patterns such as ``masks/*_seg.png``. If both are the same folder, a mask is
        recognised by its name or, when two files have the same name, by its type.
    skip_lone
        Skip images without masks and masks without images, and note their number.
    other
        Files that are not images, even if their names look like it.

    Raises
    ------
    ManifestError
        When a folder is empty, a name could mean two files, or an image or mask has no partner.
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
    notes = left_out(of_images, left) + _skipped(of_images, of_masks, parted)
    place_of = {file.path: file.place for file in chosen}
    matched, by_regions = _by_kind(of_masks, chosen, parted.masks, regions, notes)
    if not matched.pairs:
        raise _nothing_pairs(matched)
    _note_lone(matched, skip_lone, notes)
    pairs = _named(matched.pairs, place_of)
    places = [place_of[pair.image] for pair in pairs]
    splits = [place[0] if place and place[0] in SPLITS else "" for place in places]
    splits = splits if all(splits) else [""] * len(pairs)
    root = _common(of_images.base, of_masks.base)
    return FolderPairs(pairs, splits, _groups(places, splits, notes), by_regions, root, notes)


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """Return the pairs of two folders, or of one, that hold images and masks directly, not in subfolders.

    Raises
    ------
    ManifestError
        As in `find_tiles`; also when images lie in subfolders.
    """
    found = find_tiles(images, masks)
    if any(found.groups) or any(found.splits):
        raise ManifestError(f"{images}: images lie in subfolders", next_step="put them all into this folder")
    return found.pairs


def find_images(images: Path, other: Collection[Path] = ()) -> tuple[list[File], list[str]]:
    """Return the images of a folder or pattern, without `other` files, and lines on the images that were left out.

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
    """Match images with their masks; the masks are image files in a folder or under a pattern.

    Raises
    ------
    ManifestError
        When the folder does not exist, a mask could belong to two images, or an image could have two masks.
    """
    known = {file.path.resolve() for file in images}
    return _match(images, [file for file in scan(place).of(MASK_SUFFIXES) if file.path.resolve() not in known])


def _no_masks(of_images: Scan, of_masks: Scan) -> ManifestError:
    """Return the error for a folder without masks. If it also holds images, the error says how masks are recognised."""
    if of_images.base.resolve() != of_masks.base.resolve() or of_masks.pattern:
        return nothing_there(of_masks, "masks", (*MASK_SUFFIXES, *REGIONS))
    return ManifestError(
        f"{of_masks.base}: none of its files is recognised as a mask",
        expected=f"folders images/ and masks/ in it; or {RULE}; or a JPEG image and a lossless mask of the same name",
        found=some([shown(file) for file in of_masks.files]),
        next_step="pass patterns, such as --images 'DIR/*_HE.png' --masks 'DIR/*_tumour.png', or folders, "
        "such as --images DIR/JPEGImages --masks DIR/SegmentationClass, or 'DIR/Slide_*/*.png' and 'DIR/GT_*/*.png'",
    )


def _skipped(of_images: Scan, of_masks: Scan, parted: Parted) -> list[str]:
    """Return a line for each kind of file that was skipped and may have been intended as an image or mask."""
    notes = stranger_notes(of_images, (*IMAGE_SUFFIXES, *REGIONS, ".npy"))
    if of_masks.base.resolve() != of_images.base.resolve():
        notes += stranger_notes(of_masks, (*MASK_SUFFIXES, *REGIONS))
    if parted.neither:
        names = some([shown(file) for file in parted.neither])
        notes.append(f"{len(parted.neither)} image files outside the folders of images and masks were skipped: {names}")
    return notes


def _by_kind(
    of_masks: Scan, images: list[File], drawn: list[File], regions: list[File], notes: list[str]
) -> tuple[Matched, bool]:
    """Match images with image masks or with annotated regions; in a folder with both, use the kind that matches."""
    pictures = _match(images, drawn) if drawn else Matched([], images, [])
    annotated = _match(images, regions) if regions else Matched([], images, [])
    if pictures.pairs and annotated.pairs:
        raise ManifestError(
            f"{of_masks.base} holds both mask images and annotated regions for these images",
            expected="masks of one kind",
            found=f"{len(pictures.pairs)} images with a mask image ({pictures.pairs[0][1].path.name}, ...), "
            f"{len(annotated.pairs)} with regions ({annotated.pairs[0][1].path.name}, ...)",
            next_step=f"choose by a pattern: --masks '{of_masks.base}/*{pictures.pairs[0][1].path.suffix}' or "
            f"--masks '{of_masks.base}/*{annotated.pairs[0][1].path.suffix}'",
        )
    if not regions or pictures.pairs:
        if regions:
            names = some([file.path.name for file in regions])
            notes.append(f"{len(regions)} annotation files in {of_masks.base} match no image and were skipped: {names}")
        return pictures, False
    if drawn and annotated.pairs:
        names = some([file.path.name for file in drawn])
        notes.append(f"{len(drawn)} image files in {of_masks.base} match no image and were skipped: {names}")
    if annotated.pairs and all(file.path.suffix == ".json" for file in annotated.lone_masks) and annotated.lone_masks:
        names = some([file.path.name for file in annotated.lone_masks])
        notes.append(f"{len(annotated.lone_masks)} .json files match no image and were skipped: {names}")
        annotated = annotated._replace(lone_masks=[])
    if not annotated.pairs:
        return Matched([], images, [*drawn, *regions]), True
    return annotated, True


def _match(images: Sequence[File], masks: Sequence[File]) -> Matched:
    """Match files within folders of the same name.

    If one side has no folders, match by file names: first with the folder in front, as in P01_a, else without, as in a.
    """
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


def _note_lone(matched: Matched, skip: bool, notes: list[str]) -> None:
    without_mask, without_image = ([shown(file) for file in lone] for lone in matched[1:])
    if not without_mask and not without_image:
        return
    if not skip:
        raise ManifestError(
            f"{len(without_mask) + len(without_image)} files have no partner of the same name",
            expected=RULE,
            found=f"without mask: {some(without_mask) or 'none'}; without image: {some(without_image) or 'none'}",
            next_step="rename or remove them, or skip them with --missing skip",
        )
    notes.append(
        f"{len(without_mask)} images without a mask and {len(without_image)} masks without an image were skipped: "
        f"{some([*without_mask, *without_image])}"
    )


def _nothing_pairs(matched: Matched) -> ManifestError:
    images, masks = ([shown(file) for file in lone] for lone in matched[1:])
    in_place, drawn = (Counter(file.place for file in lone if file.place) for lone in matched[1:])
    if in_place and all(n == 1 < drawn[place] for place, n in in_place.items()):
        way = "if each object has a separate mask, merge the masks of an image into one that numbers objects from 1"
    else:
        way = "rename them"
    return ManifestError(
        "no image and mask match by their names",
        expected=RULE,
        found=f"images: {some(images, 3)}; masks: {some(masks, 3)}",
        next_step=f"{way}, or pass a pattern in which * stands for the tile's name, such as "
        "--masks 'masks/*_tumour.png', or for folders, such as --masks 'set/GT_*/*.png'",
    )


def _too_deep(scanned: Scan, left: Sequence[File]) -> ManifestError:
    folders = sorted({file.path.parent.relative_to(scanned.base).as_posix() for file in left})
    return ManifestError(
        f"the images of {scanned.base} lie in several levels of subfolders",
        expected="images in the folder, or in one level of folders (train, val and test, or one for each patient)",
        found=some(folders),
        next_step="pass one of the subfolders, or move the images",
    )


def _named(matched: Sequence[tuple[File, File]], place_of: dict[Path, tuple[str, ...]]) -> list[Pair]:
    """Return pairs with ids, sorted by id; when names repeat, ids also contain the folders."""
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
    """Return the group of each tile: its patient's folder, if there are several such folders."""
    inner = [place[1:] if split else place for place, split in zip(places, splits, strict=True)]
    folders = ["/".join(place) for place in inner]
    if len(set(folders)) < 2:
        return [""] * len(places)
    parts: dict[str, set[str]] = {}
    for folder, split in zip(folders, splits, strict=True):
        parts.setdefault(folder, set()).add(split)
    if shared := sorted(folder for folder, its in parts.items() if folder and len(its) > 1):
        notes.append(
            f"folders {some(shared)} are in several splits, so folders are not used as patients; if they are "
            "patients, the test is not on new patients"
        )
        return [""] * len(places)
    notes.append(
        f"{len(parts)} folders of images are used as patients or slides, and each stays in one split, unless --groups "
        f"says otherwise: {some(sorted(parts))}"
    )
    return folders


def _common(one: Path, other: Path) -> Path:
    """Return the deepest folder that contains both paths."""
    first, second = one.resolve(), other.resolve()
    for folder in (first, *first.parents):
        if second.is_relative_to(folder):
            return folder
    raise ManifestError(f"{one} and {other} are on different drives", next_step="put both on one drive")
