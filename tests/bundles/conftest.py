"""A fitted study in small: a trained transformer under a licence that forbids passing it on, and two controls."""

from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from fmcache.bundles.opening import open_bundle
from fmcache.manifest import Manifest
from fmcache.specs import DecoderSpec, EncoderChoice, FitSpec, Recipe, ViewSpec
from fmcache.stages.export import export
from fmcache.stages.exported_run import Wanted
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags

torch.set_num_threads(1)

TINY = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.1}
CARD = {
    "name": "tiny",
    "title": "Tiny *ViT*",
    "architecture": "vit_tiny_patch16_224",
    "arguments": TINY,
    "patch": 16,
    "width": 48,
    "prefix_tokens": 1,
    "mean": [0.7, 0.5, 0.6],
    "std": [0.2, 0.25, 0.5],
    "weights": {"file": "tiny.safetensors"},
    "gated": True,
    "licence": "CC-BY-NC-ND-4.0",
    "licence_page": "https://example.org/tiny",
    "citation": "Nobody (2020). A tiny transformer",
}
LABELS = [
    {"name": "tumour | *bed*", "colour": "#d55e00"},
    {"name": "строма", "colour": "#009e73"},
    {"name": "other", "colour": "#0072b2"},
]
SIDE, TILE_PX = 96, 40
"""The side of the drawn images, and of tiles; 40 is not a multiple of the encoder's 16."""


class Fitted(NamedTuple):
    """A folder with a manifest, a card and its weights, and a working folder with results."""

    folder: Path

    @property
    def work(self):
        return self.folder / "work"

    @property
    def card(self):
        return self.folder / "tiny.yaml"

    def export(self, to, encoder="tiny", seed=1, study="toy", say=lambda line: None, **choices):
        choices = {"accept_licence": True, "offline": True} | choices
        return export(Wanted(study, encoder, seed, **choices), self.work, to, say)

    def run_folder(self, encoder="tiny", seed=1, study="toy"):
        return self.work / "results" / study / "drawn" / encoder / f"seed-{seed:03d}"

    def fit(self, **changes):
        recipe = recipe_for(self.folder, **changes)
        flags, manifest = Flags(self.work, "cpu", threads=1), Manifest(self.folder / "data_manifest.yaml")
        for stage in (extract, fit):
            for failure in stage(recipe, manifest, flags, lambda line: None):
                raise failure.error
        return recipe


def recipe_for(folder, **changes):
    card = str(folder / "tiny.yaml")
    settings = {
        "name": "toy",
        "encoders": (card, "raw-pixels", EncoderChoice(card, random_weights=True)),
        "tile_px": TILE_PX,
        "views": ViewSpec(count=1),
        "decoder": DecoderSpec(width=8),
        "fit": FitSpec(seeds=2, epochs=30, batch=3, validate_epochs=30, learning_rate=0.01, standardise="channel"),
    }
    return Recipe(**settings | changes)


def write_inputs(folder):
    """Write the manifest, the card and its weights."""
    ids = [f"t{i}" for i in range(7)]
    splits = {"train": ids[:3], "val": ids[3:4], "test": ids[4:]}
    drawn = {"format": "demo", "title": "Drawn <tiles>", "seed": 1, "size_px": SIDE, "mpp": 0.25, "labels": LABELS}
    drawn |= {"tiles": [{"id": one, "group": f"patient-{one}"} for one in ids], "splits": splits, "licence": "MIT"}
    document = {"format": 1, "default": "drawn", "datasets": {"drawn": drawn}}
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CARD))
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    generator = torch.Generator().manual_seed(3)
    values = {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in model.state_dict().items()}
    save_file(values, folder / "tiny.safetensors")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """A fitted study; tests do not change it."""
    study = Fitted(tmp_path_factory.mktemp("fitted"))
    write_inputs(study.folder)
    study.fit()
    return study


@pytest.fixture(scope="session")
def bundle(fitted, tmp_path_factory):
    """The folder of a bundle with the trained transformer; tests do not change it."""
    return fitted.export(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def opened(bundle):
    return open_bundle(bundle)


@pytest.fixture
def tiny_card(fitted):
    """The card of the tiny transformer; its blocks can be tapped."""
    return fitted.card
