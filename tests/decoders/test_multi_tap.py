"""The decoder of several taps against the paper's: a sum of projections is one projection of all channels."""

import pytest
import torch

from fmcache.decoders.arithmetic import multiply_adds, parameters
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.grid import GridGeometry

GRID = GridGeometry(40, 8)
CHANNELS = (3, 5, 4)


@pytest.mark.parametrize("form", ["direct", "fast"])
def test_logits_are_those_of_the_papers_decoder_with_the_projections_side_by_side(form):
    decoder = Decoder(Shape(CHANNELS, 6, 3, GRID), "multi-tap", form).double()
    initialise(decoder, 0)
    plain = Decoder(Shape((12,), 6, 3, GRID), form="direct").double()
    weights = decoder.state_dict()
    projections = [[weights.pop(f"project.{i}.{key}") for i in range(3)] for key in ("weight", "bias")]
    weights |= {"project.weight": torch.cat(projections[0], dim=1), "project.bias": sum(projections[1])}
    plain.load_state_dict(weights)
    tokens = torch.randn(2, 12, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decoder(tokens), plain(tokens), atol=1e-12)


def test_each_tap_reads_its_own_channels():
    decoder = Decoder(Shape(CHANNELS, 6, 3, GRID), "multi-tap")
    initialise(decoder, 0)
    tokens = torch.randn(1, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    before = decoder(tokens)
    decoder.project[1].weight.data.zero_()  # the second tap: channels 3 to 7
    without = decoder(tokens)
    tokens[:, 3:8] = 7
    assert torch.equal(decoder(tokens), without)
    assert not torch.equal(before, without)


def test_its_size_is_that_of_the_formula():
    shape = Shape((384, 768), 32, 3, GridGeometry(128, 16))
    papers = Shape((384 + 768,), 32, 3, GridGeometry(128, 16))
    assert parameters(shape, "multi-tap") == parameters(papers) + 32
    assert multiply_adds(shape, "multi-tap") == multiply_adds(papers)
