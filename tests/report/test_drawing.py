"""What a reader sees in a mask: colours of labels, stripes without a label, outlines of errors, a true scale bar."""

import io

import numpy as np
import pytest
from PIL import Image

from fmcache.report.drawing import ScaleBar, coloured, outlined, padded, palette_of, png, side_of

RED, BLUE, BLACK, WHITE = (200, 0, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
PALETTE = palette_of(["#c80000", "#0000ff"])
SIGNS = {RED: "r", BLUE: "b", BLACK: "x", WHITE: "."}


def signs(picture):
    return ["".join(SIGNS.get(tuple(map(int, pixel)), "/") for pixel in row) for row in picture]


def test_labels_have_their_colours_and_pixels_without_a_label_are_striped():
    assert signs(coloured(np.array([[0, 1, 255], [1, 0, 255]], np.uint8), PALETTE)) == ["rb/", "br/"]
    striped = coloured(np.full((8, 8), 255, np.uint8), PALETTE)
    assert len(np.unique(striped)) == 2


def test_a_wrong_region_has_a_black_line_inside_and_a_white_line_around():
    truth, predicted = np.zeros((7, 7), np.uint8), np.zeros((7, 7), np.uint8)
    predicted[1:6, 1:6] = 1
    assert signs(outlined(predicted, truth, PALETTE)) == [
        "r.....r",
        ".xxxxx.",
        ".xbbbx.",
        ".xbbbx.",
        ".xbbbx.",
        ".xxxxx.",
        "r.....r",
    ]


def test_a_perfect_prediction_has_no_line_and_pixels_without_truth_are_never_wrong():
    truth = np.array([[0, 1], [255, 1]], np.uint8)
    assert signs(outlined(np.array([[0, 1], [0, 1]], np.uint8), truth, PALETTE)) == ["rb", "/b"]


def test_a_prediction_that_covers_less_gets_a_rim_without_label():
    assert padded(np.zeros((2, 2), np.uint8), 3).tolist() == [[0, 0, 255], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize(
    ("um_px", "tile_px", "share", "text"),
    [(0.5, 512, 50 / 256, "50 µm"), (0.25, 1024, 50 / 256, "50 µm"), (0.44, 512, 50 / 225.28, "50 µm"),
     (2.0, 512, 200 / 1024, "200 µm"), (0.01, 32, 0.1 / 0.32, "0.1 µm"), (None, 512, 100 / 512, "100 px")],
)  # fmt: skip
def test_a_scale_bar_has_a_round_length_of_at_most_a_third_of_the_tile(um_px, tile_px, share, text):
    bar = ScaleBar.of(um_px, tile_px)
    assert bar.share == pytest.approx(share)
    assert bar.text == text


def test_a_scale_bar_is_drawn_as_long_as_it_says():
    drawn = np.asarray(ScaleBar(0.25, "50 µm").drawn_on(Image.new("RGB", (200, 200), (180, 90, 120))))
    black = (drawn == 0).all(axis=2)
    assert np.flatnonzero(black.any(axis=0)).size == 50
    assert np.flatnonzero(black.any(axis=1)).min() > 150


def test_the_side_of_the_image_is_read_from_the_comment_of_its_picture():
    for comment, side in ((b"side_px 1024", 1024), (b"made by hand", None), (b"side_px x", None), (b"", None)):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", comment=comment)
        assert side_of(Image.open(file)) == side


def test_png_files_hold_the_exact_pixels_with_few_colours_or_many():
    few = coloured(np.array([[0, 1, 255]] * 3, np.uint8), PALETTE)
    many = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for picture in (few, many):
        image = Image.open(io.BytesIO(png(picture)))
        assert np.array_equal(np.asarray(image.convert("RGB")), picture)
    assert Image.open(io.BytesIO(png(few))).mode == "P"
