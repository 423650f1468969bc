"""Labels that are in no tile, and palettes that differ, at every door: add, cut, merge and check."""

import json

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from fmcache.commands.data import data_add
from fmcache.datasets.add import add
from fmcache.datasets.check import check
from fmcache.datasets.cut import cut
from fmcache.datasets.cut_search import CutRequest
from fmcache.errors import TileError
from fmcache.manifest import Manifest

HALVES = np.repeat([[0, 1]], 16, 0).repeat(8, 1).astype("uint8")


@pytest.fixture
def folder(tmp_path):
    """Four tiles whose masks are 0 left and 255 right."""
    for name in ("images", "masks", "full", "empty"):
        (tmp_path / name).mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype("uint8")
        Image.fromarray(noise).save(tmp_path / "images" / f"t{i}.png")
        for name, factor in (("masks", 255), ("full", 1), ("empty", 0)):
            Image.fromarray(HALVES * factor).save(tmp_path / name / f"t{i}.png")
    return tmp_path


def add_to(folder, labels, masks="masks"):
    manifest = folder / "m.yaml"
    return add(
        manifest,
        "mine",
        folder / "images",
        folder / masks,
        labels=labels,
        ignore="255",
        mpp=0.5,
        groups="",
        split="2/1/1",
        seed=0,
        replace=True,
    )


def edited(folder, change):
    """Return the manifest after `change` of its dataset, as a person would edit it."""
    path = folder / "m.yaml"
    document = yaml.safe_load(path.read_text())
    change(document["datasets"]["mine"])
    path.write_text(yaml.safe_dump(document))
    return Manifest(path)


def square(name, x0, y0, x1, y1):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


def test_masks_of_0_and_255_are_not_added_as_0_and_1(folder):
    with pytest.raises(TileError, match=r"label 'tumour' \(value 1\) has no pixel in any of 4 tiles") as caught:
        add_to(folder, "other=0,tumour=1")
    assert "tumour=255" in caught.value.next_step
    assert not (folder / "m.yaml").exists()
    add_to(folder, "other=0,tumour=255")


def test_a_label_that_no_tile_holds_is_a_problem_of_the_check_and_one_that_a_split_lacks_a_note(folder):
    Image.fromarray(HALVES * 2).save(folder / "full" / "t0.png")
    add_to(folder, "other=0,tumour=1,rare=2", masks="full")
    result = check(Manifest(folder / "m.yaml"), "mine")
    assert result.problems == []
    assert any("'rare' does not occur in" in note for note in result.notes)

    def nowhere(dataset):
        dataset["labels"][2]["values"] = [7]
        dataset["ignore_values"] = [2]

    (problem,) = check(edited(folder, nowhere), "mine").problems
    assert "label 'rare' (value 7) has no pixel in any of 4 tiles" in problem
    assert "found: 0 (50 %), 1 (38 %), 2 (12 %, ignored)" in problem
    assert "did you mean rare=2 " in problem


def test_palettes_that_differ_are_a_problem_of_the_check(folder):
    for i in range(4):
        picture = Image.fromarray(HALVES).convert("P")
        picture.putpalette([200, 0, 0, 0, 200, 0] if i else [0, 200, 0, 200, 0, 0])
        picture.save(folder / "masks" / f"t{i}.png")
    add_to(folder, "tumour=#c80000,stroma=#00c800")
    assert check(Manifest(folder / "m.yaml"), "mine").problems == []

    def by_index(dataset):
        for i, label in enumerate(dataset["labels"]):
            label["values"] = [i]

    (problem,) = check(edited(folder, by_index), "mine").problems
    assert "palettes differ" in problem
    assert "masks/t0.png" in problem
    assert "--labels 'tumour=#00c800,stroma=#c80000'" in problem


def test_a_region_class_that_lies_in_no_tile_is_refused_with_the_classes_found(folder):
    for i in range(4):
        drawn = [square("Tumor", 0, 0, 8, 16), square("Stroma", 8, 0, 16, 16)]
        beside = [square("Necrosis", 40, 40, 50, 50)] if i == 3 else []
        (folder / "full" / f"t{i}.png").unlink()
        (folder / "full" / f"t{i}.geojson").write_text(json.dumps(drawn + beside))
    with pytest.raises(TileError, match=r"'necrosis' \(class Necrosis\) has no pixel in any of 4 tiles") as caught:
        add_to(folder, "tumour=Tumor,stroma=Stroma,necrosis=Necrosis", masks="full")
    assert all(name in caught.value.found for name in ("Tumor", "Stroma", "Necrosis"))


def test_merged_masks_that_leave_a_label_empty_are_refused_by_its_name(folder):
    masks = f"tumour={folder / 'full'},stroma={folder / 'empty'}"
    with pytest.raises(TileError, match="none holds 'stroma'"):
        data_add("x", folder / "images", masks, fill="other", merge_into=folder / "out", manifest=folder / "m.yaml")
    assert not (folder / "m.yaml").exists()


def test_merging_reads_what_is_transparent_as_outside(folder):
    for i in range(4):
        white = np.full((16, 16), 255, "uint8")
        Image.fromarray(np.dstack([white, white, white, HALVES * 255])).save(folder / "full" / f"t{i}.png")
    data_add(
        "x", folder / "images", f"tumour={folder / 'full'}", fill="other", merge_into=folder / "out", split="2/1/1",
        manifest=folder / "m.yaml",
    )  # fmt: skip
    assert (np.asarray(Image.open(folder / "out" / "t0.png")) == 1 - HALVES).all()


def test_a_class_that_no_chosen_tile_of_a_slide_holds_is_refused_before_anything_is_cut(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype("uint8")
    how = {"tile": (64, 64), "photometric": "rgb", "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", pixels, **how)
    drawn = [square("Tumor", 0, 0, 256, 128), square("Stroma", 0, 128, 256, 256)]
    (tmp_path / "s.geojson").write_text(json.dumps(drawn))
    labels = "tumour=Tumor,stroma=Stroma,necrosis=Necrosis"
    wanted = CutRequest(
        [tmp_path / "s.tif"], tmp_path / "s.geojson", tmp_path / "tiles", 0.5, 64, labels, split="2/1/1",
        group_by="tile",
    )  # fmt: skip
    with pytest.raises(TileError, match=r"'necrosis' \(class Necrosis\) has no pixel in any of 4 tiles") as caught:
        cut(tmp_path / "m.yaml", "cut", wanted, False, lambda text: None)
    assert "Tumor (1)" in caught.value.found
    assert not (tmp_path / "tiles").exists()
    cut(tmp_path / "m.yaml", "cut", wanted._replace(labels="tumour=Tumor,stroma=Stroma"), False, lambda text: None)
