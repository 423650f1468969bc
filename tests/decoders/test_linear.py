"""The linear probe against a slow reference: one weighted sum a token, then bilinear interpolation pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from fmcache.decoders import decoder as decoder_module
from fmcache.decoders.arithmetic import multiply_adds, parameters
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.losses import segmentation_loss
from fmcache.decoders.registry import settings
from fmcache.grid import GridGeometry
from fmcache.specs import DecoderSpec, FitSpec

GRIDS = [GridGeometry(24, 8), GridGeometry(20, 8), GridGeometry(20, 8, "pad"), GridGeometry(20, 8, "crop")]


def resized(values, size):
    """Return a (row, col) grid at (size, size): pixel centres at (i + 0.5) * side / size - 0.5, clamped at the rim."""
    side = len(values)
    out = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            found = 0.0
            at = [max((i + 0.5) * side / size - 0.5, 0) for i in (y, x)]
            (top, left), (down, right) = [math.floor(a) for a in at], [a % 1 for a in at]
            for row, of_row in ((top, 1 - down), (top + 1, down)):
                for col, of_col in ((left, 1 - right), (left + 1, right)):
                    found += of_row * of_col * values[min(row, side - 1)][min(col, side - 1)]
            out[y, x] = found
    return out


@pytest.mark.parametrize("grid", GRIDS)
def test_logits_are_a_weighted_sum_of_each_token_resized_to_the_covered_pixels(grid):
    decoder = Decoder(Shape((5,), 99, 3, grid), "linear").double()
    initialise(decoder, 0)
    tokens = torch.randn(2, 5, grid.side, grid.side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = decoder(tokens).detach().numpy()
    weight, bias = (value.detach().numpy() for value in decoder.parameters())
    assert logits.shape == (2, 3, grid.covered_px, grid.covered_px)
    for view in range(2):
        for label in range(3):
            of_label = weight[label, :, 0, 0]
            scores = np.empty((grid.side, grid.side))
            for row, col in np.ndindex(scores.shape):
                scores[row, col] = sum(of_label * tokens[view, :, row, col].numpy()) + bias[label]
            expected = resized(scores, grid.logits_px)[: grid.covered_px, : grid.covered_px]
            assert logits[view, label] == pytest.approx(expected, abs=1e-12)


def test_its_size_is_that_of_the_formula_and_does_not_depend_on_the_width():
    narrow, wide = (Shape((1024,), width, 3, GridGeometry(512, 16)) for width in (1, 256))
    assert parameters(narrow, "linear") == parameters(wide, "linear") == 1024 * 3 + 3
    assert multiply_adds(wide, "linear") == 1024 * 3 * 32 * 32
    assert settings(DecoderSpec(kind="linear", width=7)) == {"kind": "linear"}


def test_nothing_at_the_size_of_the_tile_has_more_channels_than_labels():
    sizes = []
    grid = GridGeometry(64, 8)
    decoder = Decoder(Shape((128,), 256, 3, grid), "linear")
    initialise(decoder, 0)
    pack = torch.autograd.graph.saved_tensors_hooks(lambda value: sizes.append(value.numel()) or value, lambda v: v)
    with pack:
        decoder(torch.zeros(2, 128, 8, 8, requires_grad=True))
    assert max(sizes) <= 2 * 128 * 8 * 8  # the tokens themselves; the paper's decoder keeps 2 x 256 x 64 x 64 values


def test_it_learns_a_rule_that_is_linear_in_the_tokens():
    grid = GridGeometry(32, 8)
    tokens = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    truth = (tokens[:, 2] > 0).to(torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    decoder = Decoder(Shape((6,), 1, 2, grid), "linear")
    initialise(decoder, 0)
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        logits = decoder(tokens)
        logits.backward(segmentation_loss(logits, truth, FitSpec()).gradient)
        optimiser.step()
    weight = decoder.classify.weight[1, :, 0, 0] - decoder.classify.weight[0, :, 0, 0]
    assert weight.abs().argmax() == 2
    assert (decoder(tokens).argmax(1) == truth).float().mean() > 0.85


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_of_resizing_agree_and_so_do_their_gradients(monkeypatch, dtype):
    of_products = []
    for much_larger in (4, 1000):
        monkeypatch.setattr(decoder_module, "MUCH_LARGER", much_larger)
        logits = torch.randn(2, 3, 9, 9, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
        larger = decoder_module.resized(logits, 47)
        larger.backward(torch.randn(larger.shape, dtype=dtype, generator=torch.Generator().manual_seed(1)))
        of_products.append((larger.detach(), logits.grad))
    for products, interpolated in zip(*of_products, strict=True):
        torch.testing.assert_close(products, interpolated)
