"""Tiles and masks as small pictures: colours of labels, outlines of errors, scale bars. Returns PNG and JPEG files.

The same pixels give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fmcache.manifest import IGNORE

Pixels = npt.NDArray[np.uint8]
"""(y, x, colour)."""

Mask = npt.NDArray[np.uint8]
"""Label ids, (y, x)."""

JPEG_QUALITY = 82
STRIPES = (225, 170)
"""The two greys of pixels without a label in the truth: no label has stripes."""

STRIPE_PX = 4
NICE = (1, 2, 5)


class ScaleBar(NamedTuple):
    """A scale bar: its length as a share of the tile's side, and as text."""

    share: float
    text: str

    @classmethod
    def of(cls, um_px: float | None, tile_px: int) -> ScaleBar:
        """Return a bar of a round length, at most a third of the tile; in pixels where um per pixel are unknown."""
        side = tile_px * (um_px or 1.0)
        length = max(
            factor * 10.0**power for power in range(-3, 6) for factor in NICE if factor * 10.0**power <= side / 3
        )
        return cls(length / side, f"{length:g} {'px' if um_px is None else 'µm'}")

    def drawn_on(self, picture: Image.Image) -> Image.Image:
        """Return a picture (RGB) with the bar at its lower left, black with a white rim."""
        width, height = picture.size
        left, thick = round(0.05 * width), max(2, round(0.015 * height))
        box = (left, height - left - thick, left + round(self.share * width), height - left)
        pen = ImageDraw.Draw(picture)
        pen.rectangle((box[0] - 2, box[1] - 2, box[2] + 1, box[3] + 1), fill="white")
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="black")
        return picture


def side_of(photo: Image.Image) -> int | None:
    """Return the side (px) of a tile's image before it was resized, which the picture's comment states; None if not."""
    words = bytes(photo.info.get("comment", b"")).split()
    return int(words[1]) if len(words) == 2 and words[0] == b"side_px" and words[1].isdigit() else None


def palette_of(colours: Iterable[str]) -> Pixels:
    """Return the colour of each label id, (256, 3); ids without a label are black."""
    palette = np.zeros((256, 3), np.uint8)
    for i, colour in enumerate(colours):
        palette[i] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return palette


def coloured(mask: Mask, palette: Pixels) -> Pixels:
    """Return a mask (y, x) in the colours of its labels, (y, x, colour); pixels without a label are striped."""
    drawn = palette[mask]
    y, x = np.indices(mask.shape)
    stripes = np.where((y + x) // STRIPE_PX % 2 == 0, *STRIPES).astype(np.uint8)
    return np.where((mask == IGNORE)[..., None], stripes[..., None], drawn)


def outlined(predicted: Mask, truth: Mask, palette: Pixels) -> Pixels:
    """Return a prediction (y, x) in colours, with a black line inside and a white line around its wrong regions.

    Pixels without a label in the truth are striped, and never wrong.
    """
    ignored = truth == IGNORE
    wrong = (predicted != truth) & ~ignored
    drawn = coloured(np.where(ignored, IGNORE, predicted).astype(np.uint8), palette)
    drawn[_grown(wrong) & ~wrong & ~ignored] = 255
    drawn[wrong & _grown(~wrong)] = 0
    return drawn


def _grown(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return a region and its neighbours to the left, right, top and bottom."""
    grown = region.copy()
    grown[1:] |= region[:-1]
    grown[:-1] |= region[1:]
    grown[:, 1:] |= region[:, :-1]
    grown[:, :-1] |= region[:, 1:]
    return grown


def padded(mask: Mask, side_px: int) -> Mask:
    """Return a mask with `IGNORE` added at the bottom and right, where grid policy ``crop`` leaves a rim out."""
    rim = [(0, max(0, side_px - side)) for side in mask.shape]
    return np.pad(mask, rim, constant_values=IGNORE)


def smaller(mask: Mask, side_px: int) -> Mask:
    """Return a mask with a side of `side_px`; the label of a pixel is that of the nearest one."""
    return np.asarray(Image.fromarray(mask).resize((side_px, side_px), Image.Resampling.NEAREST), dtype=np.uint8)


def png(picture: Pixels) -> bytes:
    """Return a picture (y, x, colour) of at most 256 colours as a PNG with a palette: a third of the size of RGB."""
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, at = np.unique(packed, return_inverse=True)
    image = Image.fromarray(picture)
    if len(colours) <= 256:
        image = Image.fromarray(at.reshape(packed.shape).astype(np.uint8), "P")
        image.putpalette(np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")  # `optimize` takes ten times as long and saves 4 %
    return file.getvalue()


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()
