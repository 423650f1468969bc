"""Write text on pictures in Pillow's built-in font; characters that it lacks are written in an installed font."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import groupby
from typing import cast

from PIL import ImageDraw, ImageFont

from fmcache import fonts

SIZE_PX = 12


class Lettering:
    """Draws and measures the texts passed to it; `lacking` are their characters that no installed font has."""

    def __init__(self, texts: Iterable[str], size_px: int = SIZE_PX) -> None:
        self._base = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size_px))  # Pillow's type if a size is given
        self._cover = fonts.cover(texts, self._base.font_bytes)
        self._fonts = {face: ImageFont.truetype(face.path, size_px) for face in self._cover.faces}

    @property
    def lacking(self) -> frozenset[str]:
        """Characters that are written as code points, because no font has them."""
        return self._cover.lacking

    def length(self, text: str) -> float:
        """Return the width of a text in px."""
        return sum(font.getlength(piece) for font, piece in self._pieces(text))

    def write(self, draw: ImageDraw.ImageDraw, left: float, top: float, text: str, halo_px: int = 0) -> None:
        """Draw a text in black, with a white halo of `halo_px`; all fonts share one base line."""
        base_line = top + self._base.getmetrics()[0]
        for font, piece in self._pieces(text):
            draw.text((left, base_line), piece, "black", font, anchor="ls", stroke_width=halo_px, stroke_fill="white")
            left += font.getlength(piece)

    def _pieces(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        boxed = self._cover.boxed(text)
        fonts_of = [self._font(sign) for sign in boxed]
        for i, sign in enumerate(boxed):
            if i and unicodedata.combining(sign):
                fonts_of[i] = fonts_of[i - 1]  # a combining mark needs the font of its letter
        return [
            (font, "".join(sign for _, sign in piece))
            for font, piece in groupby(zip(fonts_of, boxed, strict=True), key=lambda pair: pair[0])
        ]

    def _font(self, sign: str) -> ImageFont.FreeTypeFont:
        face = self._cover.face_of.get(sign)
        return self._fonts[face] if face else self._base
