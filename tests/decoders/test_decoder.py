import pytest
import torch

from fmcache.decoders.arithmetic import parameters
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.grid import GridGeometry


@pytest.mark.parametrize(("d", "patch", "blocks"), [(1024, 16, 4), (1536, 14, 4), (384, 8, 3)])
def test_the_decoder_has_as_many_parameters_as_the_protocol_says(d, patch, blocks):
    decoder = Decoder(Shape((d,), 256, 3, GridGeometry(512, patch)))
    width, labels = 256, 3
    formula = d * width + width + blocks * (9 * width * width + width) + width * labels + labels
    assert sum(p.numel() for p in decoder.parameters()) == parameters(decoder.shape) == formula
    if (d, patch) == (1024, 16):
        assert formula == 2_623_491  # the figure the protocol states


@pytest.mark.parametrize(("tile_px", "patch", "policy", "size"), [
    (64, 16, "fit", 64), (64, 14, "fit", 64), (64, 14, "pad", 64), (64, 14, "crop", 56), (64, 8, "fit", 64),
])  # fmt: skip
def test_logits_cover_the_scored_pixels_under_every_policy(tile_px, patch, policy, size):
    grid = GridGeometry(tile_px, patch, policy)
    logits = Decoder(Shape((5,), 4, 3, grid))(torch.zeros(2, 5, grid.side, grid.side))
    assert logits.shape == (2, 3, size, size)


def test_two_encoders_start_from_the_same_values_wherever_shapes_agree():
    one, other = Decoder(Shape((10,), 8, 3, GridGeometry(64, 16))), Decoder(Shape((20,), 8, 3, GridGeometry(64, 16)))
    initialise(one, 3)
    initialise(other, 3)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        if name.startswith("project"):
            continue
        assert torch.equal(a, b), name
    initialise(other, 4)
    assert not torch.equal(one.classify.weight, other.classify.weight)


def test_initialising_touches_no_global_generator():
    before = torch.random.get_rng_state()
    initialise(Decoder(Shape((10,), 8, 3, GridGeometry(64, 16))), 0)
    assert torch.equal(before, torch.random.get_rng_state())
