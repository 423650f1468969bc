"""Annotations as QuPath exports them, on toys whose masks are known."""

import json
from collections import Counter

import numpy as np
import pytest
import shapely

from fmcache.errors import TileError
from fmcache.tiles.annotations import Annotation, class_counts, rasterise, read_annotations


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(name, *rings, kind="Polygon", coordinates=None, **classification):
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates or list(rings)},
        "properties": {"objectType": "annotation", "classification": {"name": name, **classification}},
    }


def read(tmp_path, document, notes=None):
    path = tmp_path / "a.geojson"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_annotations(path, notes)


A, B = feature("a", ring(0, 0, 4, 4), color=[1, 2, 3]), feature("b", ring(2, 2, 6, 6))
IDS = {"a": 0, "b": 1}


@pytest.mark.parametrize("wrap", [lambda f: {"type": "FeatureCollection", "features": f}, lambda f: f])
def test_a_collection_and_a_bare_list_hold_the_same_regions(tmp_path, wrap):
    assert class_counts(read(tmp_path, wrap([A, B, B]))) == Counter(a=1, b=2)


def test_a_single_feature_is_read_and_a_byte_order_mark_is_no_hindrance(tmp_path):
    assert [a.name for a in read(tmp_path, "\ufeff" + json.dumps(A))] == ["a"]


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({}, ""),
        (None, ""),
        ({"classification": None}, ""),
        ({"classification": "a"}, "a"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": {"name": "a", "colorRGB": -3}}, "a"),
    ],
)
def test_the_class_is_a_name_and_never_a_colour(tmp_path, properties, name):
    assert [a.name for a in read(tmp_path, A | {"properties": properties})] == [name]


def test_a_hole_stays_open_and_what_lies_below_it_is_seen_through_it(tmp_path):
    holed = feature("b", ring(0, 0, 8, 8), ring(2, 2, 6, 6))
    below = read(tmp_path, [feature("a", ring(0, 0, 5, 8)), holed])
    mask = rasterise(below, IDS, (8, 8)).mask
    expected = np.ones((8, 8), dtype=np.uint8)
    expected[2:6, 2:5], expected[2:6, 5] = 0, 255
    np.testing.assert_array_equal(mask, expected)


def test_every_part_of_a_multipolygon_is_drawn_with_its_own_hole(tmp_path):
    parts = [[ring(0, 0, 3, 3), ring(1, 1, 2, 2)], [ring(4, 4, 6, 6)]]
    mask = rasterise(read(tmp_path, feature("a", kind="MultiPolygon", coordinates=parts)), IDS, (6, 6)).mask
    assert (mask == 0).sum() == 9 - 1 + 4
    assert mask[1, 1] == 255


def test_regions_are_cut_at_the_border_negative_and_inclusive_coordinates_alike(tmp_path):
    mask = rasterise(read(tmp_path, feature("a", ring(-5, -5, 8, 8))), IDS, (8, 8)).mask
    assert (mask == 0).all()
    assert (rasterise(read(tmp_path, feature("a", ring(8, 0, 12, 8))), IDS, (8, 8)).mask == 255).all()


def test_the_order_decides_who_lies_on_top_and_without_one_the_file_does(tmp_path):
    both, reverse = read(tmp_path, [A, B]), read(tmp_path, [B, A])
    assert rasterise(both, IDS, (6, 6)).mask[3, 3] == 1
    assert rasterise(reverse, IDS, (6, 6)).mask[3, 3] == 0
    assert rasterise(reverse, IDS, (6, 6), order=("a", "b")).mask[3, 3] == 1
    assert rasterise(both, IDS, (6, 6), order=("b", "a")).mask[3, 3] == 0


def test_overlap_counts_pixels_of_two_labels_and_no_duplicates(tmp_path):
    assert rasterise(read(tmp_path, [A, B]), IDS, (8, 8)).overlap == 4 / 64
    assert rasterise(read(tmp_path, [A, A, A]), IDS, (8, 8)).overlap == 0
    assert rasterise(read(tmp_path, [A, B]), {"a": 0, "b": 0}, (8, 8)).overlap == 0


def test_neighbours_that_share_a_slanted_edge_leave_no_gap_and_share_no_pixel():
    left = shapely.Polygon([(0, 0), (13.3, 0), (4.7, 32), (0, 32)])
    right = shapely.box(0, 0, 32, 32).difference(left)
    drawn = rasterise([Annotation("a", left), Annotation("b", right)], IDS, (32, 32))
    assert drawn.overlap == 0
    assert (drawn.mask != 255).all()


def test_the_mask_is_that_of_asking_every_pixel_centre():
    rng = np.random.default_rng(3)
    blobs = [Annotation("ab"[i % 2], shapely.Point(*rng.uniform(0, 40, 2)).buffer(rng.uniform(3, 9))) for i in range(9)]
    blobs[4] = Annotation("a", blobs[4].geometry.difference(blobs[4].geometry.buffer(-2)))
    slow = np.full((30, 40), 7, dtype=np.uint8)
    for y in range(30):
        for x in range(40):
            for name, shape, _ in blobs:
                if shape.contains(shapely.Point(x + 0.5, y + 0.5)):
                    slow[y, x] = IDS[name]
    np.testing.assert_array_equal(rasterise(blobs, IDS, (40, 30), fill=7).mask, slow)


def test_origin_and_scale_look_at_a_window_of_the_annotations():
    shape = [Annotation("a", shapely.Point(300, 200).buffer(31.7))]
    whole = rasterise(shape, IDS, (400, 300)).mask
    np.testing.assert_array_equal(rasterise(shape, IDS, (80, 60), origin=(250, 170)).mask, whole[170:230, 250:330])
    half = rasterise(shape, IDS, (40, 30), origin=(250, 170), scale=0.5).mask
    assert abs(int((half == 0).sum()) * 4 - int((whole[170:230, 250:330] == 0).sum())) < 60


def test_outlines_that_cross_themselves_keep_both_loops_and_are_counted(tmp_path):
    bow_tie, notes = feature("a", [[0, 0], [8, 8], [8, 0], [0, 8], [0, 0]]), Counter()
    (found,) = read(tmp_path, bow_tie, notes)
    assert shapely.is_valid(found.geometry)
    assert found.geometry.area == 32
    overlapping = feature("a", kind="MultiPolygon", coordinates=[[ring(0, 0, 4, 4)], [ring(2, 2, 6, 6)]])
    (found,) = read(tmp_path, overlapping, notes)
    assert found.geometry.area == 16 + 16 - 4
    assert notes == {"repaired": 2}


def test_empty_and_regionless_features_are_left_out_and_counted(tmp_path):
    notes = Counter()
    features = [
        A | {"geometry": None},
        feature("a", coordinates=[]) | {"geometry": {"type": "Polygon", "coordinates": []}},
        feature("a", [[1, 1], [2, 2], [1, 1]]),
        A | {"geometry": {"type": "Point", "coordinates": [1, 2]}},
        A,
    ]
    assert len(read(tmp_path, features, notes)) == 1
    assert notes == {"empty": 3, "no region (Point)": 1}
    assert read(tmp_path, {"type": "FeatureCollection", "features": []}) == []
    assert (rasterise([], IDS, (4, 4), fill=1).mask == 1).all()


def test_unknown_classes_are_all_listed_with_their_counts(tmp_path):
    found = read(tmp_path, [A, B, B, A | {"properties": {}}])
    with pytest.raises(TileError, match=r"b \(2\), \(no class\) \(1\)"):
        rasterise(found, {"a": 0}, (4, 4))
    with pytest.raises(TileError, match="without a place in the order"):
        rasterise(found, {"a": 0, "b": 1, "": 255}, (4, 4), order=("a", "b"))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ('{"type": "FeatureCollection", "features": [{"ty', "not valid JSON"),
        ('{"a": 1}', "no GeoJSON features"),
        ("[1, 2]", "no GeoJSON features"),
        (A | {"geometry": {"type": "Polygon", "coordinates": [[["x", 1], [2, 2], [3, 1]]]}}, "feature 0 cannot"),
        (A | {"geometry": {"type": "Polygon", "coordinates": [5]}}, "feature 0 cannot"),
        (A | {"properties": {"classification": 5}}, "feature 0 cannot"),
    ],
)
def test_what_is_no_geojson_is_refused_in_plain_words(tmp_path, document, says):
    with pytest.raises(TileError, match=says):
        read(tmp_path, document)
    with pytest.raises(TileError, match="does not exist"):
        read_annotations(tmp_path / "absent.geojson")
