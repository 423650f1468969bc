"""Writing names on pictures: in Pillow's own font, and what that lacks in an installed font that has it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import groupby
from typing import cast

from PIL import ImageDraw, ImageFont

from fmcache import fonts

SIZE_PX = 12


class Lettering:
    """Draws and measures the texts it was made for; `lacking` are their characters that no installed font has."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._base = cast(ImageFont.FreeTypeFont, ImageFont.load_default(SIZE_PX))  # with a size it is of this type
        self._cover = fonts.cover(texts, self._base.font_bytes)
        self._fonts = {face: ImageFont.truetype(face.path, SIZE_PX) for face in self._cover.faces}

    @property
    def lacking(self) -> frozenset[str]:
        """Characters that are written as code points."""
        return self._cover.lacking

    def length(self, text: str) -> float:
        """Return how many pixels wide a text will be."""
        return sum(font.getlength(piece) for font, piece in self._pieces(text))

    def write(self, draw: ImageDraw.ImageDraw, left: float, top: float, text: str, halo_px: int = 0) -> None:
        """Draw a text in black, on a white halo if asked for; all its fonts stand on one line."""
        base_line = top + self._base.getmetrics()[0]
        for font, piece in self._pieces(text):
            draw.text((left, base_line), piece, "black", font, anchor="ls", stroke_width=halo_px, stroke_fill="white")
            left += font.getlength(piece)

    def _pieces(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        boxed = self._cover.boxed(text)
        fonts_of = [self._font(sign) for sign in boxed]
        for i, sign in enumerate(boxed):
            if i and unicodedata.combining(sign):
                fonts_of[i] = fonts_of[i - 1]  # or it would not stand on its letter
        return [
            (font, "".join(sign for _, sign in piece))
            for font, piece in groupby(zip(fonts_of, boxed, strict=True), key=lambda pair: pair[0])
        ]

    def _font(self, sign: str) -> ImageFont.FreeTypeFont:
        face = self._cover.face_of.get(sign)
        return self._fonts[face] if face else self._base
