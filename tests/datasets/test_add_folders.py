"""Folders as they come: what `fmcache data add` makes of them, says of them, and refuses."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fmcache.cli import app
from fmcache.datasets.check import check
from fmcache.errors import FmcacheError
from fmcache.identity import sha256_file
from fmcache.manifest import Manifest
from fmcache.tiles.images import read_tile


def draw(folder, names, size=(32, 32), masks="masks", ending="png"):
    """Draw images and palette masks of two labels, each image another; return the folder."""
    for i, name in enumerate(names):
        width, height = size[i] if isinstance(size, list) else size
        image, mask = folder / "images" / f"{name}.png", folder / masks / f"{name}.{ending}"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3)).astype("uint8")
        Image.fromarray(pixels).save(image)
        ids = np.zeros((height, width), "uint8")
        ids[:, : width // 2 + i] = 1
        Image.fromarray(ids).save(mask)
    return folder


def run(folder, *flags, name="mine", labels="other=0,tumour=1", split="2/1/1", images="images", masks="masks"):
    """Run the command; return its exit code and what it printed."""
    arguments = [
        "data",
        "add",
        name,
        "--images",
        folder / images,
        "--masks",
        f"{folder}/{masks}" if "=" not in masks else masks,
    ]
    arguments += ["--labels", labels] * bool(labels) + ["--split", split] * bool(split)
    done = CliRunner().invoke(app, [*map(str, arguments), *map(str, flags), "--manifest", str(folder / "m.yaml")])
    if done.exception and not isinstance(done.exception, SystemExit | FmcacheError):
        raise done.exception
    return done.exit_code, done.output + (str(done.exception) if isinstance(done.exception, FmcacheError) else "")


def dataset(folder, name="mine"):
    return Manifest(folder / "m.yaml").dataset(name)


def test_folders_of_splits_win_over_a_split_that_is_asked_for_and_it_is_reported(tmp_path):
    draw(tmp_path, ["train/a", "train/b", "val/c", "test/d", "test/e"])
    code, said = run(tmp_path, "--mpp", "0.5")
    assert code == 0
    assert "--split 2/1/1 is not used" in said
    assert dataset(tmp_path).splits.test == ("d", "e")
    assert check(Manifest(tmp_path / "m.yaml"), "mine").problems == []
    code, said = run(tmp_path, "--replace", split="")
    assert "split 2/1/2 as in their folders" in said


def test_folders_that_are_no_whole_split_are_refused_unless_a_split_is_asked_for(tmp_path):
    draw(tmp_path, ["train/a", "train/b", "train/c", "test/d"])
    code, said = run(tmp_path, split="")
    assert code == 1
    assert "none in val" in said
    assert not (tmp_path / "m.yaml").exists()
    code, said = run(tmp_path)
    assert code == 0
    assert "--split 2/1/1 is drawn from all tiles" in said


def test_a_group_in_two_folders_of_splits_is_refused_before_anything_is_written(tmp_path):
    draw(tmp_path, ["train/p1_a", "val/p1_b", "test/p2_c"])
    code, said = run(tmp_path, "--groups", "^(p[0-9])_")
    assert code == 1
    assert "group 'p1' has tiles in the folders" in said
    assert not (tmp_path / "m.yaml").exists()


def test_folders_of_patients_are_groups_unless_others_are_given(tmp_path):
    draw(tmp_path, ["P1/a", "P1/b", "P2/a", "P3/a"])
    assert run(tmp_path)[0] == 0
    assert {tile.id: tile.group for tile in dataset(tmp_path).tiles} == {
        "P1_a": "P1", "P1_b": "P1", "P2_a": "P2", "P3_a": "P3",
    }  # fmt: skip
    (tmp_path / "g.csv").write_text("tile,group\nP1/a,x\nP1/b.png,y\nP2/a,z\nP3_a,w\n")
    assert run(tmp_path, "--groups", tmp_path / "g.csv", "--replace")[0] == 0
    assert [tile.group for tile in dataset(tmp_path).tiles] == ["x", "y", "z", "w"]


def test_names_in_any_script_are_ids(tmp_path):
    draw(tmp_path, ["肿瘤", "间质", "坏死", "淋巴"])
    assert run(tmp_path, name="乳腺")[0] == 0
    assert {tile.id for tile in dataset(tmp_path, "乳腺").tiles} == {"肿瘤", "间质", "坏死", "淋巴"}


def test_names_that_look_like_patients_are_reported_with_a_rule_that_works(tmp_path):
    draw(tmp_path, ["P01_1", "P01_2", "P02_1", "P03_1"])
    said = run(tmp_path)[1]
    assert "patients or slides" in said
    rule = said.partition("--groups '")[2].partition("'")[0]
    assert "patients or slides" not in run(tmp_path, "--replace", "--groups", rule)[1]
    assert dataset(tmp_path).tiles[0].group == "P01"


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "inf"])
def test_um_per_px_that_cannot_be_is_refused_at_once(tmp_path, mpp):
    draw(tmp_path, "abcd")
    code, said = run(tmp_path, f"--mpp={mpp}")
    assert code == 1
    assert "--mpp" in said
    assert not (tmp_path / "m.yaml").exists()


def test_lone_files_are_skipped_when_asked_to(tmp_path):
    draw(tmp_path, "abcde")
    (tmp_path / "masks" / "e.png").unlink()
    code, said = run(tmp_path)
    assert code == 1
    assert "--missing skip" in said
    code, said = run(tmp_path, "--missing", "skip")
    assert code == 0
    assert "1 images without a mask and 0 masks without an image were skipped: e.png" in said
    assert len(dataset(tmp_path).tiles) == 4


def test_masks_of_a_label_among_the_images_are_merged_and_are_no_images(tmp_path):
    draw(tmp_path, "abcd", masks="images", ending="tum.png")
    code, said = run(
        tmp_path,
        "--fill",
        "other",
        "--merge-into",
        tmp_path / "merged",
        labels="",
        masks=f"tumour={tmp_path}/images/*.tum.png",
    )
    assert code == 0, said
    assert [tile.id for tile in dataset(tmp_path).tiles] == list("abcd")


def test_images_that_lack_a_label_s_mask_are_skipped_when_asked_to(tmp_path):
    draw(tmp_path, "abcde")
    (tmp_path / "masks" / "e.png").unlink()
    flags = ["--fill", "other", "--merge-into", tmp_path / "merged"]
    code, said = run(tmp_path, *flags, labels="", masks=f"tumour={tmp_path}/masks")
    assert code == 1
    assert "--missing skip" in said
    code, said = run(tmp_path, *flags, "--missing", "skip", labels="", masks=f"tumour={tmp_path}/masks")
    assert code == 0, said
    assert "1 images without the mask of some label were skipped" in said


def test_masks_of_labels_in_folders_of_splits_are_merged_into_such_folders(tmp_path):
    draw(tmp_path, ["train/a", "val/b", "test/a"])
    code, said = run(
        tmp_path,
        "--fill",
        "other",
        "--merge-into",
        tmp_path / "merged",
        labels="",
        masks=f"tumour={tmp_path}/masks",
        split="",
    )
    assert code == 0, said
    assert dataset(tmp_path).splits.test == ("test_a",)
    assert (tmp_path / "merged" / "test" / "a.png").exists()


GLAS = {"names": [f"t{i}" for i in range(4)], "size": (77, 52)}


def test_oblong_tiles_are_reported_at_once_and_check_sums_them_up(tmp_path):
    draw(tmp_path, **GLAS)
    code, said = run(tmp_path)
    assert code == 0
    assert said.count("not square") == 1
    assert "--square crop, tile or pad" in said
    problems = check(Manifest(tmp_path / "m.yaml"), "mine").problems
    assert problems == [
        "4 of 4 tiles are not square (4 of 77 x 52 px): make them square with fmcache data add --replace --square "
        "crop, tile or pad"
    ]


@pytest.mark.parametrize(("way", "side", "ignored"), [("crop", 52, 0), ("pad", 77, 25 / 77)])
def test_squares_are_files_beside_the_manifest_that_extract_and_check_take(tmp_path, way, side, ignored):
    draw(tmp_path, **GLAS)
    code, said = run(tmp_path, "--square", way)
    assert code == 0, said
    assert "not square" not in said
    listed = Manifest(tmp_path / "m.yaml")
    found = check(listed, "mine")
    assert found.problems == []
    assert found.sizes == {(side, side): 4}
    assert found.unlabelled["t0"] == pytest.approx(ignored)
    tile = read_tile(listed.dataset("mine"), listed.dataset("mine").tiles[1], listed.folder)
    whole = np.asarray(Image.open(tmp_path / "images" / "t1.png"))
    inner = tile.image if way == "crop" else tile.image[13:65]
    assert (inner == (whole[:, 12:64] if way == "crop" else whole)).all()


def test_squares_side_by_side_stay_in_one_split_and_their_origin_is_recorded(tmp_path):
    draw(tmp_path, **GLAS)
    code, said = run(tmp_path, "--square", "tile", "--tile-px", "26", "--into", tmp_path / "sq", split="8/4/4")
    assert code == 0, said
    assert "32.5 % of an image, on average, lies in no square" in said
    made = dataset(tmp_path)
    group = {tile.id: tile.group for tile in made.tiles}
    assert len(made.tiles) == 16
    parts = [{group[id_] for id_ in made.splits.of(part)} for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [2, 1, 1]
    with (tmp_path / "sq" / "squares.csv").open() as file:
        rows = {row["tile"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(group)
    row = rows["t1_x000038_y000026"]
    assert row["image_sha256"] == sha256_file(tmp_path / "images" / "t1.png")
    whole = np.asarray(Image.open(row["image"]))[26:52, 38:64]
    assert (np.asarray(Image.open(tmp_path / "sq" / "images" / "t1_x000038_y000026.png")) == whole).all()


def test_squares_without_a_label_and_small_images_are_reported(tmp_path):
    draw(tmp_path, **{**GLAS, "size": [(77, 52), (77, 52), (77, 52), (20, 30)]})
    blank = np.full((52, 77), 255, "uint8")
    blank[:, :30] = 1
    Image.fromarray(blank).save(tmp_path / "masks" / "t0.png")
    code, said = run(tmp_path, "--square", "tile", "--tile-px", "26", split="6/4/1")
    assert code == 0, said
    assert "1 images were padded by reflection" in said
    assert "2 squares without any label were left out" in said
    assert check(Manifest(tmp_path / "m.yaml"), "mine").problems == []


def test_squares_are_kept_by_the_same_command_and_refused_or_replaced_by_another(tmp_path):
    draw(tmp_path, **GLAS)
    assert run(tmp_path, "--square", "crop")[0] == 0
    image = tmp_path / "mine-squares" / "images" / "t0.png"
    before = image.stat().st_mtime_ns
    (tmp_path / "mine-squares" / "images" / "t1.png").unlink()
    assert run(tmp_path, "--square", "crop", "--replace")[0] == 0
    assert image.stat().st_mtime_ns == before
    code, said = run(tmp_path, "--square", "pad", name="other", split="2/1/1")
    assert code == 0
    code, said = run(tmp_path, "--square", "pad", "--into", tmp_path / "mine-squares", name="third")
    assert code == 1
    assert "by other rules" in said
    assert run(tmp_path, "--square", "pad", "--replace")[0] == 0
    assert Image.open(image).size == (77, 77)
    code, said = run(tmp_path, "--square", "pad", "--into", tmp_path / "images", name="third")
    assert code == 1
    assert "is not empty" in said


def test_annotated_regions_become_label_ids_in_squares(tmp_path):
    draw(tmp_path, **GLAS)
    ring = [[0, 0], [40, 0], [40, 60], [0, 60], [0, 0]]
    feature = {
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}},
    }  # fmt: skip
    (tmp_path / "ann").mkdir()
    for i in range(4):
        (tmp_path / "ann" / f"t{i}.geojson").write_text(json.dumps([feature]))
    flags = ["--square", "pad", "--fill", "rest"]
    code, said = run(tmp_path, *flags, labels="tumour=Tumor,rest=Rest", masks="ann")
    assert code == 0, said
    entry = yaml.safe_load((tmp_path / "m.yaml").read_text())["datasets"]["mine"]
    assert (entry["format"], entry["ignore_values"]) == ("folder", [255])
    mask = np.asarray(Image.open(tmp_path / "mine-squares" / "masks" / "t0.png"))
    assert (mask[13:65, :40] == 0).all()
    assert (mask[13:65, 40:] == 1).all()
    assert (mask[:13] == 255).all()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--square", "tile"], "--tile-px 512"),
        (["--square", "tile", "--tile-px", "2"], "16 to"),
        (["--square", "tile", "--tile-px", "1000000"], "16 to"),
        (["--tile-px", "32"], "works only with --square tile"),
        (["--into", "x"], "works only with"),
    ],
)
def test_flags_of_squares_that_do_not_fit_are_refused(tmp_path, flags, says):
    draw(tmp_path, **GLAS)
    code, said = run(tmp_path, *flags)
    assert code == 1
    assert says in said


def test_groups_that_folders_or_squares_say_can_be_declined(tmp_path):
    draw(tmp_path, ["P1/a", "P1/b", "P2/a", "P2/b"])
    code, said = run(tmp_path)
    assert code == 1
    assert "--groups none" in said
    assert run(tmp_path, "--groups", "none")[0] == 0
    assert {tile.group for tile in dataset(tmp_path).tiles} == {""}
    draw(tmp_path / "one", ["a"], (64, 64))
    code, said = run(tmp_path / "one", "--square", "tile", "--tile-px", "16", split="")
    assert code == 1
    assert "--groups none" in said
    assert run(tmp_path / "one", "--square", "tile", "--tile-px", "16", "--groups", "none", split="")[0] == 0


def test_a_mask_that_was_saved_otherwise_than_the_others_is_reported(tmp_path):
    draw(tmp_path, "abcd")
    assert "is ignored, but" not in run(tmp_path)[1]
    path = tmp_path / "masks" / "c.png"
    Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    code, said = run(tmp_path, "--replace")
    assert code == 0
    assert "255 is ignored, but 1 of 4 masks hold it and at most one label" in said
    assert "masks/c.png" in said


def test_smoothed_masks_are_refused_with_ranges_that_work_and_pictures_called_so(tmp_path):
    draw(tmp_path, "abcd")
    for path in (tmp_path / "masks").iterdir():
        whole = Image.fromarray(np.asarray(Image.open(path)) * 255)
        whole.resize((99, 99), Image.Resampling.BICUBIC).resize(whole.size, Image.Resampling.BICUBIC).save(path)
    code, said = run(tmp_path, labels="other=0,tumour=255")
    assert code == 1
    labels = said.partition("split the range in the middle: '")[2].partition("'")[0]
    assert run(tmp_path, labels=labels)[0] == 0
    code, said = run(tmp_path, images="masks", masks="images", name="b")
    assert code == 1
    assert "not interchanged" in said


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(tmp_path):
    draw(tmp_path, "abcd", masks="tile=32px")
    assert run(tmp_path, masks=f"{tmp_path}/tile=32px")[0] == 0
    assert len(dataset(tmp_path).tiles) == 4
