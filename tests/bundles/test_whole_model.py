"""The whole model equals the stages' own encoder and decoder, for every way from tiles to a grid; rounding is exact."""

import numpy as np
import pytest
import torch

from fmcache.bundles import tracing
from fmcache.bundles.whole_model import WholeModel, in_direct_form, rounded
from fmcache.cache.encoding import store_of
from fmcache.decoders.decoder import Decoder, FastBlock, initialise
from fmcache.decoders.fitted import FittedDecoder
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import Scale
from fmcache.encoders.load import load_encoder
from fmcache.encoders.taps import grid_at, width_at
from fmcache.encoders.tokens import tapped_grids
from fmcache.errors import SpecError
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")


def encoder_of(card, **changes):
    return load_encoder(EncoderChoice(str(card), random_weights=True, **changes), CPU)


def fitted_for(encoder, taps, grid, kind="paper", form="fast"):
    """An untrained decoder with random values in all parameters, and a standardisation."""
    channels = tuple(width_at(encoder, tap) for tap in taps)
    decoder = Decoder(Shape(channels, 8, 3, grid_at(encoder, taps[0], grid)), kind, form)
    initialise(decoder, 0)
    mean, std = torch.linspace(-1, 1, sum(channels)), torch.linspace(0.5, 2, sum(channels))
    return FittedDecoder(decoder.eval(), ("a", "b", "c"), Scale(mean[:, None, None], std[:, None, None]))


def tiles_of(side, count=2):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


WAYS = [
    (40, "fit", ("last",), "paper"), (40, "pad", ("last",), "paper-norm"), (40, "crop", ("last",), "linear"),
    (48, "fit", ("1", "last"), "multi-tap"), (40, "pad", ("1+norm",), "paper"), (13, "pad", ("last",), "paper"),
]  # fmt: skip


OF_CONTROLS = [("raw-pixels", *WAYS[0]), ("raw-pixels", *WAYS[2]), ("colour-texture", *WAYS[1])]


@pytest.mark.parametrize(("card", "side", "policy", "taps", "kind"), [*(("tiny", *way) for way in WAYS), *OF_CONTROLS])
def test_its_trace_equals_the_stages_own_way(tiny_card, card, side, policy, taps, kind):
    encoder = encoder_of(tiny_card) if card == "tiny" else load_encoder(EncoderChoice(card), CPU)
    grid = GridGeometry(side, 16, policy)
    fitted, tiles = fitted_for(encoder, taps, grid, kind), tiles_of(side)
    tokens = torch.cat(tapped_grids(encoder, tiles, grid, "float32", taps), dim=1).half().float()
    with torch.no_grad():
        expected = fitted(tokens).softmax(1)
        pixels = tiles.permute(0, 3, 1, 2) / 255
        model = WholeModel(encoder, taps, store_of("float16"), fitted)
        traced = tracing.trace(model, pixels[:1])
        found = traced(pixels)
    assert found.shape == (2, 3, grid.covered_px, grid.covered_px)
    assert grid.covered_px == (32 if policy == "crop" else side)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_the_direct_form_equals_the_fast_form_up_to_rounding(tiny_card):
    encoder, grid = encoder_of(tiny_card), GridGeometry(64, 16)
    fast = fitted_for(encoder, ("last",), grid)
    direct = in_direct_form(fast)
    tokens = torch.randn(2, 48, 4, 4, generator=torch.Generator().manual_seed(0))
    assert any(isinstance(one, FastBlock) for one in fast.modules())
    assert not any(isinstance(one, FastBlock) for one in direct.modules())
    torch.testing.assert_close(direct(tokens), fast(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["float16", "float32", "float16-round5", "float16-round1", "float32-round12"])
def test_tokens_are_rounded_as_the_cache_rounds_them(name):
    store, rng = store_of(name), np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=4000), rng.normal(size=4000) * 1e-5, rng.normal(size=4000) * 1e3])
    ties = np.arange(-64, 64) / 32 * (1 + 2.0**-6)  # halfway between two values of 5 bits
    values = np.concatenate([values, ties, [0.0, -0.0]]).astype(np.float32)
    expected = store.rounded(values.astype(store.dtype)).astype(np.float32)
    found = rounded(torch.from_numpy(values), store).numpy()
    np.testing.assert_array_equal(found, expected)


def test_tokens_beyond_the_stored_type_become_its_largest_value():
    found = rounded(torch.tensor([1e6, -1e6]), store_of("float16"))
    assert found.tolist() == [65504.0, -65504.0]


def test_an_encoder_without_the_tap_is_refused(tiny_card):
    encoder, grid = encoder_of(tiny_card), GridGeometry(64, 16)
    with pytest.raises(SpecError, match="no block 3 to tap"):
        WholeModel(encoder, ("3",), store_of("float16"), fitted_for(encoder, ("last",), grid))
