import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcache.specs import ViewSpec
from fmcache.tiles.views import UNTOUCHED, affine_matrix, render_mask, render_view, view_params

NO_JITTER = ViewSpec(brightness=0, contrast=0, saturation=0, hue=0)


def blobs(size=96):
    mask = np.zeros((size, size), "uint8")
    cv2.circle(mask, (30, 40), 18, 1, -1)
    cv2.rectangle(mask, (55, 10), (90, 50), 2, -1)
    return mask


def test_view_0_is_the_untouched_tile():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype("uint8")
    assert view_params(ViewSpec(), "d", "t", 0) == UNTOUCHED
    assert np.array_equal(render_view(ViewSpec(), "d", "t", 0, image), image)
    assert np.array_equal(render_mask(ViewSpec(), "d", "t", 0, image[..., 0]), image[..., 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.sampled_from(["ignore", "reflect"]))
def test_image_and_mask_move_together_under_every_view(view, outside):
    spec = msgspec.structs.replace(NO_JITTER, outside=outside)
    mask = blobs()
    image = np.repeat((mask * 100)[..., None], 3, axis=2)  # grey level tells the label
    warped, warped_mask = render_view(spec, "d", "t", view, image), render_mask(spec, "d", "t", view, mask)
    seen = warped_mask != 255
    # the image is interpolated, the mask is not: they may differ within a pixel of an edge, and nowhere else
    flat = cv2.dilate(warped[..., 0], np.ones((3, 3))) == cv2.erode(warped[..., 0], np.ones((3, 3)))
    sure = seen & flat
    assert sure.mean() > 0.3
    assert np.array_equal(warped[sure][:, 0], warped_mask[sure] * 100)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500))
def test_exactly_the_pixels_from_outside_are_ignored(view):
    size = 64
    mask = render_mask(NO_JITTER, "d", "t", view, np.zeros((size, size), "uint8"))
    matrix = affine_matrix(view_params(NO_JITTER, "d", "t", view), size)
    y, x = np.mgrid[:size, :size]
    source = np.linalg.solve(matrix[:, :2], np.stack([x.ravel(), y.ravel()]) - matrix[:, 2:])
    margin = np.min([source[0] + 0.5, size - 0.5 - source[0], source[1] + 0.5, size - 0.5 - source[1]], axis=0)
    inside = margin.reshape(size, size)
    assert (mask[inside > 0.1] == 0).all()
    assert (mask[inside < -0.1] == 255).all()


def test_parameters_depend_on_seed_dataset_tile_and_view_and_on_nothing_else():
    spec = ViewSpec()
    base = view_params(spec, "d", "t", 5)
    assert view_params(msgspec.structs.replace(spec, count=3), "d", "t", 5) == base
    others = [
        view_params(msgspec.structs.replace(spec, seed=1), "d", "t", 5),
        view_params(spec, "e", "t", 5),
        view_params(spec, "d", "u", 5),
        view_params(spec, "d", "t", 6),
    ]
    assert base not in others


def test_a_range_moves_its_own_parameter_only():
    one, other = view_params(ViewSpec(), "d", "t", 1), view_params(ViewSpec(hue=0.4), "d", "t", 1)
    assert one.hue != other.hue
    assert one._replace(hue=0) == other._replace(hue=0)


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_changes_colours_and_never_the_mask(field):
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype("uint8")
    plain = msgspec.structs.replace(NO_JITTER, rotate_deg=0, flip=False, scale=1, shear_deg=0, translate=0)
    jittered = msgspec.structs.replace(plain, **{field: 0.4})
    assert np.array_equal(render_view(plain, "d", "t", 1, image), image)
    assert not np.array_equal(render_view(jittered, "d", "t", 1, image), image)
    assert np.array_equal(render_mask(jittered, "d", "t", 1, image[..., 0]), image[..., 0])


def test_hue_turns_red_towards_other_hues_and_keeps_grey():
    spec = ViewSpec(
        rotate_deg=0, flip=False, scale=1, shear_deg=0, translate=0, brightness=0, contrast=0, saturation=0, hue=0.5
    )
    red, grey = np.zeros((8, 8, 3), "uint8"), np.full((8, 8, 3), 90, "uint8")
    red[..., 0] = 200
    assert np.array_equal(render_view(spec, "d", "t", 1, grey), grey)
    turned = render_view(spec, "d", "t", 1, red)[0, 0]
    assert turned.max() == 200
    assert (turned != red[0, 0]).any()
