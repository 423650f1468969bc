"""GeoJSON of a map, read back with json, shapely and rasterio: coordinates, holes, classes, specks."""

import gzip
import json

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize

from fmcache.manifest import Label
from fmcache.maps import joining, qupath_file
from fmcache.maps.contract import GLASS, MapGeometry, MapOptions
from fmcache.tiles.geojson import read_features


def back(folder, labels, scale=2.0):
    """Return the polygons of slide.geojson, drawn at the size of the map, and their classes."""
    features = json.loads((folder / "slide.geojson").read_text())["features"]
    names = ["tumour", "stroma", "other"]
    classes = [one["properties"]["classification"]["name"] for one in features]
    shapes = [
        shapely.affinity.scale(shapely.geometry.shape(f["geometry"]), 1 / scale, 1 / scale, origin=(0, 0))
        for f in features
    ]
    drawn = [(shape, names.index(name)) for shape, name in zip(shapes, classes, strict=True)]
    return rasterize(drawn, labels.shape, fill=GLASS, dtype="uint8") if drawn else np.full(labels.shape, GLASS), shapes


def test_the_layout_is_that_of_qupath_and_coordinates_are_of_level_0(tmp_path, maps):
    labels = np.full((30, 40), GLASS, np.uint8)
    labels[10:20, 5:25] = 1
    labels[12:15, 8:12] = GLASS
    maps.write(tmp_path, labels, geometry=MapGeometry("slide", 30, 40, 0.5, 1.25, maps.LABELS))
    [feature] = json.loads((tmp_path / "slide.geojson").read_text())["features"]
    assert feature["type"] == "Feature"
    assert feature["properties"] == {
        "objectType": "annotation", "classification": {"name": "stroma", "color": [0, 200, 0]},
    }  # fmt: skip
    assert feature["geometry"]["type"] == "Polygon"
    shell, hole = feature["geometry"]["coordinates"]
    assert {tuple(point) for point in shell} == {(6.2, 12.5), (31.2, 12.5), (31.2, 25), (6.2, 25)}  # 6.25 to even
    assert {tuple(point) for point in hole} == {(10, 15), (15, 15), (15, 18.8), (10, 18.8)}
    assert shell[0] == shell[-1]
    assert read_features(tmp_path / "slide.geojson") == [feature]  # as fmcache reads the files of QuPath


@pytest.mark.parametrize("band_px", [1, 97, 2000])
def test_rasterised_back_every_label_has_its_area_and_neighbours_share_borders(tmp_path, maps, band_px):
    labels = maps.blobs(1100, 500, blur_px=20)
    totals = maps.write(tmp_path, labels, band_px)
    found, shapes = back(tmp_path, labels)
    for label in range(3):
        assert (found == label).sum() == pytest.approx((labels == label).sum(), rel=0.005)
    assert (found != labels).mean() < 0.01
    assert ((found == GLASS) & (labels != GLASS)).mean() < 0.001  # only at the edge of the tissue
    assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes), rel=1e-9)
    assert totals.regions == len(shapes)


def test_the_file_does_not_depend_on_the_height_of_bands(tmp_path, maps):
    labels = maps.blobs(1100, 200)
    for band_px in (1, 512, 700):
        maps.write(tmp_path / str(band_px), labels, band_px)
    assert len({(tmp_path / str(n) / "slide.geojson").read_bytes() for n in (1, 512, 700)}) == 1


def test_specks_and_small_holes_are_left_out_by_area_in_um2_and_counted(tmp_path, maps):
    labels = np.full((1100, 100), 2, np.uint8)
    labels[20:25, 20:25] = 0  # 25 px of 0.25 um2: 6.25 um2
    labels[40:46, 20:26] = 0  # 36 px: 9 um2
    labels[510:514, 30:34] = 1  # 16 px across the seam of two strips
    labels[60:62, 60:62] = GLASS
    totals = maps.write(tmp_path, labels, options=MapOptions(least_um2=9))
    found, _ = back(tmp_path, labels)
    expected = np.full_like(labels, 2)
    expected[40:46, 20:26] = 0
    assert (found == expected).all()
    assert totals.specks == ((1, 25), (1, 16), (0, 0), (1, 4))
    assert totals.px == (61, 16, labels.size - 81)  # areas are those before specks were left out


def test_a_speck_between_two_regions_leaves_no_gap(tmp_path, maps):
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    labels[18:22, 18:22] = 2
    maps.write(tmp_path, labels, options=MapOptions(least_um2=100))
    found, _ = back(tmp_path, labels)
    assert set(np.unique(found)) == {0, 1}


def test_a_map_of_glass_is_a_valid_file_without_features(tmp_path, maps):
    totals = maps.write(tmp_path, np.full((30, 40), GLASS, np.uint8))
    assert json.loads((tmp_path / "slide.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert totals.regions == 0


def test_a_compressed_file_has_the_same_text_and_the_same_bytes_each_time(tmp_path, maps):
    labels = maps.blobs(100, 200)
    plain, packed = MapOptions(least_um2=0), MapOptions(least_um2=0, gzip=True)
    maps.write(tmp_path, labels, options=plain)
    maps.write(tmp_path, labels, options=packed)
    first = (tmp_path / "slide.geojson.gz").read_bytes()
    maps.write(tmp_path, labels, options=packed)
    assert gzip.decompress(first) == (tmp_path / "slide.geojson").read_bytes()
    assert first == (tmp_path / "slide.geojson.gz").read_bytes()


def test_names_of_any_script_with_markup_and_quotes_are_kept_on_one_line(tmp_path, maps):
    names = ["肿瘤 </script> & \"x\" 'y'", "a\nb\x00c", "=1+1"]
    labels = np.repeat(np.arange(3, dtype=np.uint8), 10)[:, None] * np.ones((1, 30), np.uint8)
    wanted = tuple(Label(name, "#010203") for name in names)
    maps.write(tmp_path, labels, geometry=MapGeometry("slide", 30, 30, 0.5, 1.0, wanted))
    features = json.loads((tmp_path / "slide.geojson").read_text())["features"]
    assert {f["properties"]["classification"]["name"] for f in features} == {names[0], "a b c", names[2]}


def test_polygons_that_rounding_makes_invalid_are_mended(tmp_path, maps):
    """At 0.05 px of level 0 per px of the map, many vertices become one."""
    labels = maps.blobs(300, 300, blur_px=3)
    maps.write(tmp_path, labels, geometry=MapGeometry("slide", 300, 300, 0.5, 0.05, maps.LABELS))
    shapes = back(tmp_path, labels, scale=0.05)[1]
    assert len(shapes) > 10
    assert all(shape.is_valid and not shape.is_empty for shape in shapes)


def test_a_region_that_was_cut_is_complete_and_is_no_speck(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(joining, "MOST_VERTICES", 10)
    labels = np.zeros((1030, 60), np.uint8)
    labels[:515].reshape(515, 6, 10)[..., 3:7] = 1  # stripes; 3 rows of them are in the second strip
    maps.write(tmp_path, labels, options=MapOptions(least_um2=5))
    found, _ = back(tmp_path, labels)
    assert (found == labels).all()


def test_a_polygon_is_written_as_soon_as_it_is_complete(tmp_path, maps, monkeypatch):
    written = []
    write = qupath_file.QupathFile._write
    monkeypatch.setattr(
        qupath_file.QupathFile, "_write", lambda self, one: written.append(one.label) or write(self, one)
    )
    added = []
    add = qupath_file.QupathFile.add
    monkeypatch.setattr(qupath_file.QupathFile, "add", lambda self, strip: add(self, strip) or added.append([*written]))
    labels = np.full((1030, 40), 2, np.uint8)
    labels[5:20, 5:20] = 0
    labels[500:520, 5:20] = 1
    maps.write(tmp_path, labels)
    assert added == [[0], [0, 1], [0, 1]]
    assert written == [0, 1, 2]
