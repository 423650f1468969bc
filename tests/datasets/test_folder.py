"""Which image and mask go together, told by names, types and folders as tools and people make them."""

import gzip
import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from fmcache.datasets.folder import find_pairs, find_tiles
from fmcache.errors import ManifestError

COLOUR = Image.new("RGB", (4, 4), (1, 2, 3))
GREY = Image.new("L", (4, 4))


def put(folder, *names):
    """Make files: pictures are in colour unless the name holds `mask`, `gt`, `seg` or `label`; the rest is empty."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".tif", ".jpg", ".bmp"):
            grey = any(word in name.lower() for word in ("mask", "gt", "seg", "label"))
            (GREY if grey else COLOUR).save(path, format="TIFF" if path.suffix == ".tif" else None)
        elif path.name.endswith(".gz"):
            path.write_bytes(gzip.compress(b"[]"))
        elif path.suffix == ".npy":
            np.save(path, np.zeros((4, 4), "uint8"))
        else:
            path.write_text("[]")


def paired(folder, images="images", masks="masks", skip=False):
    found = find_tiles(folder / images, folder / masks, skip)
    return {pair.id: (rel(folder, pair.image), rel(folder, pair.mask)) for pair in found.pairs}, found


def rel(folder, path):
    return path.relative_to(folder).as_posix()


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.png", "a.png"), ("a.png", "mask_a.png"), ("a.png", "a-labelled.png"), ("a.png", "a.mask.png"),
        ("a.ome.tif", "a_mask.ome.tif"), ("a.PNG", "A_LABELS.TIF"), ("a.jpg", "GT_a.png"), ("a.png",
        "a_Segmentation.bmp"),
        ("a.bmp", "a_anno.bmp"), ("a.png", "a.npy"), ("a.png", "a.geojson"), ("a.png", "a.geojson.gz"), ("a.png",
        "a.json"),
        ("a.tif", "a.tif.geojson"), ("a_image.png", "a_mask.png"), ("img_a.png", "seg_a.png"), ("a_tissue.png",
        "a_tissue.png"),
        ("a_tissue.png", "a_tissue_mask.png"), ("a.png", "a_tissue_mask.png"), ("image_1.png", "mask_1.png"),
        ("GT_1.png", "GT_1.png"), ("a_rgb.png", "a.png"),
    ],
)  # fmt: skip
def test_an_image_and_its_mask_in_two_folders_are_paired_by_name(tmp_path, image, mask):
    put(tmp_path, f"images/{image}", f"masks/{mask}")
    pairs, _ = paired(tmp_path)
    assert list(pairs.values()) == [(f"images/{image}", f"masks/{mask}")]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.png", "a_mask.png"), ("a.jpg", "a.png"), ("S [x=0,y=0].jpg", "S [x=0,y=0].png"), ("a.tif", "a_seg.png"),
        ("a.png", "a.geojson"), ("a_image.png", "a_mask.png"), ("a.png", "mask_a.png"), ("a.png", "a.npy"),
    ],
)  # fmt: skip
def test_an_image_and_its_mask_in_one_folder_are_distinguished(tmp_path, image, mask):
    put(tmp_path, f"tiles/{image}", f"tiles/{mask}")
    pairs, _ = paired(tmp_path, "tiles", "tiles")
    assert list(pairs.values()) == [(f"tiles/{image}", f"tiles/{mask}")]


def test_of_two_lossless_files_of_one_name_the_one_without_colour_is_the_mask(tmp_path):
    (tmp_path / "tiles").mkdir()
    GREY.save(tmp_path / "tiles" / "a.tif")
    COLOUR.save(tmp_path / "tiles" / "a.png")
    assert paired(tmp_path, "tiles", "tiles")[0] == {"a": ("tiles/a.png", "tiles/a.tif")}
    COLOUR.save(tmp_path / "tiles" / "a.tif")
    with pytest.raises(ManifestError, match="have the same name") as caught:
        paired(tmp_path, "tiles", "tiles")
    assert "--masks 'DIR/*.png'" in caught.value.next_step
    assert paired(tmp_path, "tiles/*.tif", "tiles/*.png")[0] == {"a": ("tiles/a.tif", "tiles/a.png")}


def test_names_in_two_unicode_forms_are_the_same_and_the_real_files_are_opened(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Präparat_1.png") for form in ("NFC", "NFD"))
    put(tmp_path, f"images/{nfc}", f"masks/{nfd}")
    pairs, _ = paired(tmp_path)
    assert pairs == {"Präparat_1": (f"images/{nfc}", f"masks/{nfd}")}
    assert (tmp_path / pairs["Präparat_1"][1]).is_file()


def test_exact_names_go_before_names_less_their_marks(tmp_path):
    put(tmp_path, "images/a.png", "images/a_tissue.png", "masks/a_mask.png", "masks/a_tissue.png")
    assert {k: v[1] for k, v in paired(tmp_path)[0].items()} == {
        "a": "masks/a_mask.png",
        "a_tissue": "masks/a_tissue.png",
    }


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a.png"], ["a.png", "a_mask.png"]), (["a.png"], ["a_mask.png", "a_seg.png"]), (["a.png",
        "a.jpg"], ["a.png"]),
        (["a.png", "A.png"], ["a_mask.png", "A_seg.tif", "a_seg.tif"]), (["a_image.png", "a_rgb.png"], ["a.png"]),
        (["a.png"], ["a.geojson", "a.json"]),
    ],
)  # fmt: skip
def test_what_could_belong_to_two_is_named_and_refused_with_a_pattern_to_choose_by(tmp_path, images, masks):
    put(tmp_path, *(f"images/{name}" for name in images), *(f"masks/{name}" for name in masks))
    with pytest.raises(ManifestError, match="could belong to two") as caught:
        paired(tmp_path)
    assert "pass a pattern" in caught.value.next_step


def test_the_pattern_that_the_message_names_works(tmp_path):
    put(
        tmp_path,
        "images/a.png",
        "images/b.png",
        "masks/a_tissue.png",
        "masks/a_nuclei.png",
        "masks/b_tissue.png",
        "masks/b_nuclei.png",
    )
    with pytest.raises(ManifestError) as caught:
        paired(tmp_path)
    pattern = caught.value.next_step.partition("--masks '")[2].partition("'")[0]
    assert pattern in (f"{tmp_path}/masks/*_tissue.png", f"{tmp_path}/masks/*_nuclei.png")
    assert "_tissue.png' or" in caught.value.next_step or "_nuclei.png' or" in caught.value.next_step
    assert len(paired(tmp_path, masks=rel(tmp_path, tmp_path / pattern))[0]) == 2


def test_a_stray_annotation_beside_masks_changes_nothing_and_is_reported(tmp_path):
    put(
        tmp_path,
        "images/a.png",
        "masks/a.png",
        "masks/overview.geojson",
        "masks/._a.geojson",
        "masks/Thumbs.db",
        "masks/.DS_Store",
    )
    pairs, found = paired(tmp_path)
    assert not found.regions
    assert pairs["a"][1] == "masks/a.png"
    assert [note for note in found.notes if "overview.geojson" in note]
    assert not [note for note in found.notes if "._a" in note or "Thumbs" in note]


def test_a_stray_picture_beside_annotations_changes_nothing_and_is_reported(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.geojson", "masks/overview.png", "masks/project.json")
    pairs, found = paired(tmp_path)
    assert found.regions
    assert pairs["a"][1] == "masks/a.geojson"
    assert "overview.png" in " ".join(found.notes)
    assert "project.json" in " ".join(found.notes)


def test_a_folder_of_both_kinds_is_refused_and_a_pattern_chooses(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.png", "masks/a.geojson")
    with pytest.raises(ManifestError, match="both mask images and annotated regions") as caught:
        paired(tmp_path)
    assert f"--masks '{tmp_path / 'masks'}/*.geojson'" in caught.value.next_step
    assert paired(tmp_path, masks="masks/*.geojson")[1].regions
    assert not paired(tmp_path, masks="masks/*.png")[1].regions


def test_when_nothing_pairs_both_sides_and_the_rule_are_reported(tmp_path):
    put(tmp_path, *(f"images/a{i}.png" for i in range(9)), *(f"masks/b{i}.png" for i in range(9)))
    with pytest.raises(ManifestError, match="no image and mask match") as caught:
        paired(tmp_path)
    assert "a0.png, a1.png, a2.png and 6 more" in caught.value.found
    assert "b0.png, b1.png, b2.png and 6 more" in caught.value.found
    assert "a-labelled" in caught.value.expected
    assert "mask_a" in caught.value.expected


def test_lone_files_are_refused_by_name_or_skipped_with_counts(tmp_path):
    put(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/c.png")
    with pytest.raises(ManifestError, match="2 files have no partner") as caught:
        paired(tmp_path)
    assert caught.value.found == "without mask: b.png; without image: c.png"
    assert "--missing skip" in caught.value.next_step
    pairs, found = paired(tmp_path, skip=True)
    assert list(pairs) == ["a"]
    assert "1 images without a mask and 1 masks without an image were skipped: b.png, c.png" in found.notes


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.svs", "fmcache data cut"), ("a.ndpi", "fmcache data cut"), ("a.xml", "Export objects as GeoJSON"),
        ("a.npz", "numpy.save"),
        ("a.mat", "scipy.io.loadmat"), ("a.zip", "unpack"), ("a.webp", "convert it to PNG"), ("a.qpdata", "GeoJSON"),
        ("a.nrrd", "SimpleITK"), ("a.nii.gz", "SimpleITK"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_named_with_what_to_do(tmp_path, name, says):
    put(tmp_path, "images/a.png", f"masks/{name}")
    with pytest.raises(ManifestError, match="holds no masks") as caught:
        paired(tmp_path)
    assert says in caught.value.next_step
    assert f"1 .{name.partition('.')[2]}" in caught.value.found
    put(tmp_path, "masks/a.png")
    assert [note for note in paired(tmp_path)[1].notes if says in note]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('<?xml version="1.0"?><Annotations><Annotation Id="1" Name="Tumor"/></Annotations>', "wsi_annotations_kit"),
        ("\ufeff<ASAP_Annotations><Annotations/></ASAP_Annotations>", "ASAP XML"),
        ("<kml/>", "a.xml is XML"),
    ],
)
def test_a_folder_of_xml_is_refused_with_its_kind_and_how_to_make_geojson_of_it(tmp_path, text, says):
    put(tmp_path, "images/a.png", "masks/a.xml")
    (tmp_path / "masks" / "a.xml").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match="holds no masks") as caught:
        paired(tmp_path)
    assert says in caught.value.next_step


TREE = [
    f"{kind}/{split}/{name}.png"
    for kind in ("images", "masks")
    for split, name in (("train", "a"), ("val", "b"), ("test", "c"))
]


def splits(found):
    return {pair.id: split for pair, split in zip(found.pairs, found.splits, strict=True)}


def test_folders_called_after_splits_are_the_split(tmp_path):
    put(tmp_path, *TREE)
    assert splits(paired(tmp_path)[1]) == {"a": "train", "b": "val", "c": "test"}


@pytest.mark.parametrize(
    "names", [("training", "validation", "testing"), ("Train", "Valid", "Test"), ("1.train", "2.val", "3.test")]
)
@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}", "{split}_{kind}", "deep/{kind}/{split}"])
def test_splits_are_found_in_every_layout(tmp_path, names, layout):
    for kind in ("images", "masks"):
        for split, name in zip(names, "abc", strict=True):
            put(tmp_path, f"{layout.format(kind=kind, split=split)}/{name}.png")
    pairs, found = paired(tmp_path, "", "")
    assert splits(found) == {"a": "train", "b": "val", "c": "test"}
    assert all("image" in image and "mask" in mask for image, mask in pairs.values())


def test_image_and_mask_side_by_side_in_folders_of_splits_are_distinguished(tmp_path):
    put(tmp_path, *(f"data/{split}/{name}" for split in ("train", "val", "test") for name in ("a.png", "a_mask.png")))
    pairs, found = paired(tmp_path, "data", "data")
    assert splits(found) == {"test_a": "test", "train_a": "train", "val_a": "val"}
    assert pairs["val_a"] == ("data/val/a.png", "data/val/a_mask.png")


def test_masks_in_one_folder_go_with_images_in_folders_of_splits(tmp_path):
    put(tmp_path, *(name for name in TREE if name.startswith("images")), "masks/a.png", "masks/b.png", "masks/c.png")
    assert splits(paired(tmp_path)[1]) == {"a": "train", "b": "val", "c": "test"}


def test_folders_of_patients_are_groups_and_part_of_the_id_where_names_repeat(tmp_path):
    names = [f"{kind}/{patient}/{i}.png" for kind in ("images", "masks") for patient in ("P1", "P2") for i in (1, 2)]
    put(tmp_path, *names)
    pairs, found = paired(tmp_path)
    assert list(pairs) == ["P1_1", "P1_2", "P2_1", "P2_2"]
    assert pairs["P2_1"] == ("images/P2/1.png", "masks/P2/1.png")
    assert found.groups == ["P1", "P1", "P2", "P2"]
    assert [note for note in found.notes if "2 folders of images are used as patients" in note]


def test_folders_of_patients_below_splits_are_groups_unless_they_recur(tmp_path):
    for split, patient in (("train", "P1"), ("train", "P2"), ("val", "P3"), ("test", "P4")):
        put(tmp_path, f"images/{split}/{patient}/{patient}.png", f"masks/{split}/{patient}/{patient}.png")
    assert paired(tmp_path)[1].groups == ["P1", "P2", "P3", "P4"]
    put(tmp_path, "images/test/P1/x.png", "masks/test/P1/x.png")
    found = paired(tmp_path)[1]
    assert not any(found.groups)
    assert [note for note in found.notes if "P1 are in several splits" in note]


def test_what_lies_in_subfolders_and_was_left_out_is_reported_with_counts(tmp_path):
    put(
        tmp_path,
        "images/a.png",
        "masks/a.png",
        *(f"{kind}/more/u{i}.png" for kind in ("images", "masks") for i in range(3)),
    )
    pairs, found = paired(tmp_path)
    assert list(pairs) == ["a"]
    assert [note for note in found.notes if "3 more images" in note and "3 in more/" in note]


def test_other_folders_beside_whole_splits_are_left_out_and_reported(tmp_path):
    put(tmp_path, *TREE, "images/extra/x.png", "masks/extra/x.png")
    pairs, found = paired(tmp_path)
    assert list(pairs) == ["a", "b", "c"]
    assert [note for note in found.notes if "1 in extra/" in note]


def test_images_many_folders_deep_are_refused_with_where_they_are(tmp_path):
    put(
        tmp_path, *(f"{kind}/{p}/{s}/a.png" for kind in ("images", "masks") for p in ("P1", "P2") for s in ("s1", "s2"))
    )
    with pytest.raises(ManifestError, match="several levels of subfolders") as caught:
        paired(tmp_path)
    assert "P1/s1" in caught.value.found


def test_masks_in_a_folder_below_the_images_are_no_images(tmp_path):
    put(tmp_path, "data/a.png", "data/masks/a.png")
    assert paired(tmp_path, "data", "data/masks")[0] == {"a": ("data/a.png", "data/masks/a.png")}


def test_links_to_files_elsewhere_are_taken_by_their_own_name(tmp_path):
    put(tmp_path, "elsewhere/x.png", "masks/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    assert list(paired(tmp_path)[0]) == ["a"]


def test_a_name_that_is_no_text_is_refused_in_ascii(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "images" / "b\udcff.png").write_bytes(b"")
    with pytest.raises(ManifestError, match="is not text") as caught:
        paired(tmp_path)
    str(caught.value).encode("ascii")


def test_ids_that_meet_are_refused(tmp_path):
    put(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in ("a b", "a-b")))
    with pytest.raises(ManifestError, match="no tile id can be made"):
        paired(tmp_path)


def test_plain_pairs_are_those_of_the_folders_themselves(tmp_path):
    put(tmp_path, "images/a.png", "masks/a_mask.png")
    assert [pair.id for pair in find_pairs(tmp_path / "images", tmp_path / "masks")] == ["a"]
    put(tmp_path, *(name.replace("images", "i").replace("masks", "m") for name in TREE))
    with pytest.raises(ManifestError, match="subfolders"):
        find_pairs(tmp_path / "i", tmp_path / "m")


def test_json_that_is_no_annotation_does_not_turn_tiles_into_regions(tmp_path):
    put(tmp_path, "tiles/a.jpg", "tiles/a.png")
    (tmp_path / "tiles" / "tiles.json").write_text(json.dumps({"tiles": []}))
    assert not paired(tmp_path, "tiles", "tiles")[1].regions


def test_masks_in_one_folder_may_carry_the_folder_of_their_image_in_their_name(tmp_path):
    put(tmp_path, *(f"images/P{i}/a.png" for i in (1, 2)), *(f"masks/P{i}_a.png" for i in (1, 2)))
    assert [mask for _, mask in paired(tmp_path)[0].values()] == ["masks/P1_a.png", "masks/P2_a.png"]


def test_one_folder_of_masks_for_each_label_is_reported_as_such(tmp_path):
    put(tmp_path, "images/a.png", "masks/tumour/a.png", "masks/stroma/a.png")
    with pytest.raises(ManifestError, match="could belong to two masks") as caught:
        paired(tmp_path)
    places = f"stroma={tmp_path}/masks/stroma,tumour={tmp_path}/masks/tumour"
    assert f"--masks {places}" in caught.value.next_step


def test_pictures_beside_folders_of_images_and_masks_are_neither_and_reported(tmp_path):
    put(
        tmp_path, *(f"data/{split}/{kind}/a.png" for split in ("val", "test") for kind in ("img", "mask", "background"))
    )
    pairs, found = paired(tmp_path, "data", "data")
    assert list(pairs) == ["test_a", "val_a"]
    assert [note for note in found.notes if "2 image files outside" in note and "val/background/a.png" in note]


def test_one_folder_in_which_nothing_is_recognised_as_a_mask_is_refused_with_how_masks_are_recognised(tmp_path):
    put(tmp_path, "tiles/a.png", "tiles/b.png")
    with pytest.raises(ManifestError, match="none of its files is recognised as a mask") as caught:
        paired(tmp_path, "tiles", "tiles")
    assert "a_mask" in caught.value.expected
    assert caught.value.found == "a.png, b.png"


@pytest.mark.parametrize(
    ("files", "images", "masks", "ids"),
    [
        # TNBC: slides and ground truth in numbered folders side by side
        (
            ["Slide_01/a.png", "GT_01/a.png", "Slide_02/a.png", "GT_02/a.png"],
            "Slide_*/*.png", "GT_*/*.png", ["01_a", "02_a"],
        ),
        # OCELOT: the tissue folders of each split, the cell folders beside them left alone
        (
            ["i/train/tissue/1.jpg", "i/train/cell/1.jpg", "m/train/tissue/1.png"],
            "i/*/tissue/*.jpg", "m/*/tissue/*.png", ["1"],
        ),
        (
            ["s/P1/he/x.png", "s/P1/ref/x.png", "s/P2/he/y.png", "s/P2/ref/y.png"],
            "s/*/he/*.png", "s/*/ref/*.png", ["x", "y"],
        ),
    ],
)  # fmt: skip
def test_a_star_may_stand_for_a_folder(tmp_path, files, images, masks, ids):
    put(tmp_path, *files)
    found = find_tiles(tmp_path / images, tmp_path / masks)
    assert [pair.id for pair in found.pairs] == ids
    assert [pair.image.parent.name.replace("he", "ref").replace("Slide", "GT") for pair in found.pairs] == [
        pair.mask.parent.name for pair in found.pairs
    ]


@pytest.mark.parametrize(
    ("images", "masks"), [("images/*.*", "masks/*.*"), ("images/*", "masks/*_HE_*"), ("**/*.tif", "masks/*_HE*")]
)
def test_further_stars_are_anything(tmp_path, images, masks):
    put(tmp_path, "images/a.tif", "masks/a.tif" if masks.endswith(".*") else "masks/a_HE_3.png")
    assert [pair.id for pair in find_tiles(tmp_path / images, tmp_path / masks).pairs] == ["a"]


def test_folders_that_were_named_hold_what_they_were_named_for(tmp_path):
    put(tmp_path, "images/train/tissue/a.jpg", "annotations/train/tissue/a.png", "x/masks/b.png", "y/images/b.png")
    assert [pair.id for pair in find_tiles(tmp_path / "images", tmp_path / "annotations").pairs] == ["a"]
    assert [pair.id for pair in find_tiles(tmp_path / "x", tmp_path / "y").pairs] == ["b"]


def test_where_each_object_has_a_mask_that_is_reported(tmp_path):
    put(tmp_path, *(f"s/{i}/images/{i}.png" for i in "ab"), *(f"s/{i}/masks/{i}{k}x.png" for i in "ab" for k in "12"))
    with pytest.raises(ManifestError) as caught:
        find_tiles(tmp_path / "s", tmp_path / "s")
    assert "each object has a separate mask" in caught.value.next_step


def test_a_pipe_in_a_folder_is_skipped(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.png")
    os.mkfifo(tmp_path / "images" / "b.png")
    assert list(paired(tmp_path)[0]) == ["a"]


def test_arrays_of_images_are_refused_with_how_to_save_them(tmp_path):
    put(tmp_path, "images/images.npy", "masks/masks.npy")
    with pytest.raises(ManifestError) as caught:
        paired(tmp_path)
    assert "save each image as PNG" in caught.value.next_step
