"""Images and masks as people have them: which are read, what their values mean, and which are refused with a reason."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from fmcache.datasets.label_flags import ignored_values, parse_labels
from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.manifest import FolderDataset, Label, Manifest, mask_span
from fmcache.tiles.images import read_mask
from fmcache.tiles.pictures import read_image, read_raw_mask


def dataset(labels, ignore="255"):
    parsed = parse_labels(labels)
    return FolderDataset(labels=parsed, root=".", ignore_values=ignored_values(ignore, parsed))


def ids(path, labels, ignore="255"):
    image = np.zeros((*read_raw_mask(path).keys.shape, 3), "uint8")
    return read_mask(path, dataset(labels, ignore), image).mask


NUMBERED = np.array([[0, 1, 2], [255, 256, 40000], [0, 0, 65535]])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", "uint16"), ("a.tif", "uint16"), ("b.tif", ">u2"), ("c.tif", "int32"), ("d.tif", "uint32")],
)
def test_instances_of_16_and_32_bits_collapse_into_their_label(tmp_path, name, dtype):
    path = tmp_path / name
    if name.endswith("png"):
        Image.fromarray(NUMBERED.astype(dtype)).save(path)
    else:
        tifffile.imwrite(path, NUMBERED.astype(dtype), byteorder=">" if dtype.startswith(">") else "<")
    assert ids(path, "background=0,nucleus=1-").tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert ids(path, "background=0,few=1-255,many=256-").tolist() == [[0, 1, 1], [1, 2, 2], [0, 0, 2]]


def test_instance_255_is_a_nucleus_and_not_ignored():
    assert dataset("background=0,nucleus=1-").ignore_values == ()
    assert dataset("background=0,nucleus=1-254").ignore_values == (255,)
    assert dataset("a,b").ignore_values == (255,)


def test_an_instance_mask_read_as_labels_names_the_range_to_write(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", NUMBERED.astype("uint16"))
    with pytest.raises(TileError, match=r"40000 \(1 px\)") as caught:
        ids(tmp_path / "a.tif", "background=0,nucleus=1")
    assert "'nucleus=1-'" in caught.value.next_step


def test_grey_values_and_colours_never_meet(tmp_path):
    grey = np.full((2, 2), 0x1000000 + 0xFF0000, "int32")
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    Image.new("RGB", (2, 2), "#ff0000").save(tmp_path / "rgb.png")
    labels = f"a=#ff0000,b={0x1000000 + 0xFF0000}"
    assert ids(tmp_path / "rgb.png", labels).tolist() == [[0, 0], [0, 0]]
    assert ids(tmp_path / "grey.tif", labels).tolist() == [[1, 1], [1, 1]]


def test_palette_black_and_white_and_colour_masks_mean_what_they_show(tmp_path):
    shown = np.array([[0, 1], [1, 0]], "uint8")
    palette = Image.fromarray(shown).convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(tmp_path / "p.png")
    Image.fromarray(shown.astype(bool)).save(tmp_path / "bw.png")
    palette.convert("RGB").save(tmp_path / "rgb.png")
    assert (ids(tmp_path / "p.png", "a=0,b=1") == shown).all()
    assert (ids(tmp_path / "bw.png", "a,b") == shown).all()
    assert (ids(tmp_path / "rgb.png", "a=#090909,b=#C80000") == shown).all()


def test_negative_and_fractional_mask_values_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((2, 2), -1, "int32"))
    with pytest.raises(TileError, match="below 0"):
        read_raw_mask(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.full((2, 2), 0.5, "float32"))
    with pytest.raises(TileError, match="not whole numbers"):
        read_raw_mask(tmp_path / "b.tif")


@pytest.mark.parametrize("value", ["5-3", "-1", "x", "1-x", "#12", "1--2", str(2**31)])
def test_what_is_no_mask_value_is_refused(value):
    with pytest.raises(SpecError, match="mask value"):
        parse_labels(f"a=0,b={value}")
    with pytest.raises(ValueError, match="mask value"):
        mask_span(value)


@pytest.mark.parametrize(("one", "other"), [("1-", "7"), ("1-9", "9-12"), ("3", "3"), ("#ff0000", "#FF0000")])
def test_values_that_overlap_are_refused_by_the_manifest(tmp_path, one, other):
    quoted = [value if value.isdecimal() else f'"{value}"' for value in (one, other)]
    tile = "{{id: t{0}, image: i, mask: m, image_sha256: {1}, mask_sha256: {1}}}"
    (tmp_path / "m.yaml").write_text(
        "format: 1\ndefault: d\ndatasets:\n  d:\n    format: folder\n    root: .\n    labels:\n"
        f'      - {{name: a, colour: "#000000", values: [{quoted[0]}]}}\n'
        f'      - {{name: b, colour: "#ffffff", values: [{quoted[1]}]}}\n'
        "    tiles:\n" + "".join(f"      - {tile.format(i, '0' * 64)}\n" for i in range(3)) + "    splits:\n"
        "      train: [t0]\n      val: [t1]\n      test: [t2]\n"
    )
    with pytest.raises(ManifestError, match=r"overlap|two things"):
        Manifest(tmp_path / "m.yaml")


def test_a_range_is_part_of_a_label_and_so_of_the_identity_of_masks():
    from fmcache.specs import Recipe
    from fmcache.stages.identities import mask_identity

    def identity(values):
        labels = (Label("a", "#000000", (0,)), Label("b", "#ffffff", values))
        return mask_identity(Recipe(), "d", FolderDataset(labels=labels, root="."), {})

    assert identity(("1-",)) != identity(("1-9",))


def test_images_of_16_bits_are_refused_rather_than_darkened(tmp_path):
    deep = np.full((4, 4, 3), 4000, "uint16")  # of 12 bits: the upper byte alone is 15
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    tifffile.imwrite(tmp_path / "grey.tif", deep[..., 0])
    for name, says in (("a.tif", "16 bits"), ("a.png", "16 bits"), ("grey.tif", "mode I;16")):
        with pytest.raises(TileError, match=says) as caught:
            read_image(tmp_path / name)
        assert "8-bit RGB" in caught.value.next_step


def test_cmyk_and_rotated_images_are_refused_and_upright_ones_read(tmp_path):
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    with pytest.raises(TileError, match="CMYK"):
        read_image(tmp_path / "cmyk.jpg")
    for turn in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.new("RGB", (4, 4)).save(tmp_path / f"{turn}.jpg", exif=exif)
    assert read_image(tmp_path / "1.jpg").shape == (4, 4, 3)
    with pytest.raises(TileError, match="EXIF"):
        read_image(tmp_path / "6.jpg")
