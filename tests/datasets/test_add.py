import numpy as np
import pytest
import yaml
from PIL import Image

from fmcache.datasets.add import add
from fmcache.datasets.check import check
from fmcache.datasets.show import show, show_splits, show_views
from fmcache.datasets.split import split
from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.manifest import Manifest
from fmcache.specs import Recipe, ViewSpec
from fmcache.tiles.images import read_tile, resize_tile


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype("uint8")).save(
            tmp_path / "images" / f"p{i // 2}_{i}.png"
        )
        mask = np.zeros((32, 32), "uint8")
        mask[: 8 + i] = 1
        mask[-1] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"p{i // 2}_{i}_mask.png")
    return tmp_path


def add_to(
    folder, name="mine", labels="other=0,tumour=1", groups=r"^(p\d)", split="2/2/2", replace=False, ignore="255"
):
    manifest = folder / "data_manifest.yaml"
    return add(
        manifest,
        name,
        folder / "images",
        folder / "masks",
        labels=labels,
        ignore=ignore,
        mpp=0.5,
        groups=groups,
        split=split,
        seed=0,
        replace=replace,
    )


def test_a_folder_is_listed_with_hashes_groups_and_a_split_and_reads_back(folders):
    add_to(folders)
    manifest = Manifest(folders / "data_manifest.yaml")
    dataset = manifest.dataset()
    assert dataset.label_names == ("other", "tumour")
    group = {tile.id: tile.group for tile in dataset.tiles}
    assert [len({group[i] for i in dataset.splits.of(s)}) for s in ("train", "val", "test")] == [1, 1, 1]
    tile = read_tile(dataset, dataset.tiles[0], manifest.folder)
    assert (tile.mask[-1] == 255).all()
    assert tile.mask[:8].all()
    assert resize_tile(tile, 16).image.shape == (16, 16, 3)
    result = check(manifest, "mine")
    assert result.problems == []
    assert result.pixels.sum() == 6 * 32 * 32
    assert result.pixels[:, -1].tolist() == [64, 64, 64]


def test_comments_and_other_datasets_survive_an_addition(folders):
    add_to(folders)
    path = folders / "data_manifest.yaml"
    path.write_text("# ours\n" + path.read_text())
    add_to(folders, name="again")
    assert path.read_text().startswith("# ours\n")
    assert set(Manifest(path).datasets) == {"mine", "again"}
    with pytest.raises(ManifestError, match="already"):
        add_to(folders, name="again")
    add_to(folders, name="again", replace=True)


def test_rgb_masks_are_read_by_colour(folders):
    for path in (folders / "masks").iterdir():
        grey = np.asarray(Image.open(path))
        rgb = np.zeros((*grey.shape, 3), "uint8")
        rgb[grey == 1] = (255, 0, 0)
        Image.fromarray(rgb).save(path)
    add_to(folders, labels="other=#000000,tumour=#ff0000")
    manifest = Manifest(folders / "data_manifest.yaml")
    dataset = manifest.dataset()
    assert dataset.labels[1].colour == "#ff0000"
    assert read_tile(dataset, dataset.tiles[0], folders).mask[:8].all()


def test_the_contact_sheet_is_written_in_label_colours(folders):
    add_to(folders)
    sheet = np.asarray(Image.open(show(Manifest(folders / "data_manifest.yaml"), "mine", folders / "s.png")))
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (sheet == colour).all(-1).sum() > 50


def test_splits_and_views_have_sheets_in_label_colours_too(folders):
    add_to(folders)
    manifest = Manifest(folders / "data_manifest.yaml")
    split(manifest.path, "mine", "", 3, "1", 0)
    manifest = Manifest(manifest.path)
    recipe = Recipe(tile_px=32, views=ViewSpec(count=3))
    tall = Image.open(show_splits(manifest, "mine", folders / "s.png"))
    views = Image.open(show_views(manifest, "mine", recipe, "p0_0", folders / "v.png"))
    for sheet in (np.asarray(tall), np.asarray(views)):
        for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
            assert (sheet == colour).all(-1).sum() > 50
    with pytest.raises(SpecError, match="no tile 'p9'"):
        show_views(manifest, "mine", recipe, "p9", folders / "v.png")


def notes_of(folder):
    return check(Manifest(folder / "data_manifest.yaml"), "mine").notes


def test_unlabelled_shares_and_mostly_unlabelled_tiles_are_reported(folders):
    mask = np.full((32, 32), 255, "uint8")
    mask[:2, :16], mask[:2, 16:] = 0, 1
    Image.fromarray(mask).save(folders / "masks" / "p1_2_mask.png")
    add_to(folders)
    result = check(Manifest(folders / "data_manifest.yaml"), "mine")
    assert result.problems == []
    assert result.unlabelled["p0_0"] == 1 / 32
    assert result.unlabelled["p1_2"] == 30 / 32
    assert [note for note in result.notes if "unlabelled" in note] == [
        "1 tiles are more than half unlabelled: p1_2 (94%)"
    ]


def ignore_all(folder, *tiles):
    for tile in tiles:
        Image.fromarray(np.full((32, 32), 255, "uint8")).save(folder / "masks" / f"{tile}_mask.png")


def test_a_tile_without_a_label_is_a_note_and_a_split_without_one_a_problem(folders):
    ignore_all(folders, "p1_2")
    add_to(folders)
    path = folders / "data_manifest.yaml"
    result = check(Manifest(path), "mine")
    (split,) = (name for name in ("train", "val", "test") if "p1_2" in result.dataset.splits.of(name))
    assert result.problems == []
    assert (
        f"in 1 tiles every pixel is ignored; they contribute nothing to training or to scores: p1_2 ({split})"
        in result.notes
    )
    ignore_all(folders, "p1_3")
    add_to(folders, replace=True)
    result = check(Manifest(path), "mine")
    (problem,) = result.problems
    (split,) = (name for name in ("train", "val", "test") if "p1_2" in result.dataset.splits.of(name))
    assert problem.startswith(f"{split} has no labelled pixel: label one of its tiles (p1_2, p1_3)")
    assert not [note for note in result.notes if "does not occur" in note]


def test_a_fold_without_a_label_is_a_problem_too(folders):
    ignore_all(folders, "p1_2", "p1_3")
    add_to(folders)
    split(folders / "data_manifest.yaml", "mine", "", 3, "", 0)
    problems = check(Manifest(folders / "data_manifest.yaml"), "mine").problems
    folds = [problem.partition(" has")[0] for problem in problems if problem.startswith("fold")]
    assert [fold.split()[2] for fold in folds].count("test") == 1
    assert [fold.split()[2] for fold in folds].count("val") == 1


@pytest.mark.parametrize(
    ("mpp", "says"), [("0.5", ""), ("250", "um/px is 250"), ("0.05", "um/px is 0.05"), (None, "unknown")]
)
def test_um_per_px_out_of_the_usual_or_missing_is_noted(folders, mpp, says):
    add_to(folders)
    path = folders / "data_manifest.yaml"
    path.write_text(path.read_text().replace("    mpp: 0.5\n", f"    mpp: {mpp}\n" if mpp else ""))
    found = [note for note in notes_of(folders) if "um/px" in note]
    assert len(found) == bool(says)
    assert all(says in note for note in found)


def smooth(seed):
    """A picture that has a look: pure noise changes with every pixel."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype("uint8")
    return Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)


def test_copies_across_splits_are_found_even_turned_and_compressed_and_groups_may_hold_them(folders):
    for i in range(6):
        smooth(i).save(folders / "images" / f"p{i // 2}_{i}.png")
    smooth(0).save(folders / "images" / "p1_2.png")  # the same image in another patient
    (folders / "images" / "p2_4.png").unlink()
    smooth(0).transpose(Image.Transpose.ROTATE_90).save(folders / "images" / "p2_4.jpg", quality=60)
    smooth(0).resize((32, 32)).save(folders / "images" / "p0_1.png", optimize=True)  # within its patient: no leak
    add_to(folders)
    result = check(Manifest(folders / "data_manifest.yaml"), "mine")
    assert sorted(problem.partition(" are ")[0] for problem in result.problems) == [
        "tiles p0_0 and p1_2", "tiles p0_1 and p1_2",
    ]  # fmt: skip
    (note,) = [note for note in result.notes if "look alike" in note]
    assert note.startswith("3 pairs of tiles in different splits look alike")
    assert all(pair in note for pair in ("p0_0 and p2_4", "p0_1 and p2_4", "p1_2 and p2_4"))


def test_copies_that_only_a_fold_parts_are_found_too(folders):
    for i in range(6):
        smooth(i if i != 3 else 0).save(folders / "images" / f"p{i // 2}_{i}.png")
    add_to(folders, groups="", split="1/1/1")
    path = folders / "data_manifest.yaml"
    text = yaml.safe_load(path.read_text())
    text["datasets"]["mine"]["splits"] = {"train": ["p0_1"], "val": ["p1_2"], "test": ["p2_4"]}
    path.write_text(yaml.safe_dump(text))
    assert check(Manifest(path), "mine").problems == []
    text["datasets"]["mine"]["folds"] = [{"train": ["p0_1", "p0_0"], "val": ["p1_2"], "test": ["p2_4", "p1_3"]}]
    path.write_text(yaml.safe_dump(text))
    assert check(Manifest(path), "mine").problems == [
        "tiles p0_0 and p1_3 are the same image: train and test of fold 0"
    ]


def test_a_label_that_a_split_fold_or_subset_lacks_is_noted(folders):
    mask = np.zeros((32, 32), "uint8")
    Image.fromarray(mask).save(folders / "masks" / "p1_2_mask.png")
    add_to(folders, groups="", split="3/1/2")
    path = folders / "data_manifest.yaml"
    text = yaml.safe_load(path.read_text())
    others = [f"p{i // 2}_{i}" for i in (0, 1, 3, 4, 5)]
    text["datasets"]["mine"]["splits"] = {"train": others[:3], "val": ["p1_2"], "test": others[3:]}
    text["datasets"]["mine"]["folds"] = [
        {"train": [*others[:2], "p1_2"], "val": others[2:4], "test": others[4:], "subsets": [["p1_2"]]}
    ]
    path.write_text(yaml.safe_dump(text))
    assert [note for note in notes_of(folders) if "occur" in note] == [
        "label 'tumour' does not occur in val", "label 'tumour' does not occur in fold 0 subset 1",
    ]  # fmt: skip


def damage(folder, what):
    image, mask = folder / "images" / "p0_0.png", folder / "masks" / "p0_0_mask.png"
    if what == "corrupt":
        image.write_bytes(image.read_bytes()[:200])
    elif what == "mask larger":
        Image.fromarray(np.zeros((40, 40), "uint8")).save(mask)
    elif what == "unknown label":
        Image.fromarray(np.full((32, 32), 9, "uint8")).save(mask)
    elif what == "cmyk":
        Image.new("CMYK", (32, 32)).save(folder / "images" / "p0_0.jpg")
        image.unlink()
    elif what == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (32, 32)).save(folder / "images" / "p0_0.jpg", exif=exif)
        image.unlink()
    elif what == "lone image":
        mask.unlink()


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("corrupt", TileError, "cannot be read"),
        ("unknown label", TileError, r"9 \(1024 px\)"),
        ("mask larger", TileError, r"expected: 32 x 32 px(.|\n)*found: 40 x 40 px"),
        ("cmyk", TileError, "CMYK"),
        ("rotated", TileError, "EXIF"),
        ("lone image", ManifestError, "without mask: p0_0"),
    ],
)
def test_bad_files_are_refused_by_name_when_added(folders, what, error, says):
    damage(folders, what)
    with pytest.raises(error, match=says):
        add_to(folders)
    assert not (folders / "data_manifest.yaml").exists()


@pytest.mark.parametrize("what", ["corrupt", "mask larger"])
def test_files_that_changed_after_they_were_listed_are_found(folders, what):
    add_to(folders)
    damage(folders, what)
    manifest = Manifest(folders / "data_manifest.yaml")
    problems = check(manifest, "mine").problems
    assert len(problems) == 1
    assert "not the file that was listed" in problems[0]
    with pytest.raises(ManifestError, match="p0_0"):
        read_tile(manifest.dataset(), manifest.dataset().tiles[0], folders)


def test_without_sizes_the_split_is_scaled_and_the_line_says_so(folders):
    assert "6 tiles: split 3/1/2, 15/5/10 scaled; label shares" in add_to(folders, groups="", split="")
    assert "6 tiles: split 2/2/2, 15/5/10 scaled; label shares" in add_to(folders, name="grouped", split="")
    assert "6 tiles: split 2/1/1 (2 in no split); label" in add_to(folders, name="asked", groups="", split="2/1/1")


def test_a_label_that_a_split_cannot_have_is_reported_with_the_reason(folders):
    for i in range(2, 6):
        Image.fromarray(np.zeros((32, 32), "uint8")).save(folders / "masks" / f"p{i // 2}_{i}_mask.png")
    said = "label 'tumour' is in 2 tiles of 1 group: test has it, train and val lack it; no split can avoid this"
    assert f"\nnote: {said}" in add_to(folders)
    table = split(folders / "data_manifest.yaml", "mine", "2/2/2", 0, "", 0)
    assert any(f"note: {said}" in str(part) for part in table.renderables)


def test_impossible_splits_say_what_is_possible(folders):
    with pytest.raises(SpecError, match="--split"):
        add_to(folders, split="15/5/10")
    with pytest.raises(SpecError, match=r"whole groups(.|\n)*next: pass --split 2/2/2"):
        add_to(folders, split="1/2/3")
    for folder in ("images", "masks"):
        for path in (folders / folder).iterdir():
            path.unlink()
    with pytest.raises(ManifestError, match="holds no images"):
        add_to(folders)
