"""Which file of annotations belongs to which slide, and what the tiles of a slide are called."""

import unicodedata

import pytest

from fmcache.datasets.slide_pairs import pair_slides
from fmcache.errors import SpecError
from fmcache.manifest import is_name


@pytest.fixture
def tree(tmp_path):
    def make(*files):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()

    def pairs(*slides, annotations="ann"):
        found, groups = pair_slides([tmp_path / "slides" / slide for slide in slides], tmp_path / annotations)
        return {pair.id: pair.mask.relative_to(tmp_path / annotations).as_posix() for pair in found}, groups

    (tmp_path / "ann").mkdir()
    return make, pairs


@pytest.mark.parametrize(
    ("slide", "file"),
    [
        ("s1.svs", "s1.geojson"),
        ("s1.svs", "s1.json"),
        ("s1.svs", "s1.geojson.gz"),
        ("s1.svs", "S1.svs.json.gz".replace("S", "s")),
        ("s1.tif", "s1.tif.geojson"),
        ("s1.svs", "s1_annotations.geojson"),
        ("s1.svs", "s1.svs Annotation.GEOJSON"),
        ("s1.svs", "s1_qupath-export.json"),
        ("s1.svs", "batch/s1.geojson"),
        ("o1.ome.tif", "o1.geojson"),
        ("o1.ome.tif", "o1.ome.geojson"),
        ("o1.ome.tif", "o1.ome.tif.geojson"),
        ("O1.OME.TIFF", "O1_rois.geojson"),
        (unicodedata.normalize("NFD", "né.svs"), unicodedata.normalize("NFC", "né.geojson")),
        ("s1.svs", "s1.xml"),
    ],
)
def test_annotations_are_found_by_the_names_that_tools_give_them(tree, slide, file):
    make, pairs = tree
    make(f"ann/{file}", "ann/._" + file.rpartition("/")[2], "ann/s2.geojson", "ann/s1.txt", "ann/.s1.geojson")
    assert list(pairs(slide)[0].values()) == [file]


def test_names_of_tiles_stay_those_of_slides(tree):
    make, pairs = tree
    make("ann/o1.geojson", "ann/a b.geojson")
    assert pairs("o1.ome.tif", "a b.svs") == ({"o1.ome": "o1.geojson", "a-b": "a b.geojson"}, ["", ""])


def test_two_files_for_one_slide_are_named_and_refused(tree):
    make, pairs = tree
    make("ann/s1.geojson", "ann/sub/s1_annotations.json")
    with pytest.raises(SpecError, match="1 of 1 slides have several") as refused:
        pairs("s1.svs")
    assert refused.value.found == "s1.svs: s1.geojson, sub/s1_annotations.json"


def test_a_file_that_is_named_exactly_after_a_slide_is_of_no_other(tree):
    make, pairs = tree
    make("ann/a.geojson", "ann/a_tissue.geojson", "ann/a.xml")
    assert pairs("a.svs", "a_tissue.svs")[0] == {"a": "a.geojson", "a_tissue": "a_tissue.geojson"}


@pytest.mark.parametrize("annotations", ["ann", "slides"])
def test_slides_of_one_name_are_distinguished_by_their_folders_which_are_patients(tree, annotations):
    make, pairs = tree
    make(*(f"{annotations}/{folder}/a.geojson" for folder in ("p1", "p2")), f"{annotations}/b.geojson")
    found, groups = pairs("p1/a.svs", "p2/a.svs", "p1/b.svs", annotations=annotations)
    assert found == {"p1-a": "p1/a.geojson", "p2-a": "p2/a.geojson", "b": "b.geojson"}
    assert groups == ["p1", "p2", "p1"]


def test_folders_further_up_distinguish_slides_too(tree):
    make, pairs = tree
    make("ann/p1/scan/a.geojson", "ann/p2/a.geojson")
    found, groups = pairs("p1/scan/a.svs", "p2/scan/a.svs")
    assert found == {"p1-a": "p1/scan/a.geojson", "p2-a": "p2/a.geojson"}
    assert groups == ["p1", "p2"]
    make("ann/x/p1/b.geojson", "ann/y/p1/b.geojson", "ann/x/p2/b.geojson")
    found, _ = pairs("x/p1/b.svs", "y/p1/b.svs", "x/p2/b.svs")
    assert found == {f"{'-'.join(p)}-b": f"{'/'.join(p)}/b.geojson" for p in (("x", "p1"), ("y", "p1"), ("x", "p2"))}


def test_a_slide_of_one_name_takes_the_file_of_its_own_folder_only(tree):
    make, pairs = tree
    make("ann/p1/a.geojson", "ann/p2/a.geojson", "ann/a.geojson")
    assert pairs("p1/a.svs")[0] == {"a": "p1/a.geojson"}
    make("ann2/a.geojson", "ann2/p1/a.geojson")
    with pytest.raises(SpecError, match="1 of 2 slides have no annotations") as refused:
        pairs("p1/a.svs", "p2/a.svs", annotations="ann2")
    assert "that match no slide" in refused.value.found
    assert refused.value.found.endswith("match no slide: a.geojson")


def test_what_cannot_be_distinguished_is_refused(tree):
    make, pairs = tree
    make("ann/a.geojson")
    with pytest.raises(SpecError, match="cannot be named"):
        pairs("a.svs", "a.svs")
    with pytest.raises(SpecError, match="cannot be named"):
        pairs("a+b.svs", "a&b.svs")


def test_tiles_are_called_after_slides_of_any_script_and_leave_room_for_their_place(tree):
    make, pairs = tree
    long = "肿" * 70
    make(*(f"ann/{name}.geojson" for name in ("切片 一", "Ga\u0308", f"{long}1", f"{long}2")))
    found, _ = pairs("切片 一.svs", "Gä.svs", f"{long}1.svs", f"{long}2.svs")
    assert list(found)[:2] == ["切片-一", "Gä"]
    assert len(found) == 4
    assert all(is_name(f"{name}_x00000000_y00000000") for name in found)
