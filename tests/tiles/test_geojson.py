"""Files of annotations as tools write them: encodings, compression, numbers JSON has not, and other tools' formats."""

import gzip
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcache.errors import TileError
from fmcache.tiles.annotation_notes import sentences
from fmcache.tiles.annotations import rasterise, read_annotations
from fmcache.tiles.classes import Selection, class_name
from fmcache.tiles.geojson import ALWAYS_BYTES, read_features

RING = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]


def feature(name, plane=None, kind="annotation", **properties):
    geometry = {"type": "Polygon", "coordinates": [RING]} | ({"plane": plane} if plane else {})
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": kind, "classification": {"name": name}, **properties},
    }


def written(tmp_path, data, name="a.geojson"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def names(path, *arguments):
    return [annotation.name for annotation in read_annotations(path, *arguments)]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_numbers_that_json_has_not_are_no_matter_among_measurements_and_refused_among_coordinates(tmp_path, number):
    odd = feature("a", measurements={"Solidity": number, "list": [number]})
    assert names(written(tmp_path, [odd, feature("b")])) == ["a", "b"]
    odd["geometry"]["coordinates"] = [[[0, 0], [number, 4], [4, 4]]]
    with pytest.raises(TileError, match="feature 1 cannot be read"):
        names(written(tmp_path, [feature("b"), odd]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_unicode_encoding_is_read_compressed_or_not(tmp_path, encoding, packed):
    data = json.dumps([feature("Tumör 腫瘍")], ensure_ascii=False).encode(encoding)
    assert names(written(tmp_path, gzip.compress(data) if packed else data)) == ["Tumör 腫瘍"]


def test_text_of_another_encoding_is_refused_with_what_it_would_read(tmp_path):
    data = json.dumps([feature("Tumör")], ensure_ascii=False).encode("latin-1")
    with pytest.raises(TileError, match="is not UTF-8 text") as refused:
        names(written(tmp_path, data))
    assert "Tumör" in refused.value.found
    assert "save it as UTF-8" in refused.value.next_step


def test_damaged_and_bottomless_compressed_files_are_refused(tmp_path):
    whole = gzip.compress(json.dumps([feature("a")]).encode())
    for damaged in (whole[:-10], whole[:20], whole[:-8] + b"12345678"):
        with pytest.raises(TileError, match="damaged"):
            names(written(tmp_path, damaged, "a.geojson.gz"))
    with pytest.raises(TileError, match="unpacks to more than 64 MB"):
        names(written(tmp_path, gzip.compress(b" " * (ALWAYS_BYTES + 1), 1), "a.geojson.gz"))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b'<?xml version="1.0"?><Annotations MicronsPerPixel="0.5"><Annotation Id="1"/></Annotations>', "Aperio"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<ASAP_Annotations><Annotations/></ASAP_Annotations>', "ASAP XML"),
        (b"<!DOCTYPE html><html><body>sign in</body></html>", "a web page"),
        (b"<kml/>", "is XML"),
        (b"PK\x03\x04rest", "zip archive"),
        ({"images": [], "annotations": [], "categories": []}, "COCO JSON"),
        ({"version": "5.0", "shapes": [], "imagePath": "a.png"}, "LabelMe JSON"),
        ({"type": "Topology", "objects": {}, "arcs": []}, "TopoJSON"),
        ({"a.png123": {"filename": "a.png", "regions": []}}, "VIA JSON"),
        ({"features": [{"attributes": {}, "geometry": {"rings": []}}], "spatialReference": {}}, "Esri JSON"),
        ({"name": "x", "elements": [{"type": "polyline"}]}, "HistomicsTK"),
        ({"type": "Polygon", "coordinates": [RING]}, "a Polygon without a feature"),
        ([RING], "a plain list of numbers"),
        (5, "a single int"),
        ([feature("a"), {"type": "Feature"}], "no GeoJSON features"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not UTF-8 text"),
    ],
)
def test_files_of_other_kinds_are_refused_by_name_with_the_way_on(tmp_path, document, says):
    with pytest.raises(TileError, match=says) as refused:
        read_features(written(tmp_path, document))
    assert refused.value.next_step


def test_the_one_of_many_that_is_no_feature_is_named(tmp_path):
    with pytest.raises(TileError) as refused:
        read_features(written(tmp_path, [feature("a"), {"type": "Feature", "id": 10**30}, feature("a")]))
    assert refused.value.found.startswith("number 1 of 3 has no geometry: {'type': 'Feature'")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('{"name": "Tumor", "color": [200, 0, 0]}', "Tumor"),
        ("{'name': 'Tumor', 'color': [200, 0, 0], 'x': None, 'y': True}", "Tumor"),
        ("{'name': \"Crohn's\", 'names': None}", "Crohn's"),
        ("{'name': 'a \"b\" c'}", 'a "b" c'),
        ("{'names': ['Tumor', 'Positive']}", "Tumor: Positive"),
        ("Tumor", "Tumor"),
        ({"names": ["Tumor", "Positive"], "name": None}, "Tumor: Positive"),
        ({}, ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_class_is_also_read_from_text_of_a_dictionary_as_geopandas_writes_it(value, name):
    assert class_name({"classification": value}) == name
    assert class_name({"classification": None, "pathClass": value}) == name
    assert class_name({"classification": "Other", "label": value}, "label") == name


@pytest.mark.parametrize(
    "value", ["{Tumor", "{'name': array([1, 2])}", {"colorRGB": -3}, {"name": 5}, 5, ["a"], "\ud83d"]
)
def test_a_class_that_is_there_and_cannot_be_read_is_refused(tmp_path, value):
    odd = feature("") | {"properties": {"classification": value}}
    with pytest.raises(TileError, match="feature 0 cannot be read"):
        names(written(tmp_path, [odd]))


def test_another_property_may_name_the_class_also_as_a_number(tmp_path):
    features = [feature("x", label=label) for label in ("Tumor", 3, 3.0, float("nan"), None)]
    assert names(written(tmp_path, features), None, Selection(class_property="label")) == ["Tumor", "3", "3", "", ""]


def test_skipped_classes_and_kinds_of_objects_are_as_if_not_drawn(tmp_path):
    cells = [feature("Positive", kind="cell"), feature("Tumor", kind="detection")]
    old = {"type": "Feature", "id": "PathCellObject", "geometry": {"type": "Polygon", "coordinates": "?"}}
    path = written(tmp_path, [feature("Tumor"), feature("ROI"), *cells, old])
    notes = Counter()
    selection = Selection(frozenset({"ROI", ""}), frozenset({"annotation"}))
    assert names(path, notes, selection) == ["Tumor"]
    (line,) = sentences(notes)
    assert line == "features skipped, as if not drawn: cell objects (2), ROI (1), detection objects (1)"
    assert names(path, None, Selection(frozenset({""}))) == ["Tumor", "ROI", "Positive", "Tumor"]


def test_regions_on_several_planes_are_refused_and_on_one_other_plane_reported(tmp_path):
    first, seventh = {"c": -1, "z": 0, "t": 0}, {"c": -1, "z": 7, "t": 0}
    path = written(tmp_path, [feature("a"), feature("a", first), feature("b", seventh)])
    with pytest.raises(TileError, match="several planes") as refused:
        names(path)
    assert refused.value.found == "z 0, t 0: 2 regions; z 7, t 0: 1 regions"
    assert names(path, None, Selection(frozenset({"b"}))) == ["a", "a"]
    notes = Counter()
    assert names(written(tmp_path, [feature("a", seventh), feature("b", {"z": 7})]), notes) == ["a", "b"]
    assert sentences(notes) == ["2 regions lie on plane z 7, t 0 of a stack: images must show that plane"]
    for plane in ({"z": "x"}, {"t": float("inf")}, [1]):
        with pytest.raises(TileError, match="feature 0"):
            names(written(tmp_path, [feature("a", plane)]))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["name", "Polygon"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "geometry", "coordinates", "properties", "classification", "name", "names", "features"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["type", "geometry", "properties", "id", "plane", "features"])


@st.composite
def documents(draw):
    """Valid features with parts of them put elsewhere, or other things in their place."""
    features = [feature("a", {"z": 0}), feature("b", kind="cell", measurements={"x": 1.5})]
    for one in features:
        for target in (one, one["geometry"], one["properties"]):
            if draw(st.booleans()):
                target[draw(KEYS | st.sampled_from(list(target)))] = draw(JSON)
    if draw(st.booleans()):
        number = st.integers(-9, 9) | st.floats(-2e9, 2e9) | st.floats()
        rings = [[[draw(number), draw(number)] for _ in range(5)] for _ in range(2)]
        kind, rings = draw(st.sampled_from([("Polygon", rings), ("MultiPolygon", [rings, rings[:1]])]))
        features[0]["geometry"] = {"type": kind, "coordinates": rings}
    if draw(st.booleans()):
        features[1].pop(draw(st.sampled_from(list(features[1]))))
    return draw(st.sampled_from([features, {"type": "FeatureCollection", "features": features}, features[0]]) | JSON)


def read_or_refuse(path):
    try:
        regions = read_annotations(path, Counter())
        assert all(region.geometry.is_valid for region in regions)
        rasterise(regions, dict.fromkeys((region.name for region in regions), 1), (8, 8))
    except TileError as refused:
        assert str(path) in refused.problem


@given(documents())
@settings(max_examples=100)
def test_any_tree_of_json_is_read_or_refused(tmp_path_factory, document):
    read_or_refuse(written(tmp_path_factory.getbasetemp(), json.dumps(document).encode(), "tree.geojson"))


@given(st.randoms(use_true_random=False), st.sampled_from(["utf-8", "utf-16"]), st.booleans())
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused(tmp_path_factory, rng: random.Random, encoding, packed):
    data = bytearray(json.dumps([feature("Tumör", {"z": 0}), feature("b", x=float("nan"))]).encode(encoding))
    data = bytearray(gzip.compress(data)) if packed else data
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4)) if rng.random() < 0.7 else b'"'
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    read_or_refuse(written(tmp_path_factory.getbasetemp(), bytes(data), "bytes.geojson"))


@pytest.mark.parametrize(
    ("text", "problem", "way"),
    [
        ('{"a": 1}\n{"a": 2}\n', "several JSON documents", "jq -s"),
        ('\x1e{"a": 1}\n\x1e{"a": 2}\n', "several JSON documents", "tr -d '\\036' <"),
        ('[{"a": 1},]', "not valid JSON", "remove the comma"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        ('<Annotations><Annotation Name="T"><Region><V X="1" Y="2"/>', "HALO XML", "properties.classification.name"),
        ("<annotations><version>1.1</version>", "CVAT XML", "one file per image"),
        ('{"collection": [{"location": "POLYGON ((0 0))"}]}', "JSON of Cytomine", "y starts at the lower"),
        ('[{"id": 1, "annotations": [{"result": []}]}]', "Label Studio JSON", "in percent"),
    ],
)
def test_files_that_hold_something_else_are_refused_by_name(tmp_path, text, problem, way):
    with pytest.raises(TileError, match=problem) as refused:
        read_features(written(tmp_path, text.encode()))
    assert way in refused.value.next_step


@pytest.mark.parametrize(("kind", "coordinates"), [("Polygon", RING), ("Polygon", [[RING]]), ("MultiPolygon", [RING])])
def test_brackets_too_many_or_too_few_are_named(tmp_path, kind, coordinates):
    odd = feature("a") | {"geometry": {"type": kind, "coordinates": coordinates}}
    with pytest.raises(TileError, match="cannot be read") as refused:
        names(written(tmp_path, [odd]))
    assert "brackets" in refused.value.found
