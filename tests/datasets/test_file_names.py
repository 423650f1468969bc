import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.datasets.file_names import is_clutter, role_of, split_of, stem_of, stripped, tile_key, to_id
from fmcache.manifest import NAME_BYTES, TileEntry, is_name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.png", "a"), ("a.PNG", "a"), ("a.ome.tif", "a"), ("a.OME.TIFF", "a"), ("a.geojson.gz", "a"),
        ("a.b.png", "a.b"),
        ("S-1 [x=0,y=0,w=64,h=64].jpg", "S-1 [x=0,y=0,w=64,h=64]"), ("a.mask.png", "a.mask"), ("case 1.5 mm.png",
        "case 1.5 mm"),
        (unicodedata.normalize("NFD", "Präparat.png"), "Präparat"),
    ],
)  # fmt: skip
def test_the_stem_of_a_file_is_its_name_less_the_ending_in_nfc(name, stem):
    assert stem_of(name) == stem


@pytest.mark.parametrize("name", ["a.png", "a", "images/a.PNG", r"C:\tiles\a.tif", " a.ome.tif ", "x/a.svs"])
def test_a_tile_in_a_list_is_meant_with_or_without_folder_and_ending(name):
    assert tile_key(name) == "a"


def test_a_dot_in_the_name_of_a_tile_is_no_ending():
    assert tile_key("case1.5") == "case1.5"


@pytest.mark.parametrize(
    "name",
    [
        "a_mask", "a-mask", "a.mask", "a mask", "a_MASK", "a-labelled", "a_labels", "a_segmentation", "a_anno",
        "a_gt",
        "a_ground_truth", "mask_a", "GT_a", "seg_a", "Label-a", "a_tissue", "a.tif",
        "a_Simple Segmentation", "a_cp_masks", "a___fuse", "a_inst", "a_bin_mask", "a_lbl", "a_nuclei",
    ],
)  # fmt: skip
def test_what_marks_a_mask_is_taken_off_either_end(name):
    assert stripped(name, "mask", 1) == {"a"}


@pytest.mark.parametrize("name", ["a", "mask", "amask", "unmasked_a", "tissue"])
def test_names_without_a_mark_stay(name):
    assert stripped(name, "mask", 1) == set()


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", ("train", "")), ("Training", ("train", "")), ("valid", ("val", "")), ("2.validation", ("val", "")),
        ("testing", ("test", "")), ("train_images", ("train", "image")), ("masks-test", ("test", "mask")),
        ("P01", None), ("trainees", None),
    ],
)  # fmt: skip
def test_folders_called_after_splits_are_known(folder, split):
    assert split_of(folder) == split


def test_folders_that_only_say_what_they_hold_are_known():
    assert [role_of(name) for name in ("images", "Masks", "labels", "img", "P01", "tissue")] == [
        "image",
        "mask",
        "mask",
        "image",
        "",
        "",
    ]


def test_what_systems_leave_behind_is_clutter():
    assert all(map(is_clutter, ["._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir"]))
    assert not is_clutter("a.png")


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("a b", "a-b"), ("肿瘤", "肿瘤"), ("Präparat_1", "Präparat_1"), ("मामला-१", "मामला-१"), ("..a", "a"), ("a/b",
        "a-b"),
        ("S-1 [x=0,y=0]", "S-1-x-0-y-0-"), ("con", "t-con"), ("aux.1", "t-aux.1"), ("a.", "a"), ("a\tb\0",
        "a-b-"), ("???", "-"),
    ],
)  # fmt: skip
def test_an_id_keeps_letters_of_any_script_and_is_safe_as_a_file_name(name, tile):
    assert to_id(name) == (tile if tile != "-" else "")


def test_ids_of_plain_names_are_what_they_were():
    for name in ("p0_1", "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500", "training_set_primary_roi_001", "a.b-c"):
        assert to_id(name) == name


def test_long_names_are_cut_and_stay_apart():
    one, other = to_id("肿" * 200 + "1"), to_id("肿" * 200 + "2")
    assert one != other
    assert max(len(one.encode()), len(other.encode())) <= NAME_BYTES


@given(st.text(max_size=120))
def test_whatever_the_name_the_id_is_a_name_or_empty(text):
    made = to_id(text)
    assert made == "" or is_name(made)
    assert to_id(made) == made


@pytest.mark.parametrize("name", ["", ".a", "a/b", "a b", "NUL", "com1.x", "a.", "a" * 201, "e\u0301", "\u0301a"])
def test_ids_that_no_system_takes_are_refused(name):
    with pytest.raises(ValueError, match="tile id"):
        TileEntry(name)
