"""Decoders by name: which of their fields belong to a run's identity, and that each kind is one decoder."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from fmcache.decoders.arithmetic import multiply_adds, parameters
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.registry import KINDS, settings, spec_of
from fmcache.errors import ResultsMismatch
from fmcache.grid import GridGeometry
from fmcache.specs import DecoderKind, DecoderSpec

GRIDS = [GridGeometry(64, 16), GridGeometry(70, 14), GridGeometry(64, 14), GridGeometry(64, 14, "crop")]


def shape_of(kind, grid):
    return Shape((7, 5) if kind == "multi-tap" else (12,), 6, 3, grid)


def test_every_name_that_a_recipe_may_use_is_registered():
    assert set(KINDS) == set(get_args(DecoderKind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_parameters_and_arithmetic_are_what_torch_counts(kind, grid):
    from torch.utils.flop_counter import FlopCounterMode

    decoder = Decoder(shape_of(kind, grid), kind, "direct").requires_grad_(False)
    initialise(decoder, 0)
    with FlopCounterMode(display=False) as counter:
        logits = decoder(torch.zeros(1, 12, grid.side, grid.side))
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]  # the final resizing is not counted
    assert 2 * multiply_adds(decoder.shape, kind) == convolutions
    assert parameters(decoder.shape, kind) == sum(p.numel() for p in decoder.parameters())
    assert logits.shape == (1, 3, grid.covered_px, grid.covered_px)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_values_depend_on_seed_and_name_alone(kind):
    before = torch.random.get_rng_state()
    decoders = [Decoder(shape_of(kind, GRIDS[0]), kind) for _ in range(3)]
    for parameter in decoders[1].parameters():  # as after the training of another seed
        parameter.data.fill_(float("nan"))
    for decoder, seed in zip(decoders, (3, 3, 4), strict=True):
        initialise(decoder, seed)
    one, same, other = (torch.cat([p.flatten() for p in decoder.parameters()]) for decoder in decoders)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_of_a_kind_are_equal_up_to_rounding(kind):
    results = []
    for form in ("direct", "fast"):
        decoder = Decoder(shape_of(kind, GRIDS[1]), kind, form).double()
        initialise(decoder, 2)
        tokens = torch.randn(2, 12, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        logits = decoder(tokens.requires_grad_())
        results.append([logits, *torch.autograd.grad(logits.square().sum(), [tokens, *decoder.parameters()])])
    for direct, fast in zip(*results, strict=True):
        assert (direct - fast).abs().max() <= 1e-9 * direct.abs().max().clamp(min=1)


def test_the_papers_decoder_has_the_identity_that_it_had_before_there_were_kinds():
    assert settings(DecoderSpec()) == {"width": 256}
    assert settings(DecoderSpec(kind="paper", width=32)) == {"width": 32}
    assert spec_of({"width": 32}) == DecoderSpec(width=32)


@pytest.mark.parametrize("kind", KINDS)
def test_biases_of_logits_can_start_at_the_shares_of_labels(kind):
    random, shares = (Decoder(shape_of(kind, GRIDS[0]), kind) for _ in range(2))
    initialise(random, 0)
    initialise(shares, 0, (0.7, 0.2, 0.1))
    for name, value in shares.named_parameters():
        if name == "classify.bias":
            assert value.softmax(0).tolist() == pytest.approx([0.7, 0.2, 0.1])
        else:
            assert torch.equal(value, random.get_parameter(name)), name
    spec = DecoderSpec(kind=kind, bias="label-shares")
    assert settings(spec)["bias"] == "label-shares"
    assert spec_of(settings(spec)) == spec


def test_a_decoder_of_a_later_release_is_refused():
    with pytest.raises(ResultsMismatch, match="does not have"):
        spec_of({"kind": "of-the-future", "width": 3})


def test_the_readme_states_the_size_of_every_kind():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)`(?: \(default\))? \|[^|]*\| ([\d,]+)(?: \(2 taps\))? \|$", text, re.M))
    shapes = {kind: Shape((1024,) * (1 + (kind == "multi-tap")), 256, 3, GridGeometry(512, 16)) for kind in KINDS}
    assert rows == {kind: f"{parameters(shape, kind):,}" for kind, shape in shapes.items()}
