"""The code in FORMAT.md, section 6, gives exactly what stage one caches; it is run directly from the page."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import fmcache.cache
from fmcache.cache.reader import open_cache
from fmcache.datasets.add import add
from fmcache.manifest import Manifest
from fmcache.specs import Recipe, ViewSpec
from fmcache.stages import places
from fmcache.stages.extract import extract
from fmcache.stages.flags import Flags

PAGE = Path(fmcache.cache.__path__[0]) / "FORMAT.md"
SIDES = {"shrunk": 50, "grown": 30, "kept": 40, "tested": 40}
TILE_PX, PATCH = 40, 16  # the tile is not a whole number of patches
NORM = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}
VIT = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3, "reg_tokens": 2}


@pytest.fixture
def rule():
    """The names that the page's code defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102
    return names


@pytest.fixture
def model(tmp_path):
    """A small transformer with two registers; the folder holds its weights, its card, and a card of a pixel control."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **VIT).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    common = NORM | {"patch": PATCH, "licence": "none"}
    vit = common | {
        "name": "vit", "title": "ViT", "architecture": "vit_tiny_patch16_224", "arguments": VIT, "width": 24,
        "prefix_tokens": 3, "weights": {"file": "weights.safetensors"},
    }  # fmt: skip
    pixels = common | {"name": "pixels", "title": "Pixels", "kind": "pixels", "width": 3 * PATCH**2, "prefix_tokens": 0}
    for card in (vit, pixels):
        (tmp_path / f"{card['name']}.yaml").write_text(yaml.safe_dump(card))
    return model


@pytest.fixture
def tiles(tmp_path):
    """Image and mask by tile id; the tiles are listed in a manifest."""
    rng, drawn = np.random.default_rng(0), {}
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for name, side in SIDES.items():
        image = rng.integers(0, 256, (side, side, 3)).astype("uint8")
        mask = rng.integers(0, 3, (side, side)).astype("uint8")
        drawn[name] = image, mask
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    path = tmp_path / "data_manifest.yaml"
    add(
        path,
        "toy",
        tmp_path / "images",
        tmp_path / "masks",
        labels="a=0,b=1,c=2",
        ignore="255",
        mpp=None,
        groups="",
        split="2/1/1",
        seed=0,
        replace=False,
    )
    document = yaml.safe_load(path.read_text())
    document["datasets"]["toy"]["splits"] = {"train": ["shrunk", "grown"], "val": ["kept"], "test": ["tested"]}
    path.write_text(yaml.safe_dump(document))
    return drawn


@pytest.mark.parametrize("policy", ["fit", "pad", "crop"])
def test_cached_masks_and_tokens_of_every_view_equal_those_of_the_page(tmp_path, rule, model, tiles, policy):
    recipe = Recipe(
        name="toy", encoders=(str(tmp_path / "vit.yaml"), str(tmp_path / "pixels.yaml")), tile_px=TILE_PX,
        views=ViewSpec(count=3, seed=5, outside="reflect" if policy == "pad" else "ignore"), grid=policy,
        store="float32",
    )  # fmt: skip
    manifest = Manifest(tmp_path / "data_manifest.yaml")
    assert extract(recipe, manifest, Flags(tmp_path, device="cpu", threads=1), lambda _: None) == []
    mask_cache = open_cache(places.mask_cache_path(tmp_path, "toy", recipe), "view_bank", {})
    vit, pixels = (
        open_cache(places.tokens_path(tmp_path, "toy", name, recipe, "last"), "tokens", {})
        for name in ("vit", "pixels")
    )
    for tile_id, n_views in zip(mask_cache.header.tiles, mask_cache.header.stored, strict=True):
        at_size = rule["tile"](*tiles[tile_id], TILE_PX)
        for number in range(n_views):
            image, mask = rule["view"](*at_size, mask_cache.header.identity["views"], "toy", tile_id, number)
            assert np.array_equal(mask_cache.read(tile_id, number, number + 1)[0], mask)
            seen = rule["encoder_input"](image, PATCH, policy, **NORM)
            # a token of the pixel control is one patch of the input: row, column, colour
            patches = pixels.read(tile_id, number, number + 1)[0]
            rows = [patches[:, r, c].reshape(PATCH, PATCH, 3) for r, c in np.ndindex(patches.shape[1:])]
            n = patches.shape[1]
            laid = np.concatenate([np.concatenate(rows[i * n : (i + 1) * n], axis=1) for i in range(n)])
            assert np.allclose(laid, seen[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-6)
            with torch.inference_mode():
                tokens = model.forward_features(seen)[0, 3:].numpy()
            grid = vit.read(tile_id, number, number + 1)[0]
            assert grid.shape == (24, n, n)
            assert np.allclose(grid, tokens.T.reshape(24, n, n), rtol=0, atol=1e-5)
