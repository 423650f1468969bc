"""What mask values mean over a whole folder: numbers and colours, palettes that differ, labels that are nowhere."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fmcache.datasets.folder import Pair
from fmcache.datasets.label_flags import ignored_values, parse_labels
from fmcache.datasets.listing import list_tiles
from fmcache.errors import TileError
from fmcache.manifest import FolderDataset
from fmcache.tiles.images import read_mask
from fmcache.tiles.pictures import read_raw_mask

SIDE = 4
RED, GREEN, WHITE = (200, 0, 0), (0, 200, 0), (255, 255, 255)
HALVES = np.repeat([[0, 1]], SIDE, 0).repeat(SIDE // 2, 1).astype("uint8")


def dataset(labels, ignore="255"):
    parsed = parse_labels(labels)
    return FolderDataset(labels=parsed, root=".", ignore_values=ignored_values(ignore, parsed))


def ids(path, labels, ignore="255"):
    image = np.zeros((*read_raw_mask(path).keys.shape, 3), "uint8")
    return read_mask(path, dataset(labels, ignore), image).mask[0].tolist()


def pixels(folder, names, labels, ignore="255"):
    """Return the pixels of each label in each mask, listed as `fmcache data add` lists them."""
    Image.new("RGB", (SIDE, SIDE)).save(folder / "image.png")
    pairs = [Pair(name.partition(".")[0], folder / "image.png", folder / name) for name in names]
    listing = list_tiles(dataset(labels, ignore), pairs, [""] * len(pairs), folder.resolve(), lambda n: None)
    return listing.pixels.tolist()


def palette(path, indices, *colours):
    picture = Image.fromarray(np.asarray(indices, "uint8")).convert("P")
    picture.putpalette(np.array(colours, "uint8").tobytes())
    picture.save(path)


def test_grey_values_in_rgb_are_label_ids_as_in_grey_files_beside_them(tmp_path):
    Image.fromarray(HALVES).save(tmp_path / "grey.png")
    Image.fromarray(HALVES).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(HALVES).convert("RGBA").save(tmp_path / "rgba.png")
    for labels in ("a=0,b=1", "a=#000000,b=#010101", "a=0|#000000,b=#010101"):
        assert [ids(tmp_path / f"{name}.png", labels) for name in ("grey", "rgb", "rgba")] == [[0, 0, 1, 1]] * 3
    with pytest.raises(TileError) as caught:
        ids(tmp_path / "rgb.png", "a=0,b=2")
    assert caught.value.found == "1 (8 px)"


def test_a_listed_colour_wins_over_the_ignored_number_of_its_grey(tmp_path):
    Image.fromarray(HALVES * 255).save(tmp_path / "grey.png")
    Image.fromarray(HALVES * 255).convert("RGB").save(tmp_path / "rgb.png")
    for name in ("grey.png", "rgb.png"):
        assert ids(tmp_path / name, "a=0|#000000,b=#ffffff") == [0, 0, 1, 1]
        assert ids(tmp_path / name, "a=0,b=1") == [0, 0, 255, 255]


def test_white_between_colours_is_not_ignored_as_if_it_were_the_number_255(tmp_path):
    pixels = np.full((SIDE, SIDE, 3), WHITE, "uint8")
    pixels[0, 0] = RED
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for labels in ("a=#c80000,b=#00c800", "a=0|#c80000,b=1"):
        with pytest.raises(TileError) as caught:
            ids(tmp_path / "a.png", labels)
        assert caught.value.found == "#ffffff (15 px)"


def test_palettes_are_read_by_colour_when_all_labels_are_colours_and_else_by_index(tmp_path):
    for name in ("a.png", "a.tif", "a.bmp"):
        palette(tmp_path / name, HALVES, RED, GREEN)
        assert ids(tmp_path / name, "a=#00c800,b=#c80000") == [1, 1, 0, 0]
        assert ids(tmp_path / name, "a=0,b=1") == [0, 0, 1, 1]
    with pytest.raises(TileError) as caught:
        ids(tmp_path / "a.png", "a=#0000ff,b=#ff00ff")
    assert caught.value.found == "#00c800 (8 px), #c80000 (8 px)"


@pytest.mark.parametrize(
    "other",
    [(HALVES, GREEN, RED), (HALVES * 0, GREEN), (HALVES + 1, (0, 0, 0), RED, GREEN)],
    ids=["turned", "one label alone", "moved by one"],
)
def test_palettes_that_differ_are_refused_by_index_and_read_by_colour(tmp_path, other):
    palette(tmp_path / "t1.png", HALVES, RED, GREEN)
    palette(tmp_path / "t2.png", *other)
    with pytest.raises(TileError, match="palettes differ") as caught:
        pixels(tmp_path, ["t1.png", "t2.png"], "tumour=0,stroma=1")
    assert re.search(r"#\w{6}.* in .*t1\.png.* in .*t2\.png", caught.value.found)
    way_out = re.search(r"--labels '(.*?)'", caught.value.next_step)[1]
    assert way_out == "tumour=#c80000,stroma=#00c800"
    assert all(sum(of_tile) == SIDE**2 for of_tile in pixels(tmp_path, ["t1.png", "t2.png"], way_out))


def test_colours_of_a_palette_that_no_pixel_has_and_twins_in_one_palette_do_not_matter(tmp_path):
    palette(tmp_path / "t1.png", HALVES, RED, RED, (1, 1, 1))
    palette(tmp_path / "t2.png", HALVES * 0 + 1, RED, RED, (2, 2, 2))
    assert pixels(tmp_path, ["t1.png", "t2.png"], "a=0,b=1") == [[8, 8], [0, 16]]


def test_unknown_values_of_all_masks_are_reported_at_once_and_rows_of_numbers_as_ranges(tmp_path):
    Image.fromarray(HALVES * 3).save(tmp_path / "t1.png")
    Image.fromarray(HALVES * 7).save(tmp_path / "t2.png")
    with pytest.raises(TileError) as caught:
        pixels(tmp_path, ["t1.png", "t2.png"], "a=0,b=1")
    assert caught.value.found == "3 (8 px), 7 (8 px)"
    tifffile.imwrite(tmp_path / "t3.tif", np.arange(SIDE**2, dtype="uint16").reshape(SIDE, SIDE) + 300)
    with pytest.raises(TileError) as caught:
        pixels(tmp_path, ["t3.tif"], "a=0,b=1")
    assert caught.value.found == "300-315 (16 px)"


def test_a_label_without_a_pixel_is_refused_with_the_value_that_was_meant(tmp_path):
    for name in ("t1.png", "t2.png"):
        Image.fromarray(HALVES * 255).save(tmp_path / name)
    with pytest.raises(TileError, match=r"label 'tumour' \(value 1\) has no pixel in any of 2 tiles") as caught:
        pixels(tmp_path, ["t1.png", "t2.png"], "background=0,tumour=1")
    assert caught.value.found == "0 (50 %), 255 (50 %, ignored)"
    assert "did you mean tumour=255 " in caught.value.next_step
    assert pixels(tmp_path, ["t1.png", "t2.png"], "background=0,tumour=255") == [[8, 8]] * 2


def test_no_value_is_suggested_when_two_labels_are_missing_or_nothing_is_ignored(tmp_path):
    Image.fromarray(HALVES * 255).save(tmp_path / "t1.png")
    with pytest.raises(TileError, match=r"labels 'b' .*, 'c' .* have no pixel") as caught:
        pixels(tmp_path, ["t1.png"], "a=0,b=1,c=2")
    assert "did you mean" not in caught.value.next_step
    with pytest.raises(TileError, match=r"label 'c' \(value 2\) has no pixel") as caught:
        pixels(tmp_path, ["t1.png"], "a=0,b=255,c=2")
    assert "did you mean" not in caught.value.next_step


def test_what_is_transparent_is_distinguished_from_what_was_found(tmp_path):
    picture = Image.merge("LA", [Image.fromarray(HALVES), Image.fromarray(HALVES * 255)])
    picture.save(tmp_path / "t1.png")
    with pytest.raises(TileError, match=r"label 'a' .*; transparent pixels \(50 %\) are ignored") as caught:
        pixels(tmp_path, ["t1.png"], "a=0,b=1")
    assert caught.value.found == "1 (50 %)"


KINDS = ("grey", "deep", "palette", "rgb", "rgba", "la", "npy")
NUMBERS = st.integers(0, 255)


@st.composite
def masks(draw):
    """A folder's masks: some values or colours, and which of them each pixel of each tile has."""
    kind = draw(st.sampled_from(KINDS))
    number = st.integers(0, 2000) if kind in ("deep", "npy") else NUMBERS
    value = st.tuples(NUMBERS, NUMBERS, NUMBERS) if kind in ("palette", "rgb", "rgba") else number
    values = draw(st.lists(value, min_size=2, max_size=14, unique=True))
    tiles = draw(
        st.lists(st.lists(st.integers(0, len(values) - 1), min_size=SIDE**2, max_size=SIDE**2), min_size=1, max_size=3)
    )
    return kind, values, [np.array(tile).reshape(SIDE, SIDE) for tile in tiles]


def write(folder, kind, values, tiles):
    for i, tile in enumerate(tiles):
        path, shown = folder / f"t{i}.{'npy' if kind == 'npy' else 'png'}", np.array(values)[tile]
        if kind == "palette":
            palette(path, tile, *values)
        elif kind == "npy":
            np.save(path, shown)
        elif kind == "deep":
            Image.fromarray(shown.astype("uint16")).save(path)
        elif kind in ("rgba", "la"):
            alpha = np.where(tile == 0, 0, 255)
            Image.fromarray(np.dstack([shown, alpha]).astype("uint8"), kind.upper()).save(path)
        else:
            Image.fromarray(shown.astype("uint8")).save(path)
        yield path.name


def parted(value):
    """A range in two, so that each of two labels gets a part of it."""
    low, _, high = value.partition("-")
    return [low, f"{int(low) + 1}-{high}"] if high else [value]


@settings(max_examples=120, deadline=None)
@given(masks())
def test_every_value_that_is_named_as_found_can_be_given_back(drawn):
    kind, values, tiles = drawn
    assume(len({int(i) for tile in tiles for i in tile.ravel() if i or kind not in ("rgba", "la")}) > 1)
    with tempfile.TemporaryDirectory() as name:
        folder, seen_before, given_back = Path(name), [], []
        names = list(write(folder, kind, values, tiles))
        for _ in range(12):
            first, rest = given_back[:1] or ["2147483646"], given_back[1:] or ["2147483647"]
            try:
                found = pixels(folder, names, f"a={first[0]},b={'|'.join(rest)}")
                break
            except TileError as error:
                named = re.findall(r"(#[0-9a-f]{6}|\d+-\d+|\d+) \(", error.found)
                new = [value for value in named if value not in seen_before]
                assert new, error
                seen_before += new
                given_back += [part for value in new for part in parted(value)]
        assert np.sum(found, axis=0).min() > 0
        seen = sum(int(i) != 0 or kind not in ("rgba", "la") for tile in tiles for i in tile.ravel())
        assert np.sum(found) <= seen
