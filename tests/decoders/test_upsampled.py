"""The fast form of the decoder against the direct form: the same numbers up to rounding, forward and backward."""

import copy

import pytest
import torch

from fmcache.decoders import decoder as decoder_module
from fmcache.decoders import upsampled
from fmcache.decoders.decoder import Block, Decoder, FastBlock, initialise
from fmcache.decoders.layers import Shape, UpsamplingBlock
from fmcache.decoders.losses import segmentation_loss
from fmcache.grid import GridGeometry
from fmcache.specs import FitSpec

SHAPES = [(1, 4, 37, 37), (2, 3, 5, 5), (3, 8, 1, 1), (2, 5, 2, 3), (1, 6, 7, 1), (5, 4, 4, 6)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(params=[1, 6000, 2**30], ids=["a row a piece", "bands and groups", "one piece"])
def piece_bytes(request, monkeypatch):
    monkeypatch.setattr(upsampled, "PIECE_BYTES", {"cpu": request.param, "cuda": request.param})
    monkeypatch.setattr(upsampled, "KERNELS_A_PIECE", 0)


def values(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, generator=generator)


def block_pair(width, labels, dtype, normalised=False):
    """Return a direct and a fast block with the same parameters, and a classification."""
    layer = UpsamplingBlock(width, 0, normalised)
    blocks = Block(layer), FastBlock(layer)
    classify = torch.nn.utils.skip_init(torch.nn.Conv2d, width, labels, 1).to(dtype)
    for block in blocks:
        block.to(dtype)
        for i, parameter in enumerate([*block.parameters(), *classify.parameters()]):
            parameter.data = values(*parameter.shape, dtype=dtype, seed=i) / 3
    return *blocks, classify


def gradients(output, inputs):
    return torch.autograd.grad(output, inputs, values(*output.shape, dtype=output.dtype, seed=9))


def assert_close(found, expected):
    scale = expected.abs().max().clamp(min=1)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= TOLERANCE[expected.dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("labels", [0, 3], ids=["inner block", "last block"])
@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
def test_a_fast_block_gives_results_and_gradients_of_the_direct_one(piece_bytes, shape, dtype, labels, normalised):
    direct, fast, classify = block_pair(shape[1], max(labels, 1), dtype, normalised)
    x = values(*shape, dtype=dtype, seed=5).requires_grad_()
    results = []
    for block in (direct, fast):
        inputs = [x, *block.parameters(), *(classify.parameters() if labels else ())]
        output = block.classified(x, classify) if labels else block(x)
        results.append([output, *gradients(output, inputs)])
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)


def test_a_wrong_border_would_be_seen(monkeypatch):
    direct, fast, _ = block_pair(4, 1, torch.float64)
    x = values(1, 4, 5, 5)
    rim = upsampled.rim
    monkeypatch.setattr(upsampled, "rim", lambda *args: tuple(0 * part for part in rim(*args)))
    difference = (direct(x) - fast(x)).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-10
    assert difference.max() > 1e-2


def test_gradients_equal_finite_differences(piece_bytes):
    inputs = [values(2, 2, 3, 2), values(2, 2, 3, 3), values(2), values(3, 2, 1, 1), values(3)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(upsampled.conv, inputs[:3])
    assert torch.autograd.gradcheck(upsampled.conv_relu, inputs[:3])
    assert torch.autograd.gradcheck(upsampled.conv_relu_classify, inputs)


def test_pieces_cover_every_row_of_every_sample_once(piece_bytes):
    for shape in SHAPES:
        x = torch.zeros(shape)
        larger = torch.zeros(shape[0], 1, 2 * shape[2], 1)
        for piece in upsampled.pieces(x):
            piece.larger(larger).add_(1)
        assert (larger == 1).all()


@pytest.mark.parametrize(("tile_px", "patch", "policy"), [
    (8, 8, "fit"), (8, 1, "fit"), (16, 8, "fit"), (32, 8, "fit"), (36, 5, "pad"), (64, 8, "crop"), (111, 3, "fit"),
    (64, 4, "fit"), (32, 1, "fit"),
])  # fmt: skip
def test_logits_and_gradients_are_equal_for_every_number_of_blocks(tile_px, patch, policy):
    grid = GridGeometry(tile_px, patch, policy)
    direct, fast = (Decoder(Shape((5,), 4, 3, grid), form=form).double() for form in ("direct", "fast"))
    initialise(direct, 1)
    fast.load_state_dict(direct.state_dict())
    tokens = values(2, 5, grid.side, grid.side)
    results = []
    for decoder in (direct, fast):
        logits = decoder(tokens)
        results.append([logits, *gradients(logits, list(decoder.parameters()))])
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)


def test_a_state_dict_moves_between_the_forms_and_initial_values_are_the_same():
    grid = GridGeometry(32, 8)
    direct, fast = Decoder(Shape((5,), 4, 3, grid), form="direct"), Decoder(Shape((5,), 4, 3, grid), form="fast")
    initialise(direct, 3)
    initialise(fast, 3)
    for (name, a), (other, b) in zip(direct.state_dict().items(), fast.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    initialise(fast, 4)
    direct.load_state_dict(fast.state_dict(), strict=True)
    assert torch.equal(direct.blocks[0].conv.weight, fast.blocks[0].conv.weight)


def losses_of_training(form, dtype):
    grid = GridGeometry(37, 5)
    decoder = Decoder(Shape((6,), 8, 3, grid), form=form)
    initialise(decoder, 0)
    decoder.to(dtype)
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=1e-2)
    truth = torch.arange(37 * 37).reshape(1, 37, 37).repeat(4, 1, 1) // 400 % 3
    losses = []
    for step in range(8):
        tokens = values(4, 6, grid.side, grid.side, dtype=dtype, seed=step % 2)
        logits = decoder(tokens)
        loss = segmentation_loss(logits, truth.to(torch.uint8), FitSpec())
        optimiser.zero_grad()
        logits.backward(loss.gradient)
        optimiser.step()
        losses.append(loss.total.item())
    return losses


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_training_gives_the_same_losses_in_both_forms(dtype, tolerance):
    direct, fast = losses_of_training("direct", dtype), losses_of_training("fast", dtype)
    assert fast == pytest.approx(direct, abs=tolerance)
    assert direct[-1] < direct[0] - 0.03  # it did train


def test_the_fast_form_is_deterministic():
    assert losses_of_training("fast", torch.float32) == losses_of_training("fast", torch.float32)


@pytest.mark.parametrize("form", ["direct", "fast"])
def test_inference_mode_and_a_copy_of_the_decoder_give_the_same_logits(form):
    grid = GridGeometry(32, 8)
    decoder = Decoder(Shape((5,), 4, 3, grid), form=form)
    initialise(decoder, 0)
    tokens = values(2, 5, 4, 4, dtype=torch.float32)
    with torch.inference_mode():
        inferred = copy.deepcopy(decoder)(tokens)
    assert torch.equal(inferred, decoder(tokens))


def test_under_autocast_the_fast_form_is_about_as_near_to_full_precision_as_the_direct_one():
    # how near that is depends on the processor: rounding moves some activations across zero
    def results(block, x, autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = block.classified(x, classify)
        assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
        found = [y.float(), *gradients(y.float(), [x, *block.parameters(), *classify.parameters()])]
        assert {value.dtype for value in found} == {torch.float32}
        return [value.detach() for value in found]

    direct, fast, classify = block_pair(16, 3, torch.float32)
    off = []  # by input and by result: squared errors of the direct and of the fast form, over the squared result
    for seed in range(8):
        x = values(2, 16, 9, 9, dtype=torch.float32, seed=seed).requires_grad_()
        exact, plain, quick = results(direct, x, False), results(direct, x, True), results(fast, x, True)
        off.append(
            [
                [(v - e).square().sum() / e.square().sum() for v in pair]
                for e, *pair in zip(exact, plain, quick, strict=True)
            ]
        )
    of_direct, of_fast = torch.tensor(off).mean(dim=0).sqrt().T
    assert (of_fast < 2 * of_direct).all(), (of_direct, of_fast)
    assert (of_fast < 0.1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("labels", [0, 3])
def test_a_fast_block_agrees_with_the_direct_one_on_a_gpu(labels):
    direct, fast, classify = (module.cuda() for module in block_pair(8, max(labels, 1), torch.float64))
    x = values(2, 8, 37, 37).cuda().requires_grad_()
    results = []
    for block in (direct, fast):
        output = block.classified(x, classify) if labels else block(x)
        upper = values(*output.shape, seed=9).cuda()
        results.append([output, *torch.autograd.grad(output, [x, *block.parameters()], upper)])
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)


def last_block_gradients(block, classify, x):
    return torch.autograd.grad(block.classified(x, classify).square().sum(), [x, *block.parameters()])


def test_a_kept_activation_changes_no_bit_and_uses_the_same_memory_at_each_step(monkeypatch):
    _, fast, classify = block_pair(8, 3, torch.float32)
    of_share = []
    for share in (0.0, 0.5):
        monkeypatch.setattr(decoder_module, "KEPT_SHARE", share)
        x = values(4, 8, 9, 9, dtype=torch.float32).requires_grad_()
        of_share.append(last_block_gradients(fast, classify, x))
        assert (fast._kept is not None) == bool(share)
    for again, kept in zip(*of_share, strict=True):
        assert torch.equal(again, kept)
    place = fast._kept.data_ptr()
    smaller = values(2, 8, 9, 9, dtype=torch.float32).requires_grad_()  # the last batch of an epoch
    last_block_gradients(fast, classify, smaller)
    assert fast._kept.data_ptr() == place
    with torch.inference_mode():  # another size, as in validation
        fast.classified(values(1, 8, 5, 5, dtype=torch.float32), classify)
    assert fast._kept.data_ptr() == place


def test_a_backward_pass_after_another_forward_pass_is_refused():
    _, fast, classify = block_pair(8, 3, torch.float32)
    x = values(1, 8, 4, 4, dtype=torch.float32).requires_grad_()
    first, _ = fast.classified(x, classify), fast.classified(x, classify)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()
