"""Images of any shape and their masks -> squares in a folder of their own, for `fmcache data add --square`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image

from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.identity import canonical_json, differences, sha256_file, whole_file
from fmcache.manifest import IGNORE, FolderDataset, GeojsonDataset, Label
from fmcache.stages.progress import progress
from fmcache.strict import builtins
from fmcache.tiles.folder import Pair
from fmcache.tiles.images import Pixels, read_mask
from fmcache.tiles.listing import Drawing, drawing_notes, known_classes
from fmcache.tiles.names import to_id
from fmcache.tiles.pictures import read_image
from fmcache.tiles.squares import (
    WAYS,
    Box,
    Rim,
    cut_image,
    cut_mask,
    cut_picture,
    dropped_share,
    plan_boxes,
    reaches_beyond,
    read_mask_picture,
    with_rim,
)

RULES, TABLE = "squares.json", "squares.csv"
HEADER = ("tile", "image", "image_sha256", "mask", "mask_sha256", "x", "y", "size")


class Squares(NamedTuple):
    """Squares as they were written: pairs, the number of the source of each, and the dataset that reads them."""

    pairs: list[Pair]
    sources: list[int]
    dataset: FolderDataset


class Wish(NamedTuple):
    """What is asked for: the way (``crop``, ``tile``, ``pad``), the edge for ``tile``, where to, and whether squares
    made otherwise may be replaced."""

    way: str
    tile_px: int
    into: Path
    replace: bool


def check_square(way: str, tile_px: int, into: Path | None) -> None:
    """Raise SpecError when `--square`, `--tile-px` and `--into` do not go together."""
    if way and way not in WAYS:
        raise SpecError(f"--square {way!r}", expected=", ".join(WAYS))
    if way == "tile" and not tile_px:
        raise SpecError("--square tile needs the edge of the squares", next_step="--tile-px 512, for example")
    if way != "tile" and tile_px:
        raise SpecError("--tile-px goes with --square tile", next_step="--square tile, or leave out --tile-px")
    if into and not way:
        raise SpecError("--into goes with --square", next_step="--square crop, tile or pad, or leave out --into")


def make_squares(
    dataset: FolderDataset | GeojsonDataset, pairs: Sequence[Pair], wish: Wish, say: Callable[[str], None]
) -> Squares:
    """Write the squares of all images and masks, and a table of where each is from; tell what was dropped or padded.

    Values of masks stay what they are; annotated regions are drawn as label ids. Squares that are there are kept.

    Raises
    ------
    ManifestError
        When the folder holds other files.
    TileError
        When a file cannot be read, or a mask not be cut.
    """
    rim = _rim(dataset)
    _prepare(wish, _identity(dataset, pairs, wish))
    rows: list[tuple[object, ...]] = []
    made: list[Pair] = []
    sources: list[int] = []
    dropped, padded, bare = [], 0, 0
    classes = known_classes(dataset, pairs) if isinstance(dataset, GeojsonDataset) else Counter()
    drawings = []
    with progress("cutting squares", len(pairs), "images") as tick:
        for at, pair in enumerate(pairs):
            image = read_image(pair.image)
            height, width = image.shape[:2]
            drawn = read_mask(pair.mask, dataset, image)
            drawings.append(Drawing(pair.id, drawn.overlap, drawn.notes))
            ids = drawn.mask
            boxes = plan_boxes(width, height, wish.way, wish.tile_px)
            dropped.append(dropped_share(boxes, width, height))
            padded += any(reaches_beyond(box, width, height) for box in boxes)
            hashes = sha256_file(pair.image), sha256_file(pair.mask)
            for box in boxes:
                if len(boxes) > 1 and (cut_mask(ids, box) == IGNORE).all():
                    bare += 1
                    continue
                square = _square_of(pair, box, wish)
                _write(square, pair, box, image, ids, dataset, rim)
                made.append(square)
                sources.append(at)
                rows.append((square.id, pair.image, hashes[0], pair.mask, hashes[1], *box))
            tick(1)
    with whole_file(wish.into / TABLE) as file:
        file.write(_table(rows).encode())
    for note in drawing_notes(dataset, classes, drawings):
        say(note)
    say(_summary(wish, len(made), len(pairs), float(np.mean(dropped)), padded, bare))
    return Squares(made, sources, rim.dataset)


def _rim(dataset: FolderDataset | GeojsonDataset) -> Rim:
    if isinstance(dataset, FolderDataset):
        return with_rim(dataset)
    labels = tuple(Label(label.name, label.colour, (i,)) for i, label in enumerate(dataset.labels))
    return Rim(FolderDataset(labels=labels, root=dataset.root, mpp=dataset.mpp, ignore_values=(IGNORE,)), IGNORE)


def _square_of(pair: Pair, box: Box, wish: Wish) -> Pair:
    place = f"_x{max(0, box.x):06d}_y{max(0, box.y):06d}" if wish.way == "tile" else ""
    name = to_id(f"{pair.id}{place}")
    return Pair(name, wish.into / "images" / f"{name}.png", wish.into / "masks" / f"{name}.png")


def _write(
    square: Pair, pair: Pair, box: Box, image: Pixels, ids: Pixels, dataset: FolderDataset | GeojsonDataset, rim: Rim
) -> None:
    """Write image and mask of a square where they are not there yet, and see that the mask still says the same."""
    pixels, expected = cut_image(image, box), cut_mask(ids, box)
    if not square.image.exists():
        _save(square.image, Image.fromarray(pixels))
    if not square.mask.exists():
        if isinstance(dataset, GeojsonDataset):
            _save(square.mask, Image.fromarray(expected))
        else:
            picture = read_mask_picture(pair.mask, isinstance(rim.value, tuple))
            _save(square.mask, cut_picture(picture, box, rim.value))
    if not np.array_equal(read_mask(square.mask, rim.dataset, pixels).mask, expected):
        square.mask.unlink()
        raise TileError(
            f"{pair.mask}: this mask cannot be cut into squares as it is",
            expected="a mask whose pixels are its values",
            next_step="save it as a grey, palette or RGB PNG",
        )


def _save(path: Path, picture: Image.Image) -> None:
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def _identity(dataset: FolderDataset | GeojsonDataset, pairs: Sequence[Pair], wish: Wish) -> dict[str, Any]:
    """Return everything that can change a pixel of a square or mask."""
    rule = {key: value for key, value in builtins(dataset).items() if key not in ("root", "mpp", "tiles", "splits")}
    return {
        "square": wish.way,
        "tile_px": wish.tile_px,
        "dataset": rule,
        "sources": {pair.id: [sha256_file(pair.image), sha256_file(pair.mask)] for pair in pairs},
    }


def _prepare(wish: Wish, identity: dict[str, Any]) -> None:
    """Make the folder ready: refuse files of others, drop squares that were made otherwise, write what these are."""
    file = wish.into / RULES
    if file.exists():
        changed = differences(msgspec.json.decode(file.read_bytes()), identity)
        if changed and not wish.replace:
            raise ManifestError(
                f"{wish.into} holds squares that were made of other files or by other rules",
                found="; ".join(changed[:5]),
                next_step="choose another folder with --into, or pass --replace",
            )
        if changed:
            _drop(wish.into)
    elif wish.into.exists() and any(wish.into.iterdir()):
        raise ManifestError(f"{wish.into} is not empty", next_step="choose an empty folder with --into")
    with whole_file(file) as out:
        out.write(msgspec.json.format(canonical_json(identity), indent=2))


def _drop(into: Path) -> None:
    """Remove the images and masks of squares; nothing else lies in these folders."""
    for kind in ("images", "masks"):
        for path in (into / kind).glob("*.png"):
            path.unlink()
    (into / TABLE).unlink(missing_ok=True)


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(HEADER)
    out.writerows(rows)
    return text.getvalue()


def _summary(wish: Wish, made: int, images: int, dropped: float, padded: int, bare: int) -> str:
    parts = [f"{wish.into}: {made} squares of {images} images ({wish.way})"]
    if dropped:
        parts.append(f"{100 * dropped:.1f} % of an image, on average, lies in no square")
    if padded:
        parts.append(f"{padded} images were padded by reflection, the rim ignored in the mask")
    if bare:
        parts.append(f"{bare} squares without any label left out")
    return "; ".join(parts)
