import numpy as np
import pytest
from PIL import ImageDraw

from fmcache.manifest import Label
from fmcache.tiles.lettering import Lettering
from fmcache.tiles.sheet import Section, contact_sheet, entry, lettering

LABELS = (Label("other", "#111111"), Label("tumour", "#ff0000"))
WHITE = 255


def a_sheet(title="set", heading="", captions=("t",), labels=LABELS, shares=()):
    image, mask = np.full((32, 32, 3), WHITE, np.uint8), np.zeros((32, 32), np.uint8)
    section = Section(heading, [entry(image, mask, caption, None, 32) for caption in captions], shares)
    return contact_sheet(title, [section], labels), lettering(title, [section], labels)


def ink(sheet):
    """Columns and rows of a sheet that are not white at its right and lower rim."""
    pixels = np.asarray(sheet)
    return (pixels[:, -4:] != WHITE).any() or (pixels[-4:] != WHITE).any()


def test_a_sheet_is_wide_enough_for_its_texts():
    long = "a name that is much longer than all tiles beside it " * 4
    plain, _ = a_sheet()
    for texts in ({"title": long}, {"captions": (long, long)}, {"heading": long, "shares": (0.5, 0.5)}):
        sheet, pen = a_sheet(**texts)
        assert sheet.width > pen.length(long) > plain.width
        assert not ink(sheet) or "heading" in texts  # its rule ends at the rim


def test_a_legend_that_is_wider_than_the_sheet_continues_on_the_next_line():
    labels = tuple(Label(f"label number {i}", f"#{i:02x}00ff") for i in range(12))
    few, many = (a_sheet(labels=some)[0] for some in (labels[:2], labels))
    assert many.width == few.width
    assert many.height > few.height
    for label in labels:
        colour = [int(label.colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.asarray(many) == colour).all(axis=2).sum() >= 100


@pytest.mark.filterwarnings("error")
def test_a_caption_is_written_in_a_font_that_has_its_characters_else_as_code_points(installed):
    spelt, _ = a_sheet(captions=("β [U+E0F7]",))
    without, pen = a_sheet(captions=("β \ue0f7",))
    assert pen.lacking == {"\ue0f7"}
    assert np.array_equal(without, spelt)
    installed("Drawn", "\ue0f7")
    within, pen = a_sheet(captions=("β \ue0f7",))
    assert not pen.lacking
    assert not np.array_equal(within, spelt)


def test_letters_of_two_fonts_stand_on_one_line(installed):
    from PIL import Image

    installed("Drawn", "\ue0f7")
    pen = Lettering(["H\ue0f7"])
    feet = []
    for text in ("H", "\ue0f7"):
        picture = Image.new("RGB", (40, 40), "white")
        pen.write(ImageDraw.Draw(picture), 5, 5, text)
        feet.append(np.flatnonzero((np.asarray(picture)[..., 0] < 128).any(axis=1)).max())
    assert feet[0] == feet[1]
    assert pen.length("H\ue0f7") == pen.length("H") + pen.length("\ue0f7")
