"""The table of areas: known numbers, and names that spreadsheets must not compute."""

import csv

import numpy as np
import pytest

from fmcache.manifest import Label
from fmcache.maps.areas import cell
from fmcache.maps.contract import GLASS, MapGeometry


def rows(folder, name="slide"):
    with (folder / f"{name}.areas.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_areas_are_in_mm2_and_shares_are_of_what_was_predicted(tmp_path, maps):
    labels = np.full((1000, 1000), GLASS, np.uint8)
    labels[:600] = 0
    labels[600:800] = 2
    totals = maps.write(tmp_path, labels)
    table = [(row["id"], row["label"], row["pixels"], row["mm2"], row["share"]) for row in rows(tmp_path)]
    assert table == [
        ("0", "tumour", "600000", "0.150000", "0.750000"),
        ("1", "stroma", "0", "0.000000", "0.000000"),
        ("2", "other", "200000", "0.050000", "0.250000"),
        ("255", "(not predicted)", "200000", "0.050000", ""),
    ]
    assert {row["map"] for row in rows(tmp_path)} == {"slide"}
    assert (totals.px, totals.glass_px) == ((600_000, 0, 200_000), 200_000)


def test_a_map_of_glass_has_no_shares(tmp_path, maps):
    maps.write(tmp_path, np.full((10, 10), GLASS, np.uint8))
    assert {row["share"] for row in rows(tmp_path)} == {""}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1"])
def test_names_that_start_like_formulas_get_a_quote(name):
    assert cell(name).startswith("'")


def test_other_names_are_unchanged_but_on_one_line(tmp_path, maps):
    names = ['a,"b"', "肿瘤", "x\ny", "=cmd|' /C calc'!A0"]
    geometry = MapGeometry("=1", 4, 4, 0.5, 1.0, tuple(Label(name, "#000000") for name in names))
    maps.write(tmp_path, np.zeros((4, 4), np.uint8), geometry=geometry)
    found = rows(tmp_path, "=1")
    assert [row["label"] for row in found[:4]] == ['a,"b"', "肿瘤", "x y", "'=cmd|' /C calc'!A0"]
    assert found[0]["map"] == "'=1"
