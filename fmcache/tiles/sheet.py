"""Contact sheets: what the tiles look like, and where their labels lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fmcache.manifest import IGNORE, Label
from fmcache.tiles.images import Tile

Pixels = npt.NDArray[np.uint8]
GAP, TEXT = 8, 16
BARS_UM = (10, 20, 50, 100, 200, 500)


class Entry(NamedTuple):
    """A tile on a sheet, with its caption."""

    tile: Tile
    caption: str


def overlay(image: Pixels, mask: Pixels, labels: Sequence[Label]) -> Pixels:
    """Return the image with label colours laid over it and outlined, ignored pixels grey: (y, x, colour) uint8."""
    colours = np.full((IGNORE + 1, 3), 128, dtype=np.uint8)
    for i, label in enumerate(labels):
        colours[i] = _rgb(label)
    tinted = (0.6 * image + 0.4 * colours[mask]).astype(np.uint8)
    edges = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    tinted[edges] = colours[mask[edges]]
    return tinted


def contact_sheet(
    title: str,
    entries: Sequence[Entry],
    labels: Sequence[Label],
    mpp: float | None,
    tile_px: int = 192,
    columns: int = 4,
) -> Image.Image:
    """Return a sheet: each tile beside its overlay, with captions, legend and (when um/px are known) a scale bar."""
    cell_x, cell_y = 2 * tile_px + GAP, tile_px + TEXT + GAP
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (columns * (cell_x + GAP) + GAP, 3 * TEXT + 2 * GAP + rows * cell_y), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((GAP, GAP), title, "black", font)
    x = GAP
    for label in labels:
        draw.rectangle((x, GAP + TEXT + 3, x + 12, GAP + TEXT + 15), fill=label.colour)
        draw.text((x + 16, GAP + TEXT), label.name, "black", font)
        x += 40 + int(draw.textlength(label.name, font))
    for i, (tile, caption) in enumerate(entries):
        left, top = GAP + (i % columns) * (cell_x + GAP), 2 * GAP + 2 * TEXT + (i // columns) * cell_y
        shown = _fitted(tile.image, tile_px, cv2.INTER_AREA)
        mask = _fitted(tile.mask, tile_px, cv2.INTER_NEAREST_EXACT)
        draw.text((left, top), caption, "black", font)
        sheet.paste(Image.fromarray(shown), (left, top + TEXT))
        sheet.paste(Image.fromarray(overlay(shown, mask, labels)), (left + tile_px + GAP // 2, top + TEXT))
        if mpp:
            _scale_bar(draw, left, top + TEXT, shown.shape[0], mpp * max(tile.mask.shape) / tile_px, font)
    return sheet


def _fitted(array: Pixels, tile_px: int, interpolation: int) -> Pixels:
    height, width = array.shape[:2]
    scale = tile_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(array, size, interpolation=interpolation), dtype=np.uint8)


def _scale_bar(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    height: int,
    mpp: float,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    um = max((bar for bar in BARS_UM if bar / mpp <= 80), default=BARS_UM[0])
    y = top + height - 8
    draw.line((left + 6, y, left + 6 + um / mpp, y), fill="white", width=5)
    draw.line((left + 6, y, left + 6 + um / mpp, y), fill="black", width=3)
    draw.text((left + 6, y - 17), f"{um} um", "black", font, stroke_width=2, stroke_fill="white")


def _rgb(label: Label) -> tuple[int, int, int]:
    value = int(label.colour[1:], 16)
    return value >> 16, value >> 8 & 255, value & 255
