from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.tiles.boxes import (
    Box,
    cut_image,
    cut_raw,
    dropped_share,
    plan_boxes,
    reaches_beyond,
    shape_note,
    sizes_of,
)
from fmcache.tiles.pictures import RAMPS, TRANSPARENT, RawMask


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
    mask = (np.arange(height * width).reshape(height, width) % 200).astype(np.int32)
    for box in plan_boxes(width, height, way, tile_px):
        pixels, ids = cut_image(image, box), cut_raw(RawMask(mask, RAMPS[8], False), box).keys
        assert pixels.shape == (box.size, box.size, 3)
        ys, xs = np.nonzero(ids != TRANSPARENT)
        assert (ids[ys, xs] == mask[ys + box.y, xs + box.x]).all()
        assert (pixels[ys, xs] == image[ys + box.y, xs + box.x]).all()
        assert len(ys) == pytest.approx((1 - dropped_share([box], width, height)) * width * height)


def test_shapes_are_summed_up_in_one_line():
    assert shape_note(Counter({(512, 512): 30})) == ""
    assert "90 of 98 images are not square (90 of 775 x 522 px, 8 of 512 x 512 px)" in shape_note(
        Counter({(775, 522): 90, (512, 512): 8})
    )
    assert "--square tile --tile-px 207" in shape_note(Counter({(300, 300): 2, (207, 207): 1}))
    many = sizes_of(Counter({(i, i + 1): 1 for i in range(200, 298)}))
    assert many.count(" px") == 5
    assert "and 94 more sizes, edges of 200 to 298 px" in many
