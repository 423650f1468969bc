import pytest
import torch

from fmcache.decoders import decoder as decoder_module
from fmcache.decoders.arithmetic import parameters
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import reproducible
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


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 3, 4, 4), (1, 2, 5, 7)])
def test_doubling_by_sums_of_shifted_values_equals_interpolation(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_sums = decoder_module._doubled_columns(decoder_module._doubled_columns(x.mT).mT)
    torch.testing.assert_close(by_sums, decoder_module.doubled(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_repeats_itself_and_agrees_with_the_cpu():
    grid = GridGeometry(64, 14)
    tokens = torch.randn(2, 12, grid.side, grid.side, generator=torch.Generator().manual_seed(0))
    gradients = []
    for device in ("cpu", "cuda", "cuda"):
        decoder = Decoder(Shape((12,), 16, 3, grid), form="direct")
        initialise(decoder, 0)
        decoder.double().to(device)
        with reproducible(torch.device(device), "float32"):
            decoder(tokens.double().to(device)).square().sum().backward()
        gradients.append([parameter.grad.cpu() for parameter in decoder.parameters()])
    for on_cpu, on_gpu, again in zip(*gradients, strict=True):
        torch.testing.assert_close(on_cpu, on_gpu)
        assert torch.equal(on_gpu, again)


@pytest.mark.parametrize("form", ["direct", "fast"])
@pytest.mark.parametrize("patch", [16, 14])
def test_a_bfloat16_decoder_rounds_in_its_layers_and_nowhere_else(form, patch):
    grid = GridGeometry(64, patch)
    tokens = torch.randn(2, 12, grid.side, grid.side, generator=torch.Generator().manual_seed(0))
    exact, rounded = (Decoder(Shape((12,), 16, 3, grid), form=form, precision=p) for p in ("float32", "bfloat16"))
    initialise(exact, 0)
    initialise(rounded, 0)
    seen = []
    rounded.project.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    logits = rounded(tokens)
    assert seen == [torch.bfloat16]
    assert logits.dtype == torch.float32
    difference = (logits - exact(tokens)).norm() / exact(tokens).norm()
    assert 1e-4 < difference < 2e-2
    logits.square().sum().backward()
    assert {parameter.grad.dtype for parameter in rounded.parameters()} == {torch.float32}


def test_settings_of_the_process_that_change_numbers_on_a_gpu_are_fixed_and_given_back():
    """The settings exist without a GPU."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul

    def settings():
        return convolutions.allow_tf32, convolutions.benchmark, products.allow_tf32

    own = settings()
    try:
        for theirs in ((True, True, True), (False, False, False)):
            convolutions.allow_tf32, convolutions.benchmark, products.allow_tf32 = theirs
            for precision, tf32 in (("float32", True), ("float32-ieee", False), ("bfloat16", True)):
                with reproducible(torch.device("cuda"), precision):
                    assert torch.are_deterministic_algorithms_enabled()
                    assert settings() == (tf32, False, False)
                with pytest.raises(ZeroDivisionError), reproducible(torch.device("cuda"), precision):
                    raise ZeroDivisionError
                assert settings() == theirs
                assert not torch.are_deterministic_algorithms_enabled()
    finally:
        convolutions.allow_tf32, convolutions.benchmark, products.allow_tf32 = own
