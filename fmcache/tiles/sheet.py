"""Contact sheets: pictures of tiles beside their labels, in sections under one legend."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from fmcache.manifest import IGNORE, Label
from fmcache.tiles.lettering import Lettering
from fmcache.tiles.pixels import Pixels

GAP, TEXT, BAR_PX = 8, 16, 240
BARS_UM = (10, 20, 50, 100, 200, 500)
IGNORED = "#808080"


class SheetPicture(NamedTuple):
    """One picture on a sheet and its mask, already reduced: (y, x, colour) and (y, x) uint8, with a caption.

    `mpp` is um per pixel of the small picture, for its scale bar; None draws no bar.
    """

    image: Pixels
    mask: Pixels
    caption: str
    mpp: float | None = None


class Section(NamedTuple):
    """Entries under a heading. `shares` (one per label, as fractions of 1) are drawn as a bar beside the heading."""

    heading: str
    entries: Sequence[SheetPicture]
    shares: Sequence[float] = ()


def entry(image: Pixels, mask: Pixels, caption: str, mpp: float | None, tile_px: int = 192) -> SheetPicture:
    """Return a tile (y, x, colour) and its mask (y, x), at `mpp` um per pixel, reduced for a sheet."""
    scale = max(mask.shape) / tile_px
    shown, labels = (_fitted(a, tile_px, how) for a, how in ((image, cv2.INTER_AREA), (mask, cv2.INTER_NEAREST_EXACT)))
    return SheetPicture(shown, labels, caption, mpp * scale if mpp else None)


def overlay(image: Pixels, mask: Pixels, labels: Sequence[Label]) -> Pixels:
    """Return the image with label colours laid over it and outlined, ignored pixels grey: (y, x, colour) uint8."""
    colours = np.full((IGNORE + 1, 3), rgb(IGNORED), dtype=np.uint8)
    for i, label in enumerate(labels):
        colours[i] = rgb(label.colour)
    tinted = (0.6 * image + 0.4 * colours[mask]).astype(np.uint8)
    edges = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    tinted[edges] = colours[mask[edges]]
    return tinted


def lettering(title: str, sections: Sequence[Section], labels: Sequence[Label]) -> Lettering:
    """Return the `Lettering` for all texts of a sheet."""
    captions = [one.caption for section in sections for one in section.entries]
    return Lettering([title, *(section.heading for section in sections), *captions, *(label.name for label in labels)])


def contact_sheet(title: str, sections: Sequence[Section], labels: Sequence[Label], columns: int = 4) -> Image.Image:
    """Return a sheet: each picture beside its overlay, with headings, captions, legend and scale bars.

    It is wide enough for its longest text; a wider legend continues on the next line.
    """
    pen = lettering(title, sections, labels)
    cells = [entry for section in sections for entry in section.entries]
    side = max((max(one.mask.shape) for one in cells), default=TEXT)
    cell_x, cell_y = 2 * side + GAP // 2 + GAP, side + TEXT + GAP
    cell_x = max([cell_x, *(GAP + ceil(pen.length(one.caption)) for one in cells)])
    bars = 3 * GAP + int(max((pen.length(section.heading) for section in sections), default=0))
    width = max(columns * cell_x + GAP, 2 * GAP + ceil(pen.length(title)), bars + (BAR_PX if _barred(sections) else 0))
    legend = _legend(labels, any((one.mask == IGNORE).any() for one in cells), width, pen)
    rows = [-(-len(section.entries) // columns) for section in sections]
    headings = sum(TEXT + GAP for section in sections if section.heading)
    top = 2 * GAP + 2 * TEXT + TEXT * max((key.line for key in legend), default=0)
    sheet = Image.new("RGB", (width, top + TEXT - GAP + headings + sum(rows) * cell_y), "white")
    draw = ImageDraw.Draw(sheet)
    pen.write(draw, GAP, GAP, title)
    for key in legend:
        y = GAP + TEXT * (1 + key.line)
        draw.rectangle((key.left, y + 3, key.left + 12, y + 15), fill=key.colour)
        pen.write(draw, key.left + 16, y, key.name)
    for section, n_rows in zip(sections, rows, strict=True):
        if section.heading:
            _heading(draw, top, section, labels, bars, width, pen)
            top += TEXT + GAP
        for i, one in enumerate(section.entries):
            left, y = GAP + i % columns * cell_x, top + i // columns * cell_y
            pen.write(draw, left, y, one.caption)
            sheet.paste(Image.fromarray(one.image), (left, y + TEXT))
            tinted = Image.fromarray(overlay(one.image, one.mask, labels))
            sheet.paste(tinted, (left + side + GAP // 2, y + TEXT))
            if one.mpp:
                _scale_bar(draw, left, y + TEXT, one.mask.shape[0], one.mpp, pen)
        top += n_rows * cell_y
    return sheet


class _Key(NamedTuple):
    name: str
    colour: str
    left: int
    line: int


def _legend(labels: Sequence[Label], ignored: bool, width: int, pen: Lettering) -> list[_Key]:
    """Return the position of each label in the legend."""
    keys = [(label.name, label.colour) for label in labels] + ([("ignored", IGNORED)] if ignored else [])
    placed, x, line = [], GAP, 0
    for name, colour in keys:
        length = int(pen.length(name))
        if x > GAP and x + 16 + length + GAP > width:
            x, line = GAP, line + 1
        placed.append(_Key(name, colour, x, line))
        x += 40 + length
    return placed


def _barred(sections: Sequence[Section]) -> bool:
    return any(len(section.shares) for section in sections)


def _heading(
    draw: ImageDraw.ImageDraw,
    top: int,
    section: Section,
    labels: Sequence[Label],
    left: int,
    width: int,
    pen: Lettering,
) -> None:
    """Draw a line, the heading, and the bar of shares, which starts at `left`."""
    draw.line((GAP, top, width - GAP, top), fill="#bbbbbb")
    pen.write(draw, GAP, top + 3, section.heading)
    for label, share in zip(labels, section.shares, strict=False):
        right = left + round(BAR_PX * share)
        if right > left:
            draw.rectangle((left, top + 6, right - 1, top + 15), fill=label.colour)
        left = right


def _fitted(array: Pixels, tile_px: int, interpolation: int) -> Pixels:
    height, width = array.shape[:2]
    scale = tile_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(array, size, interpolation=interpolation), dtype=np.uint8)


def _scale_bar(draw: ImageDraw.ImageDraw, left: int, top: int, height: int, mpp: float, pen: Lettering) -> None:
    um = max((bar for bar in BARS_UM if bar / mpp <= 80), default=BARS_UM[0])
    y = top + height - 8
    draw.line((left + 6, y, left + 6 + um / mpp, y), fill="white", width=5)
    draw.line((left + 6, y, left + 6 + um / mpp, y), fill="black", width=3)
    pen.write(draw, left + 6, y - 17, f"{um} um", halo_px=2)


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255) of ``#rrggbb``."""
    value = int(colour[1:], 16)
    return value >> 16, value >> 8 & 255, value & 255
