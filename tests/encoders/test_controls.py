import numpy as np
import pytest
import torch

from fmcache.encoders.controls import ORIENTATIONS, WAVELENGTHS_PX, gabor_kernels
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

GRID = GridGeometry(96, 16)


@pytest.fixture(scope="module")
def texture():
    return load_encoder(EncoderChoice("colour-texture"), torch.device("cpu"))


def grating(wavelength, degrees):
    y, x = np.mgrid[:96, :96]
    turn = np.radians(degrees)
    wave = np.cos(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / wavelength)
    return np.repeat((127 + 100 * wave).astype(np.uint8)[None, :, :, None], 3, axis=3)


def test_a_flat_patch_has_its_colour_and_no_texture(texture):
    image = np.zeros((1, 96, 96, 3), np.uint8)
    image[:] = (255, 51, 0)
    token = token_grids(texture, image, GRID)[0, :, 2, 3]
    assert token[:3].tolist() == pytest.approx([1.0, 0.2, 0.0], abs=1e-5)
    assert torch.allclose(token[3:], torch.zeros(27), atol=2e-3)


def test_colour_is_described_as_numpy_would(texture):
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    token = token_grids(texture, image, GRID)[0, :, 1, 4]
    patch = image[0, 16:32, 64:80].reshape(-1, 3) / 255
    assert token[:3].tolist() == pytest.approx(patch.mean(0).tolist(), abs=1e-5)
    assert token[3:6].tolist() == pytest.approx(patch.std(0).tolist(), abs=1e-4)


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
@pytest.mark.parametrize("scale", range(len(WAVELENGTHS_PX)))
def test_a_grating_answers_loudest_in_the_channel_of_its_wavelength_and_direction(texture, scale, orientation):
    degrees = 180 * orientation / ORIENTATIONS
    token = token_grids(texture, grating(WAVELENGTHS_PX[scale], degrees), GRID)[0, :, 3, 3]
    assert int(token[6:18].argmax()) == scale * ORIENTATIONS + orientation


def test_filters_have_no_mean_and_the_same_weight():
    kernels = gabor_kernels()
    assert kernels.shape[:2] == (2 * ORIENTATIONS * len(WAVELENGTHS_PX), 1)
    assert torch.allclose(kernels.sum(dim=(2, 3)), torch.zeros(len(kernels), 1), atol=1e-6)
    assert torch.allclose(kernels.abs().sum(dim=(2, 3)), torch.ones(len(kernels), 1), atol=1e-5)
