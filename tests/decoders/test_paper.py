"""The paper's decoder against the same decoder in plain torch, bit by bit in the direct form."""

import pytest
import torch
from torch.nn import functional

from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.grid import GridGeometry

GRIDS = [GridGeometry(64, 16), GridGeometry(70, 16), GridGeometry(64, 14, "pad"), GridGeometry(64, 14, "crop")]

FIRST_OF_SEED_7 = {
    "project.weight": -1.58e-05,
    "project.bias": 0.1494156,
    "blocks.0.conv.weight": 0.1189359,
    "blocks.0.conv.bias": -0.083522,
    "blocks.1.conv.weight": 0.0990404,
    "blocks.1.conv.bias": -0.024935,
    "blocks.2.conv.weight": -0.0108369,
    "blocks.2.conv.bias": -0.0452903,
    "blocks.3.conv.weight": -0.1229624,
    "blocks.3.conv.bias": 0.1446664,
    "classify.weight": -0.2900164,
    "classify.bias": -0.0702049,
}
"""The first value of each parameter, as releases set it that had this decoder only."""


def plain(weights, tokens, grid):
    """Return logits by the paper's equations 4 and 5, without any code of decoders."""
    x = functional.conv2d(tokens, weights["project.weight"], weights["project.bias"])
    blocks = 0
    while f"blocks.{blocks}.conv.weight" in weights:
        name = f"blocks.{blocks}.conv"
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = functional.relu(functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
        blocks += 1
    x = functional.conv2d(x, weights["classify.weight"], weights["classify.bias"])
    if x.shape[-1] != grid.logits_px:
        x = functional.interpolate(x, size=(grid.logits_px, grid.logits_px), mode="bilinear", align_corners=False)
    return x[..., : grid.covered_px, : grid.covered_px], blocks


@pytest.mark.parametrize("grid", GRIDS)
def test_logits_and_gradients_are_those_of_plain_torch_bit_by_bit(grid):
    decoder = Decoder(Shape((5,), 4, 3, grid), form="direct")
    initialise(decoder, 1)
    tokens = torch.randn(2, 5, grid.side, grid.side, generator=torch.Generator().manual_seed(0))
    weights = {name: value.detach().clone().requires_grad_() for name, value in decoder.named_parameters()}
    expected, blocks = plain(weights, tokens, grid)
    assert blocks == grid.upsampling_blocks
    logits = decoder(tokens)
    assert torch.equal(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for name, value in decoder.named_parameters():
        assert torch.equal(value.grad, weights[name].grad), name


def test_initial_values_are_those_of_every_earlier_release():
    decoder = Decoder(Shape((5,), 4, 3, GridGeometry(32, 16)))
    initialise(decoder, 7)
    found = {name: value.flatten()[0].item() for name, value in decoder.named_parameters()}
    assert found == pytest.approx(FIRST_OF_SEED_7, abs=1e-7)
