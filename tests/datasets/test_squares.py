"""Masks of every kind cut into squares: what is read back is the cut of what was there, whatever the file holds."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from fmcache.datasets.folder import Pair
from fmcache.datasets.squares import SquareRequest, make_squares, seal
from fmcache.errors import TileError
from fmcache.manifest import FolderDataset, Label
from fmcache.tiles.images import read_mask
from fmcache.tiles.pictures import read_image, read_raw_mask
from fmcache.tiles.values import read_values

HEIGHT, WIDTH = 20, 33
IDS = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH)).astype("uint8")
COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], "uint8")
CLEAR = np.where(np.arange(WIDTH) < 4, 0, 255).astype("uint8")[None].repeat(HEIGHT, 0)
NUMBERS, IN_COLOUR, INSTANCES = (0, 1, 2), ("#c80000", "#00c800", "#0000c8"), (0, "1-400", "401-")


def palette(ids=IDS, colours=COLOURS):
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(colours.tobytes())
    return picture


def kinds():
    deep = IDS.astype("uint16") * 300
    return {
        "grey": ("png", Image.fromarray(IDS), NUMBERS, 255),
        "grey, nothing ignored": ("png", Image.fromarray(IDS), NUMBERS, ()),
        "grey and alpha": ("png", Image.fromarray(np.dstack([IDS, CLEAR])), NUMBERS, 255),
        "one bit": ("png", Image.fromarray(IDS > 0), (0, 1), 255),
        "black and white by colour": ("png", Image.fromarray(IDS > 0), ("#000000", "#ffffff"), 255),
        "16 bits": ("png", Image.fromarray(deep), (0, 300, 600), 255),
        "instances": ("png", Image.fromarray(deep), INSTANCES, ()),
        "instances from an array": ("npy", IDS.astype("int64") * 30000, (0, "1-40000", "40001-"), ()),
        "instances in 32 bits": ("tif", IDS.astype("int32") * 300, INSTANCES, ()),
        "truth values": ("npy", IDS > 0, (0, 1), 255),
        "palette by index": ("png", palette(), NUMBERS, 255),
        "palette by colour": ("png", palette(), IN_COLOUR, 255),
        "RGB": ("png", Image.fromarray(COLOURS[IDS]), IN_COLOUR, 255),
        "RGB, ignored by colour": ("png", Image.fromarray(COLOURS[IDS]), IN_COLOUR[:2], "#0000c8"),
        "grey in RGB": ("png", Image.fromarray(IDS[..., None].repeat(3, -1)), NUMBERS, 255),
        "RGBA": ("png", Image.fromarray(np.dstack([COLOURS[IDS], CLEAR])), IN_COLOUR, 255),
        "numbers and colours": ("png", Image.fromarray(COLOURS[IDS]), (("#c80000", 5), *IN_COLOUR[1:]), 255),
        "BMP": ("bmp", Image.fromarray(IDS), NUMBERS, 255),
    }  # fmt: skip


def written(folder, ending, content, name="a"):
    """Write an image and its mask; return their pair."""
    pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3)).astype("uint8")
    Image.fromarray(pixels).save(folder / f"{name}.jpg.png")
    path = folder / f"{name}.{ending}"
    if ending == "npy":
        np.save(path, content)
    elif ending == "tif":
        tifffile.imwrite(path, content)
    else:
        content.save(path)
    return Pair(name, folder / f"{name}.jpg.png", path)


def of(values, ignored):
    labels = [Label(f"l{i}", "#000000", its if isinstance(its, tuple) else (its,)) for i, its in enumerate(values)]
    ignored = ignored if isinstance(ignored, tuple) else (ignored,)
    return FolderDataset(labels=tuple(labels), root=".", ignore_values=ignored)


def cut(dataset, pairs, into, way="pad", tile_px=0):
    return make_squares(dataset, pairs, SquareRequest(way, tile_px, into, False), lambda line: None)


@pytest.mark.parametrize("kind", kinds())
def test_each_square_is_read_back_as_the_cut_of_the_whole_mask(tmp_path, kind):
    ending, content, values, ignored = kinds()[kind]
    pair, dataset = written(tmp_path, ending, content), of(values, ignored)
    whole = read_values(read_raw_mask(pair.mask), dataset).mask
    assert len(np.unique(whole)) > 1
    padded = np.pad(whole, ((7, 6), (0, 0)), constant_values=255)
    places = {
        "pad": [(0, 0, 33)],
        "crop": [(7, 6, 20)],
        "tile": [(7 + y, 1 + x, 10) for y in (0, 10) for x in (0, 10, 20)],
    }
    for way, boxes in places.items():
        made = cut(dataset, [pair], tmp_path / way, way, 10 * (way == "tile"))
        for square, (y, x, size) in zip(made.pairs, boxes, strict=True):
            image = read_image(square.image)
            read = read_mask(square.mask, made.dataset, image).mask
            assert (read == padded[y : y + size, x : x + size]).all()


def test_palettes_stay_and_depth_too(tmp_path):
    for kind, mode in (("palette by index", "P"), ("16 bits", "I;16"), ("grey", "L"), ("palette by colour", "RGB")):
        ending, content, values, ignored = kinds()[kind]
        made = cut(of(values, ignored), [written(tmp_path, ending, content)], tmp_path / kind, "crop")
        with Image.open(made.pairs[0].mask) as picture:
            assert picture.mode == mode
            if mode == "P":
                assert picture.getpalette()[:9] == COLOURS.ravel().tolist()


def test_rims_of_masks_whose_palettes_differ_in_length_do_not_make_them_differ(tmp_path):
    long = np.vstack([COLOURS, np.full((253, 3), 9, "uint8")])
    pairs = [written(tmp_path, "png", palette(), "a"), written(tmp_path, "png", palette(colours=long), "b")]
    made = cut(of(NUMBERS, 255), pairs, tmp_path / "made")
    colours = {Image.open(pair.mask).getpalette()[765:] == [128] * 3 for pair in made.pairs}
    assert colours == {True}


def test_a_dataset_changes_only_where_a_square_needs_it(tmp_path):
    ending, content, values, _ = kinds()["instances"]
    pair, dataset = written(tmp_path, ending, content), of(values, ())
    assert cut(dataset, [pair], tmp_path / "crop", "crop").dataset is dataset
    assert cut(dataset, [pair], tmp_path / "pad").dataset.labels[2].values == ("401-65534",)


def test_instances_that_no_png_holds_are_refused_by_the_name_of_the_mask(tmp_path):
    pair = written(tmp_path, "npy", IDS.astype("int64") * 70000)
    with pytest.raises(TileError, match=r"a\.npy: values of this mask do not fit into a PNG") as caught:
        cut(of(INSTANCES, ()), [pair], tmp_path / "made", "crop")
    assert "140000" in caught.value.found


def test_values_that_no_label_has_are_reported_of_all_masks_at_once(tmp_path):
    pairs = [written(tmp_path, "png", Image.fromarray(IDS + i), f"m{i}") for i in (0, 5, 50)]
    with pytest.raises(TileError, match="no label has") as caught:
        cut(of(NUMBERS, 255), pairs, tmp_path / "made", "crop")
    assert "5 (" in caught.value.found
    assert "52 (" in caught.value.found


def test_a_label_in_no_mask_is_reported_by_the_values_of_masks_not_by_that_of_the_rim(tmp_path):
    pair = written(tmp_path, "png", Image.fromarray(IDS))
    with pytest.raises(TileError, match=r"'l3' .* has no pixel") as caught:
        cut(of((0, 1, 2, 3), 255), [pair], tmp_path / "made")
    assert "255" not in str(caught.value)


def test_a_square_that_memory_could_not_hold_is_refused(tmp_path):
    Image.new("RGB", (40000, 2)).save(tmp_path / "a.png")
    Image.new("L", (40000, 2)).save(tmp_path / "m.png")
    with pytest.raises(TileError, match="too large for a tile") as caught:
        cut(of((0, 1), 255), [Pair("a", tmp_path / "a.png", tmp_path / "m.png")], tmp_path / "made")
    assert "--square tile" in caught.value.next_step


def test_squares_of_a_first_try_are_replaced_without_a_flag_and_listed_ones_are_not(tmp_path):
    pair = written(tmp_path, "png", Image.fromarray(IDS))
    cut(of((0, 2, 1), 255), [pair], tmp_path / "made")
    made = cut(of(NUMBERS, 255), [pair], tmp_path / "made")
    seal(SquareRequest("pad", 0, tmp_path / "made", False), made)
    with pytest.raises(Exception, match="by other rules"):
        cut(of((2, 1, 0), 255), [pair], tmp_path / "made")
