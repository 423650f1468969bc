import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fmcache.decoders import losses
from fmcache.decoders.losses import segmentation_loss
from fmcache.specs import FitSpec


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
    loss = segmentation_loss(torch.from_numpy(logits.copy()), torch.from_numpy(truth.astype("uint8")), FitSpec())
    cross_entropy, dice = slow_loss(logits, truth)
    assert loss.cross_entropy.item() == pytest.approx(cross_entropy, abs=1e-9)
    assert loss.dice.item() == pytest.approx(dice, abs=1e-9)
    assert loss.total.item() == pytest.approx(cross_entropy + dice, abs=1e-9)


def plain_loss(logits, truth, spec):
    """The same loss by torch's own functions, for truth that is not ignored everywhere; its gradient is autograd's."""
    p = logits.movedim(1, -1)[truth != 255].softmax(-1)
    target = functional.one_hot(truth[truth != 255].long(), logits.shape[1])
    dice = 2 * (p * target).sum(0) / (p + target).sum(0)
    entropy = functional.cross_entropy(logits, truth.long(), ignore_index=255)
    return spec.cross_entropy_weight * entropy + spec.dice_weight * (1 - dice[target.sum(0) > 0]).mean()


def example(seed, dtype, labels=3, ignored=0.3, views=3, size=(14, 9)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (views, labels, *size))
    truth = rng.integers(0, labels, (views, *size)).astype("uint8")
    truth[truth == 1] = 0  # one label does not occur
    truth[rng.random(truth.shape) < ignored] = 255
    return torch.from_numpy(logits).to(dtype), torch.from_numpy(truth)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
@pytest.mark.parametrize("labels", [2, 3, 7])
@pytest.mark.parametrize("piece_bytes", [1, 500, 2**20])
def test_the_gradient_equals_that_of_autograd_in_pieces_of_any_size(monkeypatch, dtype, tolerance, labels, piece_bytes):
    monkeypatch.setitem(losses.PIECE_BYTES, "cpu", piece_bytes)
    logits, truth = example(labels, dtype, labels)
    spec = FitSpec(cross_entropy_weight=0.7, dice_weight=1.9)
    plain = logits.clone().requires_grad_()
    expected = plain_loss(plain, truth, spec)
    expected.backward()
    loss = segmentation_loss(logits, truth, spec)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(loss.gradient, plain.grad, rtol=0, atol=tolerance * plain.grad.abs().max().item())


def test_the_gradient_takes_the_place_of_the_logits_also_in_a_part_of_a_larger_map():
    whole, truth = example(0, torch.float32, size=(16, 16))
    plain = whole.clone().requires_grad_()
    plain_loss(plain[..., :12, :12], truth[..., :12, :12], FitSpec()).backward()
    loss = segmentation_loss(whole[..., :12, :12], truth[..., :12, :12], FitSpec())
    assert loss.gradient.data_ptr() == whole.data_ptr()
    torch.testing.assert_close(whole[..., :12, :12], plain.grad[..., :12, :12], rtol=0, atol=1e-7)


def test_ignored_pixels_have_no_gradient():
    truth = torch.zeros(1, 4, 4, dtype=torch.uint8)
    truth[0, 2:] = 255
    gradient = segmentation_loss(torch.randn(1, 3, 4, 4), truth, FitSpec()).gradient
    assert (gradient[:, :, 2:] == 0).all()
    assert (gradient[:, :, :2] != 0).any()


def test_a_batch_without_truth_has_loss_and_gradient_zero():
    loss = segmentation_loss(torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), 255, dtype=torch.uint8), FitSpec())
    assert loss.total == loss.cross_entropy == loss.dice == 0
    assert (loss.gradient == 0).all()


def test_logits_of_any_size_give_finite_numbers():
    logits = torch.tensor([[1e30, -1e30], [3e38, 0.0]])[None, ..., None].expand(1, 2, 2, 1).clone()
    loss = segmentation_loss(logits, torch.tensor([[[1], [0]]], dtype=torch.uint8), FitSpec())
    assert torch.isfinite(loss.gradient).all()


def test_a_result_that_its_own_backward_pass_reads_is_refused():
    values = torch.randn(1, 2, 3, 3, requires_grad=True)
    logits = values.exp()
    loss = segmentation_loss(logits, torch.zeros(1, 3, 3, dtype=torch.uint8), FitSpec())
    with pytest.raises(RuntimeError, match="inplace"):
        logits.backward(loss.gradient)
