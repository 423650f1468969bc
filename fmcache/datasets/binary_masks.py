"""Masks of one label each -> one mask of label ids: which files belong together, and what wins where labels overlap."""

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
        When a part has no name or no place, or a label is named twice.
    """
    parts = [with_whole_name(part, text) for part in split_at(tokens_of(text, "--masks"), ",")]
    if len(parts) > 1 and not parts[-1]:
        del parts[-1]  # a comma at the end
    sources = {}
    for part in parts:
        name, place = part[:1], part[2:]
        if part[1:2] == ["="] and isinstance(name[0], Word) and place:
            # folders may hold = and | themselves
            sources[name[0].text] = Path("".join(one if isinstance(one, str) else one.text for one in place))
    if len(sources) < len(parts) or "" in sources:
        raise SpecError(
            f"--masks {text!r} does not say where the masks of each label lie",
            expected="LABEL=FOLDER for each, such as 'tumour=masks/tumour,stroma=masks/stroma'",
            next_step="name each label once; a name or folder that holds a comma goes into double quotes: "
            "'tumour=\"masks/tumour, invasive\",...'",
        )
    return sources


def parse_ranks(text: str, labels: Sequence[str]) -> list[str]:
    """Return labels from lowest to highest, as `--order` names them; as they are given for an empty text.

    Raises
    ------
    SpecError
        When it does not name each once.
    """
    tokens = tokens_of(text, "--order")
    refuse_signs(tokens, text, "--order", "|=", ",")
    ranks = [token.text for token in tokens if isinstance(token, Word)] or list(labels)
    if sorted(ranks) != sorted(labels):
        raise SpecError(
            f"--order {text!r} does not name each label of --masks once",
            expected=f"from lowest to highest: {','.join(map(quoted, labels))}",
            found=",".join(map(quoted, ranks)),
            next_step="complete it",
        )
    return ranks


def parse_rest(text: str) -> str:
    """Return the label of pixels in no mask, or ``ignore``, as `--fill` names it; it may be one without masks.

    Raises
    ------
    SpecError
        When it is not one name.
    """
    tokens = tokens_of(text, "--fill")
    if len(tokens) == 1 and isinstance(tokens[0], Word) and tokens[0].text:
        return tokens[0].text
    raise SpecError(
        f"--fill {text!r} is not the name of one label",
        expected="a label, or ignore",
        next_step=f"a name that holds , | or = goes into double quotes: --fill {shlex.quote(quoted(text.strip()))}"
        if text.strip()
        else "name a label, or leave --fill out",
    )


def find_masks(label: str, place: Path, images: Sequence[File], skip_lone: bool = False) -> dict[Path, Path]:
    """Return the mask of one label by image: those of a folder, or of a pattern whose ``*`` is the image's name.

    Raises
    ------
    ManifestError
        When a mask could belong to two images; when an image has no mask or a mask no image, unless `skip_lone` is set:
        a missing file may be an empty mask or a mistake.
    """
    found = find_partners(place, images)
    lone = [file.path.name for file in (*found.lone_images, *found.lone_masks)]
    if not found.pairs or (lone and not skip_lone):
        raise ManifestError(
            f"{place}: masks of {label!r} and images do not go together",
            expected="a mask for every image, an empty one where the label is not there",
            found=f"{len(lone)} alone: {some(lone)}",
            next_step="add or remove files, write a pattern such as masks/*_tumour.png, or pass over them with "
            "--missing skip",
        )
    return {image.path: mask.path for image, mask in found.pairs}


def read_inside(path: Path) -> Inside:
    """Return where a mask of one label is neither 0, black nor transparent: (y, x) bool.

    Raises
    ------
    TileError
        When the file cannot be read, or holds several values: then it is no mask of one label; or when its palette
        shows what is inside black and what is outside not.
    """
    raw = read_raw_mask(path)
    inside = (raw.keys != 0) & (raw.keys != BLACK) & (raw.keys != TRANSPARENT)
    values, counts = np.unique(raw.keys[raw.keys != TRANSPARENT], return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    marks = [key for key in found if key not in (0, BLACK)]
    if len(marks) > 1:
        raise TileError(
            f"{path} is no mask of one label",
            expected="0 outside and one value inside",
            found=listed_values(found, lambda n: f"{n} px"),
            next_step="save it without loss or smoothed edges; label images and numbered instances are passed as they "
            "are: --masks DIR --labels 'other=0,nucleus=1-'",
        )
    if (
        raw.is_palette
        and marks
        and marks[0] < len(raw.colours)
        and not raw.colours[marks[0]].any()
        and (0 in found and raw.colours[0].any())
    ):
        raise TileError(
            f"{path}: the palette shows index {marks[0]} black and index 0 not, so it is open which of them is inside",
            next_step="save it as grey values, 0 outside, or list colours: --masks DIR --labels 'tumour=#c80000,...'",
        )
    return np.asarray(inside)


def merge(masks: Sequence[tuple[Inside, int]], fill: int) -> Mask:
    """Return label ids (y, x) uint8 of masks in drawing order: later ones lie over earlier ones; `fill` is outside all.

    `overlap` is the share of pixels inside several masks.

    Raises
    ------
    TileError
        When sizes differ.
    """
    shapes = {inside.shape for inside, _ in masks}
    if len(shapes) > 1:
        raise TileError(
            "masks of one tile differ in size",
            found=", ".join(sorted(f"{width} x {height} px" for height, width in shapes)),
            next_step="export them all at the size of the image",
        )
    merged = np.full(next(iter(shapes)), fill, dtype=np.uint8)
    for inside, label in masks:
        merged[inside] = label
    return Mask(merged, float((np.sum([inside for inside, _ in masks], axis=0) > 1).mean()))


def refuse_empty(names: Sequence[str], pixels: npt.NDArray[np.int64], n_tiles: int) -> None:
    """Refuse labels that no merged mask holds; `pixels` is (label id,), of all masks together.

    Raises
    ------
    TileError
        Naming them.
    """
    if empty := [name for name, n in zip(names, pixels.tolist(), strict=False) if n == 0]:
        raise TileError(
            f"{n_tiles} masks were merged, and none holds {', '.join(map(repr, empty))}",
            expected="every label in at least one tile",
            found="masks that are empty or transparent throughout, or lie wholly under those of other labels",
            next_step="mend them, leave the label out of --masks or --fill, or turn --order; then add --replace",
        )
