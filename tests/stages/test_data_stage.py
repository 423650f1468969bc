import numpy as np
import pytest
from PIL import Image

from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.manifest import Manifest
from fmcache.stages.data import add, check, show
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
    return add(manifest, name, folder / "images", folder / "masks", labels, ignore, 0.5, groups, split, 0, replace)


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


def test_a_mask_of_another_size_is_a_problem(folders):
    damage(folders, "mask larger")
    add_to(folders)
    assert "differ in size" in check(Manifest(folders / "data_manifest.yaml"), "mine").problems[0]


def test_impossible_splits_say_what_is_possible(folders):
    with pytest.raises(SpecError, match="--split"):
        add_to(folders, split="15/5/10")
    with pytest.raises(SpecError, match="whole groups"):
        add_to(folders, split="1/2/3")
    for folder in ("images", "masks"):
        for path in (folders / folder).iterdir():
            path.unlink()
    with pytest.raises(ManifestError, match="holds no images"):
        add_to(folders)
