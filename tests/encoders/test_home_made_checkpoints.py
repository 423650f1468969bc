"""Checkpoints as training code leaves them: what is wrapped around an encoder's weights comes off, or is named."""

import argparse
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fmcache.encoders.load import load_encoder
from fmcache.encoders.reading import read_weights
from fmcache.errors import WeightsMismatch
from fmcache.specs import EncoderChoice

HEADS = {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.last.weight": torch.ones(2)}


def load(card):
    return load_encoder(EncoderChoice(str(card)), torch.device("cpu"), offline=True).module


def below(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def chunked(state, through):
    """Name the two blocks as two chunks of one block, numbered through all chunks or again from 0 in each."""
    new = r"blocks.\1.\1." if through else r"blocks.\1.0."
    return {re.sub(r"blocks\.(\d)\.", new, name): tensor for name, tensor in state.items()}


def compiled(state):
    return {re.sub(r"(blocks\.\d\.)", r"_orig_mod.\1_fsdp_wrapped_module.", name): t for name, t in state.items()}


SHAPES = {
    "teacher of DINOv2": lambda s: {"teacher": below("backbone.", s)},
    "teacher of DINOv2, in chunks": lambda s: {"teacher": below("backbone.", chunked(s, True))},
    "chunks numbered from 0": lambda s: {"model": chunked(s, False)},
    "student alone": lambda s: {"student": below("module.backbone.", s), "epoch": 3},
    "Lightning, model": lambda s: {"state_dict": below("model.", s), "callbacks": {"best": torch.ones(1)}, "loops": {}},
    "Lightning, net.encoder": lambda s: {"state_dict": below("net.encoder.", s), "hyper_parameters": {"lr": 0.1}},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "DDP inside a wrapper": lambda s: {"net": below("module.", s)},
    "DeepSpeed": lambda s: {"module": s},
    "averaged weights": lambda s: {"model_ema": below("module.", s)},
    "FSDP and torch.compile": lambda s: below("_orig_mod._fsdp_wrapped_module.module.", compiled(s)),
    "a wrapper nobody knows": lambda s: {"my_vit": s, "epoch": 3},
    "wrappers in wrappers": lambda s: {"state_dict": {"model": {"ema": below("encoder.module.", s)}}},
    "arguments of the script": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, out="x")},
    "the loss has weights too": lambda s: {"teacher": s, "dino_loss": {"center": torch.ones(2)}},
    "parameters": lambda s: {"model": {name: torch.nn.Parameter(tensor) for name, tensor in s.items()}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_training_code_wraps_around_weights_comes_off(write_card, tiny_model, tmp_path, shape):
    state = tiny_model().state_dict()
    torch.save(SHAPES[shape](state), tmp_path / "own.pth")
    loaded = load(write_card(weights={"file": "own.pth"})).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "wrap", [lambda s: {"teacher": s}, lambda s: below("module.", s), lambda s: below("model.teacher.", s)]
)
@pytest.mark.parametrize("given", [["dino_head", "ibot_head"], ["module.dino_head.", "dino_head.", "ibot_head."]])
def test_heads_are_dropped_before_prefixes_come_off(write_card, tiny_model, tmp_path, wrap, given):
    state = tiny_model().state_dict()
    torch.save(wrap(below("backbone.", state) | HEADS), tmp_path / "own.pth")
    loaded = load(write_card(weights={"file": "own.pth", "drop": given})).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_dropped_head_does_not_take_a_part_of_the_encoder_of_its_name_along(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict()
    save_file(below("backbone.", state) | {"norm.weight": torch.ones(7)}, tmp_path / "own.pth")
    loaded = load(write_card(weights={"file": "own.pth", "drop": ["norm."]})).state_dict()
    assert torch.equal(loaded["norm.weight"], state["norm.weight"])


def line_of(message, start="drop: "):
    return yaml.safe_load(re.search(rf"`({start}\[?[^`]*)`", message)[1])


@pytest.mark.parametrize(
    "stored",
    [
        lambda s: {"teacher": below("backbone.", s) | HEADS},
        lambda s: {"state_dict": below("net.vit.", s) | below("net.", HEADS) | {"logit_scale": torch.ones(())}},
        lambda s: below("a.backbone.", s) | below("a.backbone.pool.", {"q": torch.ones(2)}) | below("b.", HEADS),
        lambda s: s | {"head.weight": torch.ones(2)},
        lambda s: below("teacher_backbone.", s) | below("student_backbone.", s) | below("teacher_", HEADS),
        lambda s: below("x.", chunked(s, True)) | HEADS,
    ],
)  # fmt: skip
def test_the_line_that_the_message_names_makes_the_file_fit(write_card, tiny_model, tmp_path, stored):
    state = tiny_model().state_dict()
    torch.save(stored(state), tmp_path / "own.pth")
    with pytest.raises(WeightsMismatch, match="does not fit 'tiny'") as caught:
        load(write_card(weights={"file": "own.pth"}))
    loaded = load(write_card(weights={"file": "own.pth", **line_of(caught.value.next_step)})).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_line_keeps_what_the_card_drops_already(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict()
    torch.save({"teacher": below("backbone.", state) | HEADS}, tmp_path / "own.pth")
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card(weights={"file": "own.pth", "drop": ["dino_head."]}))
    assert line_of(caught.value.next_step) == {"drop": ["dino_head.", "ibot_head."]}


def test_a_teacher_is_taken_before_its_student_and_that_is_said(write_card, tiny_model, tmp_path, caplog):
    teacher = tiny_model().state_dict()
    student = {name: tensor + 1 for name, tensor in teacher.items()}
    for stored in ({"student": student, "teacher": teacher}, below("student.", student) | below("teacher.", teacher)):
        torch.save(stored, tmp_path / "own.pth")
        caplog.clear()
        assert torch.equal(load(write_card(weights={"file": "own.pth"})).norm.weight, teacher["norm.weight"])
        assert "the teacher is used" in caplog.text
        caplog.clear()
        loaded = load(write_card(weights={"file": "own.pth", "under": "student"}))
        assert torch.equal(loaded.norm.weight, student["norm.weight"])
        assert not caplog.text


def test_other_state_dicts_in_one_file_are_not_guessed_between(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict()
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged}, tmp_path / "own.pth")
    with pytest.raises(WeightsMismatch, match="holds several state dicts") as caught:
        load(write_card(weights={"file": "own.pth"}))
    line = line_of(caught.value.next_step, "under: model_ema")
    loaded = load(write_card(weights={"file": "own.pth", **line}))
    assert torch.equal(loaded.norm.weight, averaged["norm.weight"])


def test_a_file_without_weights_is_called_so(tmp_path):
    torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch, match="holds no state dict") as caught:
        read_weights(tmp_path / "w.pth")
    assert caught.value.found == "optimizer, epoch"
