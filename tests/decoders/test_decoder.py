import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcache.decoders.arithmetic import parameters
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.losses import segmentation_loss
from fmcache.grid import GridGeometry
from fmcache.specs import FitSpec


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


def slow_loss(logits, truth):
    """Cross-entropy and Dice loss pixel by pixel, in float64."""
    views, labels, height, width = logits.shape
    nll, seen = 0.0, 0
    overlap, p_sum, g_sum = np.zeros(labels), np.zeros(labels), np.zeros(labels)
    for v in range(views):
        for y in range(height):
            for x in range(width):
                true = truth[v, y, x]
                if true == 255:
                    continue
                p = np.exp(logits[v, :, y, x] - logits[v, :, y, x].max())
                p /= p.sum()
                nll -= np.log(p[true])
                seen += 1
                overlap[true] += p[true]
                p_sum += p
                g_sum[true] += 1
    dice = [1 - 2 * overlap[c] / (p_sum[c] + g_sum[c]) for c in range(labels) if g_sum[c]]
    return nll / max(seen, 1), float(np.mean(dice)) if dice else 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(0, 2), min_size=1), st.floats(0, 1))
def test_the_loss_equals_a_slow_reference_with_ignored_pixels_and_absent_labels(seed, labels, ignored):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (2, 3, 4, 5))
    truth = rng.choice(sorted(labels), (2, 4, 5))
    truth[rng.random(truth.shape) < ignored] = 255
    loss = segmentation_loss(torch.from_numpy(logits), torch.from_numpy(truth.astype("uint8")), FitSpec())
    cross_entropy, dice = slow_loss(logits, truth)
    assert loss.cross_entropy.item() == pytest.approx(cross_entropy, abs=1e-9)
    assert loss.dice.item() == pytest.approx(dice, abs=1e-9)
    assert loss.total.item() == pytest.approx(cross_entropy + dice, abs=1e-9)


def test_ignored_pixels_have_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    truth = torch.zeros(1, 4, 4, dtype=torch.uint8)
    truth[0, 2:] = 255
    segmentation_loss(logits, truth, FitSpec()).total.backward()
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[:, :, :2] != 0).any()
