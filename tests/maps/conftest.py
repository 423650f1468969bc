"""Label maps for the tests of this folder, and a function that writes one."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from fmcache.manifest import Label
from fmcache.maps.contract import GLASS, Band, MapGeometry, MapOptions
from fmcache.maps.writing import writing

LABELS = (Label("tumour", "#c80000"), Label("stroma", "#00c800"), Label("other", "#0000c8"))


def blobs(height, width, count=3, blur_px=12, seed=0):
    """Return a map of smooth regions (y, x), with glass at the left border."""
    noise = np.random.default_rng(seed).standard_normal((count, height, width)).astype(np.float32)
    labels = np.stack([cv2.GaussianBlur(one, (0, 0), blur_px) for one in noise]).argmax(0).astype(np.uint8)
    labels[:, : width // 8] = GLASS
    return labels


def write(folder, labels, band_px=100, geometry=None, options=None, **layers):
    """Write a map in bands of `band_px` rows; `layers` are other parts of the bands, for all rows."""
    geometry = geometry or MapGeometry("slide", *labels.shape, 0.5, 2.0, LABELS)
    with writing(geometry, folder, options or MapOptions(least_um2=0)) as maps:
        for top in range(0, len(labels), band_px):
            rows = slice(top, top + band_px)
            parts = {
                name: pixels[:, rows] if name == "probability" else pixels[rows] for name, pixels in layers.items()
            }
            maps.add(Band(top, labels[rows], **parts))
    return maps.totals


@pytest.fixture
def maps():
    return SimpleNamespace(LABELS=LABELS, blobs=blobs, write=write)
