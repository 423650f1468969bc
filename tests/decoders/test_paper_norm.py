"""The paper's decoder with group normalisation, against means and variances computed by hand in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmcache.decoders.arithmetic import multiply_adds, parameters
from fmcache.decoders.batches import TokenGrids
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape, UpsamplingBlock
from fmcache.decoders.train import Training, train
from fmcache.grid import GridGeometry
from fmcache.specs import FitSpec


def normalised(values, channels, scale, shift):
    """Return (view, channel, row, col) with mean 0 and variance 1 in each group of `channels` channels of each view."""
    out = np.empty_like(values)
    for view, first in np.ndindex(len(values), values.shape[1] // channels):
        group = slice(first * channels, (first + 1) * channels)
        part = values[view, group]
        out[view, group] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out * scale[:, None, None] + shift[:, None, None]


@pytest.mark.parametrize("form", ["direct", "fast"])
@pytest.mark.parametrize(("width", "channels"), [(16, 8), (12, 4), (8, 8)])
def test_each_convolution_is_normalised_before_relu_in_groups_of_eight_channels(form, width, channels):
    grid = GridGeometry(20, 8)
    decoder = Decoder(Shape((5,), width, 3, grid), "paper-norm", form).double()
    initialise(decoder, 0)
    generator = torch.Generator().manual_seed(0)
    weights = dict(decoder.named_parameters())
    for name, value in weights.items():
        if ".norm." in name:
            value.data = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    tokens = torch.randn(2, 5, grid.side, grid.side, generator=generator, dtype=torch.float64)
    x = functional.conv2d(tokens, weights["project.weight"], weights["project.bias"])
    for block in range(grid.upsampling_blocks):
        name = f"blocks.{block}"
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = functional.conv2d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], padding=1).detach()
        norm = (weights[f"{name}.norm.{key}"].detach().numpy() for key in ("weight", "bias"))
        x = torch.from_numpy(np.maximum(normalised(x.numpy(), channels, *norm), 0))
    x = functional.conv2d(x, weights["classify.weight"], weights["classify.bias"])
    expected = functional.interpolate(x, size=(20, 20), mode="bilinear", align_corners=False)
    assert decoder(tokens).detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-9)


def test_a_scale_and_a_shift_for_each_channel_of_each_block_are_added_to_the_papers_size():
    shape = Shape((1024,), 256, 3, GridGeometry(512, 16))
    assert parameters(shape, "paper-norm") == 2_623_491 + 4 * 2 * 256
    assert multiply_adds(shape, "paper-norm") == multiply_adds(shape)
    assert UpsamplingBlock(256, 64).groups == 32  # the number that Wu & He recommend


def test_a_seed_starts_from_scale_one_whichever_seed_was_trained_before():
    grid = GridGeometry(16, 8)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 1, 5, 2, 2, generator=generator)
    masks = torch.randint(0, 2, (2, 1, 16, 16), generator=generator, dtype=torch.uint8)
    grids = TokenGrids(("a", "b"), range(1), tokens, masks)
    spec = FitSpec(epochs=2, batch=2, learning_rate=0.1, validate_epochs=1)
    training = Training(
        Decoder(Shape((5,), 8, 2, grid), "paper-norm"), grids, grids, grids, spec, "pooled", torch.device("cpu")
    )
    alone = train(training, 1).weights
    train(training, 0)
    after = train(training, 1).weights
    assert all(torch.equal(alone[name], after[name]) for name in alone)
    assert not torch.equal(alone["blocks.0.norm.weight"], torch.ones(8))
