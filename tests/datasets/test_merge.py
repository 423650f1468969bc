import numpy as np
import pytest
from PIL import Image

from fmcache.commands.data import data_add
from fmcache.datasets.merge import merge_masks
from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.manifest import Manifest
from fmcache.tiles.images import read_tile


def square(x0, x1, value=255):
    mask = np.zeros((16, 16), "uint8")
    mask[:, x0:x1] = value
    return mask


@pytest.fixture
def folder(tmp_path):
    """Three tiles; tumour is x 0 to 8, stroma x 4 to 12: they overlap in a quarter of the pixels."""
    for name in ("images", "tumour", "both"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "images" / f"t{i}.png")
        Image.fromarray(square(0, 8)).save(tmp_path / "tumour" / f"t{i}_mask.png")
        Image.fromarray(square(4, 12, 1)).save(tmp_path / "both" / f"t{i}_stroma.png")
        Image.fromarray(square(0, 8)).save(tmp_path / "both" / f"t{i}_tumour.png")
    return tmp_path


def sources(folder):
    return f"tumour={folder / 'tumour'},stroma={folder / 'both'}/*_stroma.png"


def merged(folder, order="", fill="other", masks="", into="merged", replace=False):
    result = merge_masks(
        folder / "images", masks or sources(folder), folder / into, order=order, fill=fill, replace=replace
    )
    return result, np.asarray(Image.open(folder / into / "t1.png"))[0].tolist()


def test_later_labels_lie_over_earlier_ones_and_the_rest_is_filled(folder):
    result, row = merged(folder)
    assert result.labels == "tumour=0,stroma=1,other=2"
    assert "25.00%" in result.note
    assert row == [0] * 4 + [1] * 8 + [2] * 4


def test_an_order_turns_them_and_without_a_fill_the_rest_is_ignored(folder):
    result, row = merged(folder, order="stroma,tumour", fill="ignore")
    assert result.labels == "tumour=0,stroma=1"
    assert row == [0] * 8 + [1] * 4 + [255] * 4
    assert merged(folder, fill="stroma", into="again")[1] == [0] * 4 + [1] * 12


def test_the_merged_masks_are_listed_and_their_rule_is_in_their_hash(folder):
    for name, order in (("one", ""), ("two", "stroma,tumour")):
        data_add(
            name, folder / "images", sources(folder), split="1/1/1", order=order, fill="other",
            merge_into=folder / name, manifest=folder / "m.yaml",
        )  # fmt: skip
    manifest = Manifest(folder / "m.yaml")
    one, two = manifest.dataset("one"), manifest.dataset("two")
    assert one.label_names == ("tumour", "stroma", "other")
    assert read_tile(one, one.tiles[0], folder).mask[0].tolist() == [0] * 4 + [1] * 8 + [2] * 4
    assert one.tiles[0].image_sha256 == two.tiles[0].image_sha256
    assert one.tiles[0].mask_sha256 != two.tiles[0].mask_sha256


def test_labels_of_any_name_are_listed_as_they_are_called(folder):
    masks = sources(folder).replace("tumour=", '"tumour|\\"5 mm\\""=').replace("stroma=", "stroma\\rest=")
    data_add(
        "odd",
        folder / "images",
        masks,
        split="1/1/1",
        fill="other",
        merge_into=folder / "odd",
        manifest=folder / "m.yaml",
    )
    assert Manifest(folder / "m.yaml").dataset("odd").label_names == ('tumour|"5 mm"', "stroma\\rest", "other")


def test_masks_that_do_not_go_with_the_images_are_refused(folder):
    with pytest.raises(ManifestError, match="'tumour' and images do not match"):
        merged(folder, masks=f"tumour={folder / 'both'}/*_nothing.png,stroma={folder / 'tumour'}")
    (folder / "tumour" / "t2_mask.png").unlink()
    with pytest.raises(ManifestError, match="do not match") as caught:
        merged(folder)
    assert "t2" in caught.value.found


def test_masks_of_several_values_or_other_sizes_are_refused_by_tile(folder):
    Image.fromarray(square(0, 8) + square(6, 7, 3)).save(folder / "tumour" / "t2_mask.png")
    with pytest.raises(TileError, match="is not a mask of one label"):
        merged(folder)
    Image.fromarray(np.zeros((8, 8), "uint8")).save(folder / "tumour" / "t2_mask.png")
    with pytest.raises(TileError, match=r"tile t2: .*mask and image differ in size"):
        merged(folder, replace=True)


def test_an_empty_mask_is_a_label_that_is_not_there(folder):
    Image.fromarray(np.zeros((16, 16), "uint8")).save(folder / "tumour" / "t1_mask.png")
    assert merged(folder)[1] == [2] * 4 + [1] * 8 + [2] * 4


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        ({"order": "tumour"}, SpecError, "--order"),
        ({"order": "tumour,stroma,other"}, SpecError, "--order"),
        ({"masks": "tumour="}, SpecError, "does not say where"),
        ({"masks": "a=x,a=y"}, SpecError, "does not say where"),
        ({"masks": "tumour=x", "fill": "ignore"}, SpecError, "needs two or more labels"),
        ({"into": "tumour", "replace": True}, ManifestError, "not empty"),
        ({"into": "both", "replace": True}, ManifestError, "not empty"),
        ({"into": "images"}, ManifestError, "not empty"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_written(folder, flags, error, says):
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=says):
        merged(folder, **flags)
    assert sorted(folder.rglob("*")) == before


def test_a_place_for_the_merged_masks_is_asked_for(folder):
    with pytest.raises(SpecError, match="merged into label images") as caught:
        merge_masks(folder / "images", sources(folder), None, order="", fill="other", replace=False)
    assert "--merge-into" in caught.value.next_step
    with pytest.raises(SpecError, match="already names the labels"):
        data_add("x", folder / "images", sources(folder), labels="a=0,b=1", manifest=folder / "m.yaml")


@pytest.mark.parametrize("flags", [{"name": "my set"}, {"split": "2/0/1"}])
def test_no_mask_is_merged_for_a_dataset_that_cannot_be(folder, flags):
    before = sorted(folder.rglob("*"))
    with pytest.raises((ManifestError, SpecError), match=r"my set|2/0/1"):
        data_add(
            **{"name": "mine", "split": "1/1/1"} | flags, images=folder / "images", masks=sources(folder),
            fill="other", merge_into=folder / "new", manifest=folder / "m.yaml",
        )  # fmt: skip
    assert sorted(folder.rglob("*")) == before


def test_names_and_folders_with_commas_and_signs_go_into_quotes(folder):
    (folder / "both").rename(folder / "a, b=c")
    masks = f'"tumour, solid"="{folder / "tumour"}",pT|4="{folder}/a, b=c/*_stroma.png",'
    result, row = merged(folder, masks=masks, order='pT\\|4,"tumour, solid"', fill='"not, told"')
    assert result.labels == '"tumour, solid"=0,"pT|4"=1,"not, told"=2'
    assert row == [0] * 8 + [1] * 4 + [2] * 4
    with pytest.raises(SpecError, match="does not say where") as refused:
        merged(folder, masks=f"tumour, solid={folder / 'tumour'}", into="again")
    assert "double quotes" in refused.value.next_step


def test_a_pattern_below_a_folder_with_an_equals_sign_is_no_list_of_labels(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "a=b").mkdir()
    for file in (folder / "both").glob("*_stroma.png"):
        file.rename(folder / "a=b" / file.name)
    data_add(
        "odd",
        folder / "images",
        "a=b/*_stroma.png",
        labels="other=0,stroma=1",
        split="1/1/1",
        manifest=folder / "m.yaml",
        ignore="",
    )
    assert Manifest(folder / "m.yaml").dataset("odd").label_names == ("other", "stroma")
