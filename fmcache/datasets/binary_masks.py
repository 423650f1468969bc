"""Masks of one label each -> one mask of label ids: find files that belong together, and resolve overlapping labels."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmcache.datasets.folder import find_partners
from fmcache.datasets.matching import File
from fmcache.errors import ManifestError, SpecError, TileError, some
from fmcache.quoting import Word, quoted, refuse_signs, split_at, tokens_of, with_whole_name
from fmcache.tiles.annotations import Mask
from fmcache.tiles.pictures import TRANSPARENT, read_raw_mask
from fmcache.tiles.values import listed_values

Inside = npt.NDArray[np.bool_]
BLACK = -1  # key of #000000


def parse_sources(text: str) -> dict[str, Path]:
    """Return where the masks of each label lie, from ``tumour=DIR,stroma=DIR/*_stroma.png,"a, b"="DIR, new",...``.

    Raises
    ------
    SpecError
        When a part has no name or no folder, or a label is named twice.
    """
    parts = [with_whole_name(part, text) for part in split_at(tokens_of(text, "--masks"), ",")]
    if len(parts) > 1 and not parts[-1]:
        del parts[-1]  # a comma at the end
    sources = {}
    for part in parts:
        name, place = part[:1], part[2:]
        if part[1:2] == ["="] and isinstance(name[0], Word) and place:
            # names of folders may contain = and |
            sources[name[0].text] = Path("".join(one if isinstance(one, str) else one.text for one in place))
    if len(sources) < len(parts) or "" in sources:
        raise SpecError(
            f"--masks {text!r} does not say where the masks of each label lie",
            expected="LABEL=FOLDER for each, such as 'tumour=masks/tumour,stroma=masks/stroma'",
            next_step="name each label once; put a name or folder that contains a comma into double quotes: "
            "'tumour=\"masks/tumour, invasive\",...'",
        )
    return sources


def parse_ranks(text: str, labels: Sequence[str]) -> list[str]:
    """Return labels from lowest to highest, as `--order` names them; an empty text gives the order of `labels`.

    Raises
    ------
    SpecError
        When the text does not name each label once.
    """
    tokens = tokens_of(text, "--order")
    refuse_signs(tokens, text, "--order", "|=", ",")
    ranks = [token.text for token in tokens if isinstance(token, Word)] or list(labels)
    if sorted(ranks) != sorted(labels):
        raise SpecError(
            f"--order {text!r} does not name each label of --masks once",
            expected=f"each of {','.join(map(quoted, labels))}, in order from lowest to highest",
            found=",".join(map(quoted, ranks)),
            next_step="name every label once",
        )
    return ranks


def parse_rest(text: str) -> str:
    """Return the label of pixels in no mask, or ``ignore``, as `--fill` names it. The label may have no masks.

    Raises
    ------
    SpecError
        When the text is not one name.
    """
    tokens = tokens_of(text, "--fill")
    if len(tokens) == 1 and isinstance(tokens[0], Word) and tokens[0].text:
        return tokens[0].text
    raise SpecError(
        f"--fill {text!r} is not the name of one label",
        expected="a label, or ignore",
        next_step=f"put a name that contains , | or = into double quotes: --fill {shlex.quote(quoted(text.strip()))}"
        if text.strip()
        else "name a label, or leave --fill out",
    )


def find_masks(label: str, place: Path, images: Sequence[File], skip_lone: bool = False) -> dict[Path, Path]:
    """Return the mask of one label for each image, from a folder or from a pattern whose ``*`` is the image's name.

    Raises
    ------
    ManifestError
        When a mask could belong to two images. Also when an image has no mask or a mask has no image, unless
        `skip_lone` is set: a missing file may mean an empty mask or a mistake.
    """
    found = find_partners(place, images)
    lone = [file.path.name for file in (*found.lone_images, *found.lone_masks)]
    if not found.pairs or (lone and not skip_lone):
        raise ManifestError(
            f"{place}: masks of {label!r} and images do not match one to one",
            expected="a mask for every image; an empty mask where the label does not occur",
            found=f"{len(lone)} files without a partner: {some(lone)}",
            next_step="add or remove files, pass a pattern such as masks/*_tumour.png, or skip these files with "
            "--missing skip",
        )
    return {image.path: mask.path for image, mask in found.pairs}


def read_inside(path: Path) -> Inside:
    """Return where a mask of one label is neither 0, black nor transparent: (y, x) bool.

    Raises
    ------
    TileError
        When the file cannot be read; when it holds several values, because it is then not a mask of one label; or when
        its palette shows the inside as black and the outside as another colour.
    """
    raw = read_raw_mask(path)
    inside = (raw.keys != 0) & (raw.keys != BLACK) & (raw.keys != TRANSPARENT)
    values, counts = np.unique(raw.keys[raw.keys != TRANSPARENT], return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    marks = [key for key in found if key not in (0, BLACK)]
    if len(marks) > 1:
        raise TileError(
            f"{path} is not a mask of one label",
            expected="0 outside and one value inside",
            found=listed_values(found, lambda n: f"{n} px"),
            next_step="save it without lossy compression or smoothed edges; label images and numbered instances need "
            "no merge: pass --masks DIR --labels 'other=0,nucleus=1-'",
        )
    if (
        raw.is_palette
        and marks
        and marks[0] < len(raw.colours)
        and not raw.colours[marks[0]].any()
        and (0 in found and raw.colours[0].any())
    ):
        raise TileError(
            f"{path}: the palette shows index {marks[0]} black and index 0 not, so it is unclear which is inside",
            next_step="save it as grey values with 0 outside, or list colours: --masks DIR --labels "
            "'tumour=#c80000,...'",
        )
    return np.asarray(inside)


def merge(masks: Sequence[tuple[Inside, int]], fill: int) -> Mask:
    """Return label ids (y, x) uint8 of masks in drawing order; later masks cover earlier ones.

    Pixels outside all masks get `fill`. `overlap` is the share of pixels inside several masks.

    Raises
    ------
    TileError
        When the masks differ in size.
    """
    shapes = {inside.shape for inside, _ in masks}
    if len(shapes) > 1:
        raise TileError(
            "masks of one tile differ in size",
            found=", ".join(sorted(f"{width} x {height} px" for height, width in shapes)),
            next_step="export all masks at the size of the image",
        )
    merged = np.full(next(iter(shapes)), fill, dtype=np.uint8)
    for inside, label in masks:
        merged[inside] = label
    return Mask(merged, float((np.sum([inside for inside, _ in masks], axis=0) > 1).mean()))


def refuse_empty(names: Sequence[str], pixels: npt.NDArray[np.int64], n_tiles: int) -> None:
    """Refuse labels that no merged mask holds; `pixels` is (label id,), summed over all masks.

    Raises
    ------
    TileError
        When there are such labels; the message names them.
    """
    if empty := [name for name, n in zip(names, pixels.tolist(), strict=False) if n == 0]:
        raise TileError(
            f"{n_tiles} masks were merged, and none holds {', '.join(map(repr, empty))}",
            expected="every label in at least one tile",
            found="masks that are empty or fully transparent, or that masks of other labels cover completely",
            next_step="fix the masks, leave the label out of --masks or --fill, or change --order; then add --replace",
        )
