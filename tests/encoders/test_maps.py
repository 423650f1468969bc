"""Encoders whose features are a map (ResNet, ConvNeXt, Swin): timm's own values, on the right rows, at any size."""

import msgspec
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fmcache.encoders.building import META, build
from fmcache.encoders.load import card_for_timm, compile_blocks, load_encoder
from fmcache.encoders.outlines import forward_flop, outline
from fmcache.encoders.tokens import tapped_grids, token_grids
from fmcache.errors import SpecError, WeightsMismatch
from fmcache.grid import Grid
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")
SMALL = {"resnet10t": (512, 7), "convnext_atto": (320, 7), "swin_tiny_patch4_window7_224": (768, 7)}
"""Models, with the channels and the side of their features at 224 px."""


def load(name, weights="", random_weights=False):
    return load_encoder(EncoderChoice(str(name), str(weights), random_weights), CPU, offline=True)


def noise(views, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (views, side, side, 3), dtype=np.uint8)


def normalised(images, encoder):
    mean, std = (torch.tensor(colours).view(1, 3, 1, 1) for colours in (encoder.card.mean, encoder.card.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def scattered(name, **arguments):
    """Build a timm model with values of its own in all parameters and running statistics."""
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.5 * key.endswith("running_var"))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Write the weights of a scattered model once, and return the model with the path of its file."""
    made = {}

    def save(name, **arguments):
        if name not in made:
            model = scattered(name, **arguments)
            path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
            save_file(model.state_dict(), path)
            made[name] = model, path
        return made[name]

    return save


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("side", [224, 96])
def test_tokens_are_timms_features_each_on_its_own_row_and_column(saved, name, side):
    model, path = saved(name, **({"dynamic_img_size": True} if name.startswith("swin") else {}))
    encoder, images = load(f"timm:{name}", path), noise(2, side)
    width, h = SMALL[name][0], side // 32
    grids = token_grids(encoder, images, Grid(side, 32))
    assert grids.shape == (2, width, h, h)
    with torch.no_grad():
        features = model.forward_features(normalised(images, encoder))
    for row in range(h):
        for col in range(h):
            token = features[:, row, col] if name.startswith("swin") else features[:, :, row, col]
            assert torch.allclose(grids[:, :, row, col], token, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(grids, grids.transpose(2, 3), atol=1e-2)  # the image is not its own mirror image


@pytest.mark.parametrize(("policy", "side", "sees"), [("fit", 3, 96), ("pad", 4, 128), ("crop", 3, 96)])
def test_strides_take_the_size_policies_of_patches(saved, policy, side, sees):
    model, path = saved("resnet10t")
    encoder, images = load("timm:resnet10t", path), noise(1, 100)
    grid = Grid(100, 32, policy)
    grids = token_grids(encoder, images, grid)
    assert grids.shape == (1, 512, side, side)
    assert grid.input_px == sees
    if policy == "fit":
        return
    laid = (
        np.pad(images, ((0, 0), (0, 28), (0, 28), (0, 0)), mode="reflect") if policy == "pad" else images[:, :96, :96]
    )
    with torch.no_grad():
        features = model.forward_features(normalised(np.ascontiguousarray(laid), encoder))
    assert torch.allclose(grids, features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_tap_is_a_stage_of_timms_features_only_with_a_stride_of_its_own(saved, name):
    options = {"dynamic_img_size": True} if name.startswith("swin") else {}
    model, path = saved(name, **options)
    encoder, images = load(f"timm:{name}", path), noise(1, 96)
    stages = timm.create_model(name, features_only=True, **options).eval()
    stages.load_state_dict({key.replace("layers.", "layers_").replace("stages.", "stages_"): value
                            for key, value in model.state_dict().items()}, strict=False)  # fmt: skip
    taps = tuple(str(i + 1) for i in range(len(encoder.taps)))
    with torch.no_grad():
        outputs = stages(normalised(images, encoder))
    grids = tapped_grids(encoder, images, Grid(96, 32), "float32", (*taps, "last"))
    assert [96 // grid.shape[-1] for grid in grids[:-1]] == stages.feature_info.reduction()
    for grid, output, channels in zip(grids[:-1], outputs, stages.feature_info.channels(), strict=True):
        expected = output.permute(0, 3, 1, 2) if output.shape[1] != channels else output
        assert torch.allclose(grid, expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(grids[-1], token_grids(encoder, images, Grid(96, 32)), atol=1e-4, rtol=1e-4)


def test_taps_whose_strides_fit_the_tile_in_another_way_see_it_in_their_own(saved):
    model, path = saved("resnet10t")
    encoder, images = load("timm:resnet10t", path), noise(1, 100)
    third, last = tapped_grids(encoder, images, Grid(100, 32, "pad"), "float32", ("3", "last"))
    assert (third.shape, last.shape) == ((1, 128, 13, 13), (1, 512, 4, 4))  # of 104 px, and of 128 px
    padded = np.pad(images, ((0, 0), (0, 4), (0, 4), (0, 0)), mode="reflect")
    with torch.no_grad():
        (expected,) = model.forward_intermediates(
            normalised(padded, encoder), indices=[2], output_fmt="NCHW", intermediates_only=True
        )
    assert torch.allclose(third, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tap", ["6", "2+norm"])
def test_a_stage_that_is_not_there_or_has_no_norm_is_refused(tap):
    encoder = load("timm:resnet10t", random_weights=True)
    with pytest.raises(SpecError, match=f"'timm-resnet10t' has no stage {tap[0]}") as caught:
        tapped_grids(encoder, noise(1, 64), Grid(64, 32), "float32", (tap,))
    assert "a stage from 1 to 5, 2, 4, 8, 16, 32 px a token" in caught.value.expected


@pytest.mark.parametrize("name", SMALL)
def test_the_tokens_of_a_view_do_not_depend_on_the_batch_it_is_in(saved, name):
    encoder, images = load(f"timm:{name}", saved(name)[1]), noise(3, 64)
    together = token_grids(encoder, images, Grid(64, 32))
    for i in range(3):
        assert torch.allclose(token_grids(encoder, images[i : i + 1], Grid(64, 32)), together[i : i + 1], atol=1e-4)


def test_running_statistics_come_from_the_file_and_are_no_parameters(saved, tmp_path):
    model, path = saved("resnet10t")
    encoder = load("timm:resnet10t", path)
    assert encoder.params == encoder.card.params == sum(p.numel() for p in model.parameters())
    assert torch.equal(encoder.module.bn1.running_var, model.bn1.running_var)
    assert encoder.module.bn1.num_batches_tracked.dtype == torch.long
    state = model.state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "old.safetensors")
    grids = [token_grids(load("timm:resnet10t", one), noise(1, 64), Grid(64, 32))
             for one in (path, tmp_path / "old.safetensors")]  # fmt: skip
    assert torch.equal(*grids)
    save_file({key: value for key, value in state.items() if key != "bn1.running_mean"}, tmp_path / "less.safetensors")
    with pytest.raises(WeightsMismatch, match=r"1 missing: bn1\.running_mean"):
        load("timm:resnet10t", tmp_path / "less.safetensors")


def test_the_classifier_of_a_file_is_left_out(tmp_path):
    whole = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder, images = load("timm:resnet10t", tmp_path / "whole.safetensors"), noise(1, 64)
    with torch.no_grad():
        features = whole.forward_features(normalised(images, encoder))
    assert torch.allclose(token_grids(encoder, images, Grid(64, 32)), features, atol=1e-5)


def test_random_weights_of_a_map_are_the_same_again():
    first, second = (load("timm:convnext_atto", random_weights=True).weights_sha256 for _ in range(2))
    assert first == second
    assert first != load("timm:convnext_atto_ols", random_weights=True).weights_sha256


def test_a_card_of_a_map_tells_its_stride_as_patch(write_card):
    path = write_card(
        architecture="resnet10t", arguments={}, patch=32, width=512, prefix_tokens=0, depth=None, weights=None
    )
    assert load(path, random_weights=True).axes == "channels first"
    wrong = write_card(
        architecture="resnet10t", arguments={}, patch=16, width=512, prefix_tokens=0, depth=None, weights=None
    )
    with pytest.raises(SpecError, match="contradicts the model that timm builds from it: patch") as caught:
        load(wrong, random_weights=True)
    assert caught.value.found == "patch: 32"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("inception_v3", "8 x 8 at 320 px, where a stride of 32 px makes 10 x 10"),
        ("hiera_tiny_224", "features (1, 49, 768) at 224 px: not a map with rows"),
        ("coat_tiny", "features of other kinds"),
    ],
)
def test_a_map_that_does_not_lie_on_the_pixels_is_refused_with_the_reason(name, why):
    with pytest.raises(SpecError, match=f"'{name}' gives no grid of tokens") as caught:
        load(f"timm:{name}", random_weights=True)
    assert why in caught.value.found


def test_a_model_of_one_size_runs_at_that_size_and_is_refused_at_others_before_anything_runs():
    encoder = load("timm:test_maxvit", random_weights=True)
    assert token_grids(encoder, noise(1, 160), Grid(160, 32)).shape == (1, 128, 5, 5)
    with pytest.raises(SpecError, match="'timm-test_maxvit' does not take views of 128 px") as caught:
        token_grids(encoder, noise(1, 128), Grid(128, 32))
    assert "`tile_px: 160`" in caught.value.next_step
    assert "must be divisible by window" in caught.value.found


def test_a_model_of_one_size_can_be_built_for_another_by_a_card(write_card):
    path = write_card(
        architecture="test_maxvit", arguments={"img_size": 128}, patch=32, width=128, prefix_tokens=0, depth=None,
        weights=None,
    )  # fmt: skip
    assert token_grids(load(path, random_weights=True), noise(1, 128), Grid(128, 32)).shape == (1, 128, 4, 4)


class Fixed(torch.nn.Module):
    """A model of one size whose features are as long as wide as deep: shapes cannot tell its axes."""

    pretrained_cfg = {"input_size": (3, 64, 64)}
    feature_info = [{"reduction": 8, "num_chs": 8}]
    num_features = 8

    def forward_features(self, x):
        if x.shape[2:] != (64, 64):
            raise AssertionError("64 px only")
        return x.new_empty(len(x), 8, 8, 8)


def test_axes_that_shapes_cannot_tell_are_taken_from_the_model_and_never_guessed():
    with pytest.raises(SpecError, match="gives no grid of tokens") as caught:
        outline("fixed", Fixed())
    assert "which axis is which is not told" in caught.value.found
    telling = Fixed()
    telling.output_fmt = "NHWC"
    assert outline("fixed", telling).axes == "channels last"


def test_operations_of_a_map_are_counted_from_its_layers():
    card = card_for_timm("resnet50")
    assert card.depth == 0
    assert forward_flop(card, 224) == pytest.approx(2 * 4.09e9, rel=0.01)  # 4.1 G multiply-adds: He et al., table 1
    assert forward_flop(card, 448) == pytest.approx(4 * forward_flop(card, 224), rel=0.01)
    vit = msgspec.structs.replace(card_for_timm("vit_small_patch16_224"), depth=0)
    assert forward_flop(vit, 224) == pytest.approx(2 * 4.6e9, rel=0.01)


def test_parts_of_a_map_are_handed_to_torch_compile():
    encoder = load("timm:resnet10t", random_weights=True)
    compile_blocks(encoder)
    assert encoder.module.layer4._compiled_call_impl is not None
    assert build(encoder.card, META).layer4._compiled_call_impl is None


@pytest.mark.parametrize("side", [256, 320])
def test_a_transformer_with_rotary_positions_gives_timms_tokens_at_any_size(tmp_path, write_card, side):
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 2}
    path = write_card(architecture="vit_small_patch16_dinov3", arguments=arguments, prefix_tokens=5,
                      weights={"file": "w.safetensors"})  # fmt: skip
    model = scattered("vit_small_patch16_dinov3", dynamic_img_size=True, **arguments)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder, images = load(path), noise(1, side)
    with torch.no_grad():
        tokens = model.forward_features(normalised(images, encoder))[:, 5:]
    h = side // 16
    grids = token_grids(encoder, images, Grid(side, 16))
    assert torch.allclose(grids, tokens.transpose(1, 2).reshape(1, 48, h, h), atol=1e-5)
    assert token_grids(encoder, noise(1, 518), Grid(518, 16)).shape == (1, 48, 32, 32)
