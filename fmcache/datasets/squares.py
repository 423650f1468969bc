"""Images of any shape and their masks -> squares in a separate folder, for `fmcache data add --square`."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image

from fmcache.datasets.absent_labels import absent_values
from fmcache.datasets.file_names import to_id
from fmcache.datasets.folder import Pair
from fmcache.datasets.listing import Drawing, drawing_notes, known_classes
from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.identity import canonical_json, differences, sha256_file, whole_file
from fmcache.manifest import IGNORE, FolderDataset, GeojsonDataset, Label
from fmcache.runtime.progress import progress
from fmcache.strict import builtins
from fmcache.tiles.boxes import WAYS, Box, cut_image, cut_raw, dropped_share, picture_of, plan_boxes, reaches_beyond
from fmcache.tiles.containers import LARGEST_CUT_PX, LARGEST_PX, check_size
from fmcache.tiles.images import check_same_size, read_mask
from fmcache.tiles.pictures import RAMPS, TRANSPARENT, RawMask, read_image, read_raw_mask
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.rims import Rim, with_rim
from fmcache.tiles.values import read_values, unknown_values

RULES, TABLE = "squares.json", "squares.csv"
LEAST_PX, MOST_PX = 16, math.isqrt(LARGEST_PX)
HEADER = ("tile", "image", "image_sha256", "mask", "mask_sha256", "x", "y", "size")


class Squares(NamedTuple):
    """The written squares: their pairs, the position of each square's source image, the dataset that reads them, and
    the text of a table that lists each square's source."""

    pairs: list[Pair]
    sources: list[int]
    dataset: FolderDataset
    table: str


class SquareRequest(NamedTuple):
    """The requested squares: the way (``crop``, ``tile``, ``pad``), the edge in px for ``tile``, the output folder, and
    whether squares made by other rules may be replaced."""

    way: str
    tile_px: int
    into: Path
    replace: bool


def check_square(way: str, tile_px: int, into: Path | None) -> None:
    """Raise SpecError when `--square`, `--tile-px` and `--into` do not fit together."""
    if way and way not in WAYS:
        raise SpecError(f"--square {way!r}", expected=", ".join(WAYS))
    if way == "tile" and not tile_px:
        raise SpecError("--square tile needs the edge of the squares", next_step="pass --tile-px 512, for example")
    if way == "tile" and not LEAST_PX <= tile_px <= MOST_PX:
        raise SpecError(
            f"--tile-px {tile_px}", expected=f"{LEAST_PX} to {MOST_PX}", next_step="pass --tile-px 512, for example"
        )
    if way != "tile" and tile_px:
        raise SpecError(
            "--tile-px works only with --square tile", next_step="pass --square tile, or leave out --tile-px"
        )
    if into and not way:
        raise SpecError(
            "--into works only with --square", next_step="pass --square crop, tile or pad, or leave out --into"
        )


def make_squares(
    dataset: FolderDataset | GeojsonDataset, pairs: Sequence[Pair], wish: SquareRequest, say: Callable[[str], None]
) -> Squares:
    """Write the squares of all images and masks; report what was dropped or padded.

    Values of masks are kept, except for pixels outside the image and transparent pixels. Annotated regions are drawn as
    label ids. Existing squares are kept. One image and its mask are in memory at a time.

    Raises
    ------
    ManifestError
        When the folder holds other files.
    TileError
        When a file cannot be read or a mask cannot be cut; when a label is in no mask; when masks hold values that no
        label has (the message lists those of all masks).
    """
    reader = dataset if isinstance(dataset, FolderDataset) else _of_label_ids(dataset)
    rim = with_rim(reader)
    identity = _identity(dataset, pairs, wish)
    _prepare(wish, identity)
    rows: list[tuple[object, ...]] = []
    made: list[Pair] = []
    sources: list[int] = []
    found, unknown = Counter[int](), Counter[int]()
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    dropped, padded, bare, hidden = [], 0, 0, False
    classes = known_classes(dataset, pairs) if isinstance(dataset, GeojsonDataset) else Counter()
    drawings: list[Drawing] = []
    with progress("cutting squares", len(pairs), "images") as tick:
        for at, pair in enumerate(pairs):
            image = read_image(pair.image, LARGEST_CUT_PX)
            raw = _raw_mask(pair, dataset, image, drawings)
            height, width = image.shape[:2]
            boxes = plan_boxes(width, height, wish.way, wish.tile_px)
            check_size(pair.image, (boxes[0].size, boxes[0].size))
            dropped.append(dropped_share(boxes, width, height))
            padded += any(reaches_beyond(box, width, height) for box in boxes)
            for box in boxes:
                part = cut_raw(raw, box)
                read = read_values(part, reader)
                found.update(read.found)
                unknown.update(read.unknown)
                pixels += np.bincount(read.mask.ravel(), minlength=IGNORE + 1)
                if unknown:
                    continue
                if len(boxes) > 1 and (read.mask == IGNORE).all():
                    bare += 1
                    continue
                square = _square_of(pair, box, wish)
                hidden |= bool((part.keys == TRANSPARENT).any())
                _write(square, pair, cut_image(image, box), part, read.mask, rim)
                made.append(square)
                sources.append(at)
                image_sha256, mask_sha256 = identity["sources"][pair.id]
                rows.append((square.id, pair.image, image_sha256, pair.mask, mask_sha256, *box))
            tick(1)
    if unknown:
        raise unknown_values(str(pairs[0].mask.parent), unknown, reader)
    del found[TRANSPARENT]  # most of these pixels are padded rims
    if isinstance(dataset, FolderDataset) and (
        absent := absent_values(reader, pixels[: len(reader.labels)], len(pairs), found)
    ):
        raise absent  # lists the values in the source masks: masks of squares also have a value for the rim
    for note in drawing_notes(dataset, classes, drawings):
        say(note)
    say(_summary(wish, len(made), len(pairs), float(np.mean(dropped)), padded, bare))
    return Squares(made, sources, rim.dataset if hidden else reader, _table(rows))


def seal(wish: SquareRequest, squares: Squares) -> None:
    """Write the table of each square's source. Squares with such a table are replaced only on request."""
    with whole_file(wish.into / TABLE) as file:
        file.write(squares.table.encode())


def _of_label_ids(dataset: GeojsonDataset) -> FolderDataset:
    labels = tuple(Label(label.name, label.colour, (i,)) for i, label in enumerate(dataset.labels))
    return FolderDataset(labels=labels, root=dataset.root, mpp=dataset.mpp, ignore_values=(IGNORE,))


def _raw_mask(pair: Pair, dataset: FolderDataset | GeojsonDataset, image: Pixels, drawings: list[Drawing]) -> RawMask:
    """Return a mask unchanged, or label ids drawn from regions; notes on these regions are added to `drawings`."""
    if isinstance(dataset, GeojsonDataset):
        drawn = read_mask(pair.mask, dataset, image)
        drawings.append(Drawing(pair.id, drawn.overlap, drawn.notes))
        return RawMask(drawn.mask.astype(np.int32), RAMPS[8], False)
    raw = read_raw_mask(pair.mask, LARGEST_CUT_PX)
    check_same_size(pair.mask, raw, image)
    return raw


def _square_of(pair: Pair, box: Box, wish: SquareRequest) -> Pair:
    place = f"_x{max(0, box.x):06d}_y{max(0, box.y):06d}" if wish.way == "tile" else ""
    name = to_id(f"{pair.id}{place}")
    return Pair(name, wish.into / "images" / f"{name}.png", wish.into / "masks" / f"{name}.png")


def _write(square: Pair, pair: Pair, pixels: Pixels, part: RawMask, expected: Pixels, rim: Rim) -> None:
    """Write image and mask of a square if they do not exist, and check that the mask still gives the same label ids."""
    if not square.image.exists():
        _save(square.image, Image.fromarray(pixels))
    if not square.mask.exists():
        try:
            picture = picture_of(part, rim)
        except TileError as error:
            raise TileError(
                f"{pair.mask}: {error.problem}", expected=error.expected, found=error.found, next_step=error.next_step
            ) from None
        _save(square.mask, picture)
    if not np.array_equal(read_mask(square.mask, rim.dataset, pixels).mask, expected):
        square.mask.unlink()
        raise TileError(
            f"{pair.mask}: this mask cannot be cut into squares in its present format",
            expected="a mask whose pixels are its values",
            next_step="save it as a grey, palette or RGB PNG",
        )


def _save(path: Path, picture: Image.Image) -> None:
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def _identity(dataset: FolderDataset | GeojsonDataset, pairs: Sequence[Pair], wish: SquareRequest) -> dict[str, Any]:
    """Return everything that can change a pixel of a square or mask."""
    rule = {key: value for key, value in builtins(dataset).items() if key not in ("root", "mpp", "tiles", "splits")}
    return {
        "square": wish.way,
        "tile_px": wish.tile_px,
        "dataset": rule,
        "sources": {pair.id: [sha256_file(pair.image), sha256_file(pair.mask)] for pair in pairs},
    }


def _prepare(wish: SquareRequest, identity: dict[str, Any]) -> None:
    """Prepare the folder: refuse unrelated files, delete squares made by other rules, write the present rules.

    Squares without a table were never listed in a manifest, so they are replaced without a request. This happens when
    labels are corrected after a first failed attempt.
    """
    file = wish.into / RULES
    if file.exists():
        changed = differences(msgspec.json.decode(file.read_bytes()), identity)
        if changed and not wish.replace and (wish.into / TABLE).exists():
            raise ManifestError(
                f"{wish.into} holds squares that were made from other files or by other rules",
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
    """Delete the images and masks of squares; these folders hold nothing else."""
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


def _summary(wish: SquareRequest, made: int, images: int, dropped: float, padded: int, bare: int) -> str:
    parts = [f"{wish.into}: {made} squares of {images} images ({wish.way})"]
    if dropped:
        parts.append(f"{100 * dropped:.1f} % of an image, on average, lies in no square")
    if padded:
        parts.append(f"{padded} images were padded by reflection; the padded rim is ignored in the mask")
    if bare:
        parts.append(f"{bare} squares without any label were left out")
    return "; ".join(parts)
