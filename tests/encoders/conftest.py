from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml

torch.set_num_threads(1)

TINY = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "reg_tokens": 2, "init_values": 0.1}


@pytest.fixture
def write_card(tmp_path: Path) -> Callable[..., Path]:
    """Write the card of a tiny vision transformer with two registers, with some keys changed or (None) left out."""

    def write(**changes: object) -> Path:
        card = {
            "name": "tiny",
            "title": "Tiny",
            "architecture": "vit_tiny_patch16_224",
            "arguments": TINY,
            "patch": 16,
            "width": 48,
            "prefix_tokens": 3,
            "depth": 2,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.5],
            "weights": {"file": "weights.safetensors"},
        } | changes
        path = tmp_path / "card.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in card.items() if value is not None}))
        return path

    return write


@pytest.fixture
def tiny_model() -> Callable[..., torch.nn.Module]:
    """Build the tiny vision transformer with values in all its parameters, some of its arguments changed."""

    def build(**changes: object) -> torch.nn.Module:
        arguments = {"num_classes": 0, "dynamic_img_size": True} | TINY | changes
        model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model

    return build
