"""Views of a tile: (view recipe, dataset, tile id, view index) -> pixels and mask.

View 0 is the unchanged tile. Views 1, 2, ... are a random affine warp of both image and mask, and a colour jitter of
the image. Their parameters come from a counter-based generator (Philox) whose key is made of the four inputs above.
They do not depend on the order of calls, on the process, or on the number of views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from fmcache.identity import random_key
from fmcache.manifest import IGNORE
from fmcache.specs import ViewSpec
from fmcache.tiles.pixels import Pixels


@contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Keep OpenCV from starting additional threads in each of our threads: views are already rendered in parallel."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class ViewParams(NamedTuple):
    """Parameters of one view: angles in degrees, shifts as fractions of the tile, factors; `hue` as a fraction of the
    colour circle."""

    rotate_deg: float
    shear_deg: float
    scale: float
    flip: bool
    shift_x: float
    shift_y: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


UNTOUCHED = ViewParams(0.0, 0.0, 1.0, False, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)


def view_params(spec: ViewSpec, dataset: str, tile: str, view: int) -> ViewParams:
    """Return the parameters of a view; `UNTOUCHED` for view 0."""
    if view == 0:
        return UNTOUCHED
    generator = np.random.Generator(np.random.Philox(key=random_key("view", spec.seed, dataset, tile, view)))
    # all numbers are drawn in this order for any ranges, so that changing one range changes only its own parameter
    u = generator.uniform(-1.0, 1.0, size=10).tolist()
    return ViewParams(
        rotate_deg=spec.rotate_deg * u[0],
        shear_deg=spec.shear_deg * u[1],
        scale=spec.scale ** u[2],
        flip=spec.flip and u[3] > 0,
        shift_x=spec.translate * u[4],
        shift_y=spec.translate * u[5],
        brightness=1 + spec.brightness * u[6],
        contrast=1 + spec.contrast * u[7],
        saturation=1 + spec.saturation * u[8],
        hue=spec.hue * u[9],
    )


def affine_matrix(params: ViewParams, size: int) -> npt.NDArray[np.float64]:
    """Return the 2 x 3 matrix that maps pixel centres (x, y) of the tile to those of the view.

    Flip, shear, zoom and rotation are applied about the tile's centre, then the shift.
    """
    turn, shear = math.radians(params.rotate_deg), math.tan(math.radians(params.shear_deg))
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([-1.0 if params.flip else 1.0, 1.0])
    linear *= params.scale
    centre = np.full(2, (size - 1) / 2)
    shift = centre - linear @ centre + size * np.array([params.shift_x, params.shift_y])
    return np.column_stack([linear, shift])


def render_view(spec: ViewSpec, dataset: str, tile: str, view: int, image: Pixels) -> Pixels:
    """Return the pixels of a view, (y, x, channel) uint8, of a square RGB tile (y, x, channel) uint8."""
    params = view_params(spec, dataset, tile, view)
    if params == UNTOUCHED:
        return image
    warped = cv2.warpAffine(
        image,
        affine_matrix(params, len(image)),
        (len(image), len(image)),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return _jitter(np.asarray(warped, dtype=np.uint8), params)


def render_mask(spec: ViewSpec, dataset: str, tile: str, view: int, mask: Pixels) -> Pixels:
    """Return the mask of a view, (y, x) uint8 label ids, by nearest neighbour.

    Pixels outside the tile are 255 or reflected, as `spec.outside` says.
    """
    params = view_params(spec, dataset, tile, view)
    if params == UNTOUCHED:
        return mask
    warped = cv2.warpAffine(
        mask,
        affine_matrix(params, len(mask)),
        (len(mask), len(mask)),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT if spec.outside == "ignore" else cv2.BORDER_REFLECT_101,
        borderValue=(IGNORE,),
    )
    return np.asarray(warped, dtype=np.uint8)


def _jitter(image: Pixels, params: ViewParams) -> Pixels:
    picture = Image.fromarray(image)
    for enhance, factor in (
        (ImageEnhance.Brightness, params.brightness),
        (ImageEnhance.Contrast, params.contrast),
        (ImageEnhance.Color, params.saturation),
    ):
        picture = enhance(picture).enhance(factor)
    if params.hue:
        # HSV_FULL spreads the colour circle over 0..255, so the shift wraps around in uint8
        hsv = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(params.hue * 256) % 256)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), dtype=np.uint8)
    return np.asarray(picture, dtype=np.uint8)
