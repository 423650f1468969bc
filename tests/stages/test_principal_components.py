"""Token grids as colours: known axes, a slow reference, and grids of any kind."""

import numpy as np
import pytest
import torch

from fmcache.decoders.batches import TokenGrids
from fmcache.stages import principal_components
from fmcache.stages.principal_components import token_colours


def grids(tokens):
    """Return grids of (tile, channel, row, col) as fit holds them."""
    tokens = torch.as_tensor(tokens)[:, None]
    masks = torch.zeros(len(tokens), 1, 1, 1, dtype=torch.uint8)
    return TokenGrids(tuple(f"t{i}" for i in range(len(tokens))), range(1), tokens, masks)


def drawn(tiles=3, channels=12, side=6, seed=0):
    """Return tokens with a few strong directions."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(channels, 3)) * [8, 4, 2]
    tokens = np.einsum("ck,tkij->tcij", mix, rng.normal(size=(tiles, 3, side, side)))
    return (tokens + 0.1 * rng.normal(size=tokens.shape) + 5).astype(np.float32)


def slow(tokens):
    """Return the colours of all tiles by numpy's covariance, (tile, row, col, 3) float64 from 0 to 255."""
    flat = np.moveaxis(tokens.astype(np.float64), 1, -1)
    vectors = np.linalg.eigh(np.cov(flat.reshape(-1, flat.shape[-1]).T))[1][:, :-4:-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    projected = (flat - flat.mean(axis=(0, 1, 2))) @ vectors
    low, high = np.percentile(projected.reshape(-1, 3), (2, 98), axis=0)
    return ((projected - low) / (high - low)).clip(0, 1) * 255


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_colours_equal_a_slow_reference(dtype):
    tokens = torch.from_numpy(drawn()).to(dtype)
    found = token_colours(grids(tokens), ("t0", "t1", "t2"))
    for i, expected in enumerate(slow(tokens.numpy())):
        assert found[f"t{i}"].dtype == np.uint8
        assert np.abs(found[f"t{i}"] - expected).max() <= 0.5 + 1e-3


def test_red_is_the_channel_that_varies_most_and_grows_with_it():
    """Channel 2 varies most, channel 0 next; channel 1 is constant. Two colours are by hand, the third is constant."""
    tokens = np.zeros((1, 3, 1, 4), np.float32)
    tokens[0, 2], tokens[0, 0], tokens[0, 1] = [-10, -10, 10, 10], [1, -1, 1, -1], 7
    red, green, blue = np.moveaxis(token_colours(grids(tokens), ("t0",))["t0"][0], -1, 0)
    assert red.tolist() == [0, 0, 255, 255]
    assert green.tolist() == [255, 0, 255, 0]
    assert len(set(blue.tolist())) == 1


def test_a_grid_that_is_constant_or_has_two_channels_has_a_picture():
    assert not token_colours(grids(np.ones((2, 5, 2, 2), np.float32)), ("t0", "t1"))["t1"].any()
    two = token_colours(grids(drawn(channels=2)), ("t1",))["t1"]
    assert two[..., 0].any()
    assert two[..., 1].any()
    assert not two[..., 2].any()


def test_only_the_chosen_tiles_count_and_mapped_grids_give_the_same(tmp_path):
    tokens = drawn(tiles=5)
    chosen = token_colours(grids(tokens), ("t1", "t3"))
    alone = token_colours(grids(tokens[[1, 3]]), ("t0", "t1"))
    assert np.array_equal(chosen["t1"], alone["t0"])
    assert np.array_equal(chosen["t3"], alone["t1"])
    mapped = np.memmap(tmp_path / "grids", tokens.dtype, "w+", shape=tokens.shape)
    mapped[:] = tokens
    assert np.array_equal(token_colours(grids(mapped), ("t1", "t3"))["t3"], chosen["t3"])


def test_components_of_sampled_tokens_are_almost_those_of_all_and_every_column_is_sampled(monkeypatch):
    tokens = drawn(tiles=20, side=16)
    tokens[..., 1::2] *= -1  # even columns alone would have another mean
    everything = token_colours(grids(tokens), tuple(f"t{i}" for i in range(20)))
    monkeypatch.setattr(principal_components, "MOST_TOKENS", 20 * 16 * 16 // 4)
    sampled = token_colours(grids(tokens), tuple(f"t{i}" for i in range(20)))
    assert 0 < np.mean([np.abs(sampled[t].astype(float) - everything[t]).mean() for t in sampled]) < 12
