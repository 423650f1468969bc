"""Read names of files and folders: which tile, image or mask, and which split; make tile ids from names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from fmcache.manifest import NAME_BYTES, RESERVED_NAMES, Split, is_name, is_name_character

_MASK = (
    "mask|masks|label|labels|labelled|labeled|labelmap|seg|segm|segmentation|segmentations|gt|ground[-_ ]?truth|truth|"
    "anno|annot|annotated|annotation|annotations|manual|target|lbl|inst|instances?|semantic|binary|bin[-_ ]mask|"
    "simple[-_ ]segmentation|cp[-_ ]masks?|fuse"
)
_DRAWN = f"{_MASK}|tissue|nuclei"  # the last two mark a mask only in names of files: such folders may hold images
_IMAGE = "image|images|img|im|rgb|tile|patch|he|h&e|original|orig|raw|input"
_SIGNS = "[-_. ]"
_AFFIXES = {
    "mask": (
        re.compile(rf"{_SIGNS}+({_DRAWN})$", re.IGNORECASE),
        re.compile(rf"^({_DRAWN}){_SIGNS}+", re.IGNORECASE),
        re.compile(r"(\.ome)?\.(png|tiff?|jpe?g|bmp)$", re.IGNORECASE),  # a.tif.geojson belongs to a.tif
    ),
    "image": (
        re.compile(rf"{_SIGNS}+({_IMAGE})$", re.IGNORECASE),
        re.compile(rf"^({_IMAGE}){_SIGNS}+", re.IGNORECASE),
    ),
}
_ENDING = re.compile(r"(\.geojson|\.json)?\.gz$|(\.ome)?\.[^.\s]{1,8}$", re.IGNORECASE)
_KNOWN_ENDING = re.compile(
    r"(\.(geojson|json)\.gz|(\.ome)?\.(png|tiff?|jpe?g|bmp|npy|geojson|json)|"
    r"\.(svs|ndpi|mrxs|scn|vms|vmu|bif|czi|dcm|gif|webp|jp2))$",
    re.IGNORECASE,
)
_ROLES = {
    "image": re.compile(r"(images?|imgs?|tiles?|patche?s?|rgb|h&?e|inputs?|originals?)", re.IGNORECASE),
    "mask": re.compile(rf"({_MASK}|ann|geojsons?)", re.IGNORECASE),
}
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip

_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db", "@eadir")

RULE = (
    "a mask named like its image; the file ending may differ, and a mark of a mask (upper or lower case) may stand at "
    "either end: a_mask, a-labels, a-labelled, a_seg, a_segmentation, a_gt, a_anno, a_annotation, a_tissue, a.mask, "
    "mask_a, GT_a"
)


def stem_of(name: str) -> str:
    """Return the name of a file without its ending, in Unicode NFC. ``.ome.tif`` and ``.geojson.gz`` are one ending."""
    return unicodedata.normalize("NFC", _ENDING.sub("", name, count=1) or name)


def tile_key(text: str) -> str:
    """Return the name of a tile, in the form of `stem_of`, from a list entry with or without folders and ending.

    Only endings of images, slides and masks are removed: the dot in ``case1.5`` stays.
    """
    name = re.split(r"[/\\]", text.strip())[-1]
    return unicodedata.normalize("NFC", _KNOWN_ENDING.sub("", name))


def stripped(stem: str, kind: str, times: int) -> set[str]:
    """Return all names left when `times` marks of a ``mask`` or an ``image`` are removed from the ends of a stem."""
    found = {stem}
    for _ in range(times):
        found = {rest for one in found for mark in _AFFIXES[kind] if (rest := mark.sub("", one)) not in ("", one)}
    return found


def is_clutter(name: str) -> bool:
    """Return whether a file or folder is hidden or was left by an operating system (``._a.png``, ``.DS_Store``)."""
    return name.startswith(".") or name.lower() in _CLUTTER


def role_of(folder: str) -> str:
    """Return ``image`` or ``mask`` for a folder whose name says that it holds images or masks, else ""."""
    return next((role for role, words in _ROLES.items() if words.fullmatch(folder)), "")


def split_of(folder: str) -> tuple[Split, str] | None:
    """Return the split in a folder's name (``train``, ``2.validation``, ``Testing``) and the folder's role, or None.

    The role is ``image`` or ``mask`` for names such as ``train_images`` and ``masks-test``, else empty.
    """
    name = re.sub(r"^[0-9]+[-_. ]*", "", folder)
    for role in ("", *_ROLES):
        for rest in sorted(stripped(name, role, 1)) if role else [name]:
            if split := _SPLITS.get(rest.lower()):
                return split, role
    return None


def to_id(name: str, most_bytes: int = NAME_BYTES) -> str:
    """Return a tile id made from a name: letters and digits of any script stay, other runs become ``-``.

    The id is a safe file name on every system. An id longer than `most_bytes` of UTF-8 is cut, and a digest replaces
    the rest. The id is empty when no character is left.
    """
    text = unicodedata.normalize("NFC", name)
    kept = re.sub("\0+", "-", "".join(c if is_name_character(c) else "\0" for c in text))
    kept = kept.lstrip("._-").rstrip(".")
    while kept and unicodedata.category(kept[0]).startswith("M"):
        kept = kept[1:].lstrip("._-")
    if kept.partition(".")[0].lower() in RESERVED_NAMES:
        kept = f"t-{kept}"
    if len(kept.encode()) > most_bytes:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]
        kept = kept.encode()[: most_bytes - 11].decode(errors="ignore").rstrip("._-") + f"-{digest}"
    return kept if is_name(kept) else ""
