"""Checkpoints as libraries and their training scripts leave them: read right, or refused with a line that works."""

import re

import pytest
import timm
import torch
import yaml

from fmcache.encoders.load import load_encoder
from fmcache.errors import WeightsMismatch
from fmcache.specs import EncoderChoice

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
HEAD = {"0.weight": torch.ones(2, 2), "2.bias": torch.ones(2)}


def load(card):
    return load_encoder(EncoderChoice(str(card)), torch.device("cpu"), offline=True)


def below(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


def scattered(model):
    """Give every parameter values of its own, so that no other copy is taken for it."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def numbered(state):
    """Name a ResNet's weights as those of its parts in a row: convolution, norm, activation, pool, four layers."""
    stem = {"conv1.": "0.", "bn1.": "1."} | {f"layer{i}.": f"{i + 3}." for i in (1, 2, 3, 4)}
    return {re.sub(r"^[a-z]+\d\.", lambda found: stem[found[0]], name): tensor for name, tensor in state.items()}


RESNETS = {
    "torchvision": lambda s: s | {"fc.weight": torch.ones(3, 16), "fc.bias": torch.ones(3)},
    "DINO": lambda s: {"student": below("module.backbone.", other(s)), "teacher": below("backbone.", s) | HEAD_OF_DINO},
    "MoCo": lambda s: {
        "state_dict": below("module.encoder_q.", s | below("fc.", HEAD))
        | below("module.encoder_k.", other(s) | below("fc.", HEAD))
        | {"module.queue": torch.ones(2)}
    },
    "SimCLR": lambda s: {"state_dict": below("backbone.", s | below("fc.", HEAD)), "arch": "resnet18"},
    "lightly": lambda s: {"state_dict": below("backbone.", s) | below("projection_head.", HEAD)},
    "lightly, in a row": lambda s: {"state_dict": below("backbone.", numbered(s)) | below("projection_head.", HEAD)},
    "in a row, alone": numbered,
    "solo-learn": lambda s: {
        "state_dict": below("backbone.", s)
        | below("momentum_backbone.", other(s))
        | below("projector.", HEAD)
        | below("momentum_projector.", HEAD)
    },
    "MMPretrain": lambda s: {"meta": {"epoch": 1}, "state_dict": below("backbone.", s) | below("head.fc.", HEAD)},
    "segmentation": lambda s: {"state_dict": below("model.encoder.", s) | below("model.decoder.", HEAD)},
    "no numbers of batches": lambda s: {
        "state_dict": below("backbone.", {k: v for k, v in s.items() if "batches" not in k}) | below("head.", HEAD)
    },
}
HEAD_OF_DINO = below("head.mlp.", HEAD)


@pytest.mark.parametrize("library", RESNETS)
def test_the_lines_that_messages_name_take_a_resnet_out_of_what_surrounds_it(write_card, tmp_path, library):
    model = scattered(timm.create_model("resnet18", num_classes=0, **SMALL))
    state = model.state_dict()
    torch.save(RESNETS[library](state), tmp_path / "own.pth")
    weights = {"file": "own.pth"}
    for _ in range(3):
        card = write_card(
            architecture="resnet18", arguments=SMALL, patch=32, width=16, prefix_tokens=0, depth=0, weights=weights
        )
        try:
            loaded = load(card).module.state_dict()
            break
        except WeightsMismatch as refused:
            line = re.search(r"`((?:drop|under): [^`]*)`", refused.next_step)
            assert line, refused
            weights |= yaml.safe_load(line[1])
    assert all(torch.equal(loaded[name], state[name]) for name in state if "batches" not in name)


MMPRETRAIN = (
    (r"patch_embed\.proj", "patch_embed.projection"), (r"^norm\.", "ln1."),
    (r"blocks\.(\d+)\.norm(\d)\.", r"layers.\1.ln\2."), (r"blocks\.(\d+)\.attn\.", r"layers.\1.attn."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
    (r"blocks\.(\d+)\.ls1\.gamma", r"layers.\1.attn.gamma1.weight"),
    (r"blocks\.(\d+)\.ls2\.gamma", r"layers.\1.ffn.gamma2.weight"),
)  # fmt: skip


@pytest.mark.parametrize("head", [{}, {"head.layers.head.weight": torch.ones(2, 2)}])
def test_names_of_mmpretrain_are_read(write_card, tiny_model, tmp_path, head):
    state = tiny_model(reg_tokens=0).state_dict()
    named = {}
    for name, tensor in state.items():
        for old, new in MMPRETRAIN:
            name = re.sub(old, new, name)
        named[f"backbone.{name}"] = tensor
    torch.save({"meta": {}, "state_dict": named | head}, tmp_path / "own.pth")
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.1}
    weights = {"file": "own.pth", "drop": ["head."]}
    loaded = load(write_card(arguments=arguments, prefix_tokens=1, weights=weights)).module.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_file_with_its_last_norm_after_pooling_names_the_argument(write_card, tiny_model, tmp_path):
    state = tiny_model(global_pool="avg").state_dict()
    torch.save({"model": state}, tmp_path / "own.pth")
    with pytest.raises(WeightsMismatch, match="`global_pool: avg` in the card's arguments"):
        load(write_card(weights={"file": "own.pth"}))
    arguments = yaml.safe_load(write_card().read_text())["arguments"] | {"global_pool": "avg"}
    loaded = load(write_card(arguments=arguments, weights={"file": "own.pth"})).module.state_dict()
    assert torch.equal(loaded["fc_norm.weight"], state["fc_norm.weight"])
