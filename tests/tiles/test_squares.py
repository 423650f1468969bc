from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmcache.errors import TileError
from fmcache.manifest import FolderDataset, Label
from fmcache.tiles.squares import (
    Box,
    cut_image,
    cut_mask,
    cut_picture,
    dropped_share,
    plan_boxes,
    reaches_beyond,
    read_mask_picture,
    shape_note,
    sizes_of,
    with_rim,
)

LABELS = (Label("a", "#000000", (0,)), Label("b", "#ffffff", (1,)))


def test_the_three_ways_of_an_image_of_glas():
    assert plan_boxes(775, 522, "crop", 0) == [Box(126, 0, 522)]
    assert plan_boxes(775, 522, "pad", 0) == [Box(0, -127, 775)]
    assert plan_boxes(775, 522, "tile", 256) == [Box(x, y, 256) for y in (5, 261) for x in (3, 259, 515)]
    assert plan_boxes(200, 522, "tile", 256) == [Box(-28, y, 256) for y in (5, 261)]


@given(st.integers(1, 90), st.integers(1, 90), st.integers(5, 60))
def test_squares_side_by_side_never_meet_and_lie_inside_unless_the_image_is_smaller(width, height, tile_px):
    boxes = plan_boxes(width, height, "tile", tile_px)
    seen = np.zeros((height, width), int)
    for box in boxes:
        assert reaches_beyond(box, width, height) == (min(width, height) < tile_px)
        seen[max(0, box.y) : box.y + tile_px, max(0, box.x) : box.x + tile_px] += 1
    assert seen.max() == 1
    assert dropped_share(boxes, width, height) == pytest.approx(1 - seen.mean())


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from(["crop", "pad", "tile"]), st.integers(1, 50))
def test_image_and_mask_are_cut_alike_and_what_lies_beyond_is_reflected_and_ignored(width, height, way, tile_px):
    image = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8)
    mask = (np.arange(height * width).reshape(height, width) % 200).astype(np.uint8)
    for box in plan_boxes(width, height, way, tile_px):
        pixels, ids = cut_image(image, box), cut_mask(mask, box)
        assert pixels.shape == (box.size, box.size, 3)
        ys, xs = np.nonzero(ids != 255)
        assert (ids[ys, xs] == mask[ys + box.y, xs + box.x]).all()
        assert (pixels[ys, xs] == image[ys + box.y, xs + box.x]).all()
        assert len(ys) == pytest.approx((1 - dropped_share([box], width, height)) * width * height)


def pictures():
    values = np.array([[0, 1, 2], [2, 1, 0]], "uint8")
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    rgb = np.stack([values * 100, values, values], -1)
    return {
        "grey": Image.fromarray(values), "palette": palette, "16 bits": Image.fromarray(values.astype("uint16") * 300),
        "RGB": Image.fromarray(rgb), "RGBA": Image.fromarray(np.dstack([rgb, np.full((2, 3), 9, "uint8")])),
        "grey and alpha": Image.fromarray(np.dstack([values, values])), "1 bit": Image.fromarray(values > 0),
    }  # fmt: skip


@pytest.mark.parametrize("kind", pictures())
def test_values_palette_and_alpha_of_a_mask_stay_and_the_rim_is_what_was_asked_for(tmp_path, kind):
    path, out = tmp_path / "m.png", tmp_path / "out.png"
    pictures()[kind].save(path)
    source = read_mask_picture(path, False)
    rim = (1, 2, 3) if kind.startswith("RGB") else 255
    cut_picture(source, Box(0, -1, 3), rim).save(out)
    made = Image.open(out)
    assert made.mode == source.mode
    assert (np.asarray(made)[1:] == np.asarray(source)).all()
    corner = np.atleast_1d(np.asarray(made)[0, 0]).tolist()
    assert corner[:3] == [1, 2, 3] if isinstance(rim, tuple) else corner[0] == 255
    if kind == "palette":
        assert made.getpalette()[:9] == [200, 0, 0, 0, 200, 0, 0, 0, 200]


def test_masks_of_more_than_16_bits_are_refused_where_a_png_could_not_hold_them(tmp_path):
    Image.fromarray(np.array([[70000, 1]], "int32")).save(tmp_path / "m.tif")
    with pytest.raises(TileError, match="do not fit into a PNG"):
        read_mask_picture(tmp_path / "m.tif", False)
    np.save(tmp_path / "m.npy", np.array([[60000, 1]], "int64"))
    assert np.asarray(read_mask_picture(tmp_path / "m.npy", False)).tolist() == [[60000, 1]]


@pytest.mark.parametrize(
    ("labels", "ignored", "rim", "listed"),
    [
        (LABELS, (255,), 255, (255,)), (LABELS, (), 255, (255,)), (LABELS, (9, "20-"), 9, (9, "20-")),
        ((LABELS[0], Label("b", "#ffffff", (255,))), (), 254, (254,)),
        ((Label("a", "#000000", ("#ffffff",)), Label("b", "#000000", ("#000000",))), (255,),
        (254,) * 3, (255, "#fefefe")),
        ((Label("a", "#000000"), Label("b", "#000000")), (), 255, (255,)),
    ],
)  # fmt: skip
def test_a_rim_is_a_value_that_is_ignored_and_one_is_found_where_none_is(labels, ignored, rim, listed):
    found = with_rim(FolderDataset(labels=labels, root=".", ignore_values=ignored))
    assert found.value == rim
    assert found.dataset.ignore_values == listed


def test_no_value_left_for_a_rim_is_an_error():
    full = FolderDataset(labels=(LABELS[0], Label("b", "#ffffff", ("1-",))), root=".")
    with pytest.raises(TileError, match="no mask value is left"):
        with_rim(full)


def test_shapes_are_summed_up_in_one_line():
    assert shape_note(Counter({(512, 512): 30})) == ""
    assert "90 of 98 images are not square (90 of 775 x 522 px, 8 of 512 x 512 px)" in shape_note(
        Counter({(775, 522): 90, (512, 512): 8})
    )
    assert "--square tile --tile-px 207" in shape_note(Counter({(300, 300): 2, (207, 207): 1}))
    many = sizes_of(Counter({(i, i + 1): 1 for i in range(200, 298)}))
    assert many.count(" px") == 5
    assert "and 94 more sizes, edges of 200 to 298 px" in many
