"""The tiles that the counts choose, and the pictures of the predictions that the runs kept."""

import io

import numpy as np
import pytest
from PIL import Image

from fmcache.report.findings import find
from fmcache.report.picture_rows import MISSING, picture_rows

SHIFTS = {
    "x": [[1, 5, 3, 8, 0], [1, 5, 3, 8, 0], [1, 5, 3, 8, 0]],
    "y": [[2, 5, 3, 8, 1], [2, 5, 3, 8, 1], [2, 5, 3, 8, 1]],
}
"""On tile t01 to t04 both encoders are equally wrong or nearly so; on t00 and t04 one column parts them."""


@pytest.fixture(scope="module")
def shown(drawn, tmp_path_factory):
    """The pictures of `SHIFTS`."""
    return picture_rows(find(drawn(tmp_path_factory.mktemp("shifts"), SHIFTS)))


def titles(rows):
    return [(row.title, row.tile) for row in rows]


def names(row):
    return [picture.name for picture in row.pictures]


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.file)).convert("RGB"))


def test_best_median_and_worst_tiles_are_those_of_the_counts(shown):
    assert titles(shown.compared) == [
        ("Best tile", "t04"),
        ("Median tile", "t02"),
        ("Worst tile", "t03"),
        ("Tile where encoders disagree most (3% of the pixels)", "t00"),
    ]
    assert names(shown.compared[0]) == ["tile t04", "truth", "X", "Y"]
    assert [row.title for row in shown.encoders] == ["X", "Y"]
    assert names(shown.encoders[0])[::3] == ["Best tile t04", "Median tile t02", "Worst tile t03"]
    assert shown.legend == (("a", "#ff0000"), ("b", "#0000ff"))


def test_a_tile_that_is_chosen_twice_is_shown_once(drawn, tmp_path):
    found = picture_rows(find(drawn(tmp_path, {"x": [[1, 2, 8]], "y": [[1, 2, 4]]})))
    assert titles(found.compared) == [
        ("Best tile", "t00"),
        ("Median tile", "t01"),
        ("Worst tile, where encoders disagree most (12% of the pixels)", "t02"),
    ]


def test_controls_are_drawn_last_and_choose_no_tile(drawn, tmp_path):
    raw = {"raw": [[20, 0, 0, 0, 20]] * 3}
    found = picture_rows(find(drawn(tmp_path, raw | SHIFTS, control=("raw",))))
    assert titles(found.compared)[0] == ("Best tile", "t04")
    assert found.compared[-1].title == "Tile where encoders disagree most (3% of the pixels)"
    assert names(found.compared[0])[-1] == "RAW"


def test_a_prediction_shows_its_errors_and_says_how_many(shown):
    worst = next(row for row in shown.compared if row.title == "Worst tile")
    prediction = worst.pictures[2]
    # 8 of 32 columns are wrong: Dice of a is 2*16/(24+16) = 0.8, of b 2*8/(8+16) = 0.667
    assert prediction.about == "Dice 73.3%"
    assert prediction.alt == "Prediction of X on tile t03: Dice 73.3%, 25% of the labelled pixels are wrong."
    drawn_pixels = pixels(prediction)
    assert (drawn_pixels[5, 200] == (255, 0, 0)).all()  # in the wrong region, as predicted
    assert (drawn_pixels[5, 160] == 0).all()  # its border
    assert (drawn_pixels[5, 159] == 255).all()
    assert (pixels(worst.pictures[1])[5, 200] == (0, 0, 255)).all()
    assert worst.pictures[1].alt == "Truth of tile t03: a 50%, b 50%."


def test_the_seed_of_the_median_dice_is_drawn(drawn, tmp_path):
    found = picture_rows(find(drawn(tmp_path, {"x": [[12, 12], [4, 4], [0, 0]], "y": [[0, 0], [8, 8], [12, 12]]})))
    by_name = {picture.name: picture.about for picture in found.compared[0].pictures}
    # shifts of 4 and 8 columns: (2*16/36 + 2*12/28) / 2, (2*16/40 + 2*8/24) / 2
    assert by_name["X"] == "Dice 87.3%"
    assert by_name["Y"] == "Dice 73.3%"
    assert "(seed 1)" in found.notes[0]


def test_the_tile_has_a_scale_bar_in_um_where_they_are_known_else_in_pixels(drawn, tmp_path):
    runs = drawn(tmp_path, SHIFTS)  # listed at 0.5 um/px with 64 px, shown with 32 px: 1 um/px
    assert picture_rows(find(runs)).compared[0].pictures[0].about == "bar 10 µm"
    without = [type(run)(type(run.record)(**_fields(run.record) | {"mpp": None}), *_rest(run)) for run in runs]
    assert picture_rows(find(without)).compared[0].pictures[0].about == "bar 10 px"


def _fields(record):
    return {name: getattr(record, name) for name in record.__struct_fields__}


def _rest(run):
    return run.counts, run.curve, run.folder


def test_token_grids_of_one_tile_are_shown_for_each_encoder(shown):
    (row,) = shown.tokens
    assert names(row) == ["X", "Y"]
    assert row.tile == "t04"
    assert (pixels(row.pictures[0]) == 7 * 4).all()
    assert row.pictures[0].about == "4 x 4 tokens"


def test_results_without_predictions_say_how_to_get_them(drawn, tmp_path):
    found = picture_rows(find(drawn(tmp_path, SHIFTS, kept=False)))
    assert found.notes == (MISSING,)
    assert found.compared == found.encoders == found.tokens == ()


def test_an_encoder_without_predictions_is_named_and_the_others_are_drawn(drawn, tmp_path):
    old = drawn(tmp_path, {"x": SHIFTS["x"]}, kept=False)
    found = picture_rows(find(old + drawn(tmp_path, {"y": SHIFTS["y"]})))
    assert names(found.compared[0]) == ["tile t04", "truth", "Y"]
    assert found.notes[-1].startswith("No predictions are stored for X: run fmcache fit")


def test_tiles_without_a_picture_still_have_truth_and_predictions(drawn, tmp_path):
    found = picture_rows(find(drawn(tmp_path, SHIFTS, photos=False)))
    assert names(found.compared[0]) == ["truth of tile t04", "X", "Y"]
    assert "The results hold no pictures of the tiles." in found.notes


@pytest.mark.parametrize(
    ("shifts", "expected"), [([[3]], ["Only tile"]), ([[3, 1]], ["Best tile", "Worst tile"])], ids=["one", "two"]
)
def test_few_tiles_are_shown_once(drawn, tmp_path, shifts, expected):
    assert [row.title for row in picture_rows(find(drawn(tmp_path, {"x": shifts}))).compared] == expected


def test_folds_show_the_tiles_of_all_folds(drawn, tmp_path):
    runs = drawn(tmp_path, {"x": [[1, 4]] * 2}, fold=0) + drawn(tmp_path, {"x": [[0, 8]] * 2}, fold=1)
    found = picture_rows(find(runs))
    assert titles(found.compared) == [("Best tile", "t10"), ("Median tile", "t00"), ("Worst tile", "t11")]


def test_the_rim_that_a_token_grid_leaves_out_is_striped_and_not_wrong(drawn, tmp_path):
    found = picture_rows(find(drawn(tmp_path, SHIFTS, tile_px=40)))
    worst = next(row for row in found.compared if row.title == "Worst tile")
    corner = pixels(worst.pictures[2])[-30:, -30:]
    assert len(np.unique(corner)) == 2
    assert "25% of the labelled pixels are wrong" in worst.pictures[2].alt


def test_the_same_results_give_the_same_pictures(shown, drawn, tmp_path):
    assert picture_rows(find(drawn(tmp_path, SHIFTS))) == shown
