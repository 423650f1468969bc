"""Fixtures for all tests. Hypothesis has no time limit here, because a busy machine draws examples slowly."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def draw_font(path, family, signs):
    """Write a font whose characters are all squares."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for at, to in zip(((100, 0), (100, 700), (800, 700), (800, 0)), ("moveTo", *("lineTo",) * 3), strict=True):
        getattr(pen, to)(at)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(sign):04X}" for sign in signs)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(sign): name for sign, name in zip(signs, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a drawn font (family, characters) in a folder that matplotlib searches."""
    from matplotlib import font_manager

    from fmcache import fonts

    def install(family, signs):
        draw_font(tmp_path / f"{family}.ttf", family, signs)
        fonts._search.cache_clear()

    known = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager, "X11FontDirectories", [*font_manager.X11FontDirectories, str(tmp_path)])
    fonts._search.cache_clear()
    yield install
    font_manager.fontManager.ttflist[:] = known
    font_manager.fontManager._findfont_cached.cache_clear()
    fonts._search.cache_clear()
