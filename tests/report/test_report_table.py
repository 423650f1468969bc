"""How numbers are written: with two digits, a minus sign of the right width, and no sign for zero."""

import pytest

from fmcache.report.report_table import Cell, interval_cell, number_cell, percent_cell, rank_cell


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (percent_cell(0.8), "80.00"),
        (percent_cell(0.8, 0.0123), "80.00 ± 1.23"),
        (percent_cell(0.8, float("nan")), "80.00"),
        (percent_cell(float("nan"), 0.1), "–"),
        (percent_cell(None), "–"),
        (percent_cell(0.012, signed=True), "+1.20"),
        (percent_cell(-0.012, signed=True), "−1.20"),
        (percent_cell(-0.00001, signed=True), "0.00"),
        (interval_cell(0.1, 0.25), "[10.00, 25.00]"),
        (interval_cell(-0.1, 0.25, signed=True), "[−10.00, +25.00]"),
        (interval_cell(None, None), "–"),
        (rank_cell(1, 3), "1–3"),
        (rank_cell(2, 2), "2"),
        (rank_cell(None, None), "–"),
        (number_cell(1234.56, 1), "1,234.6"),
        (number_cell(None), "–"),
    ],
)
def test_texts_of_cells(cell, text):
    assert cell.text == text
    assert (cell.value is None) == (text == "–")


def test_cells_without_a_value_have_no_place():
    assert percent_cell(None) == Cell("–")
