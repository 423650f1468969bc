"""Encoders whose features are a map (ResNet, ConvNeXt, Swin): timm's own values, on the right rows, at any size."""

import re

import msgspec
import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from fmcache.encoders.building import META, build
from fmcache.encoders.cards import Weights
from fmcache.encoders.load import card_for_timm, compile_blocks, load_encoder, sha256_state
from fmcache.encoders.outlines import forward_flop, outline
from fmcache.encoders.tokens import tapped_grids, token_grids
from fmcache.errors import SpecError, WeightsMismatch
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")
SWIN = "swin_tiny_patch4_window7_224"
SMALL = {
    "resnet10t": (512, {}),
    "test_convnext": (64, {}),
    SWIN: (192, {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4]}),
}
"""Models, with the channels of their features and the arguments that make them small."""
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def load(name, weights="", random_weights=False):
    return load_encoder(EncoderChoice(str(name), str(weights), random_weights), CPU, offline=True)


def noise(views, side):
    return np.random.default_rng(side).integers(0, 256, (views, side, side, 3), dtype=np.uint8)


def normalised(images, encoder):
    mean, std = (torch.tensor(colours).view(1, 3, 1, 1) for colours in (encoder.card.mean, encoder.card.std))
    return (torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255 - mean) / std


def any_size(name):
    return {"dynamic_img_size": True} if name == SWIN else {}


def scattered(name, **arguments):
    """Build a timm model with values of its own in all parameters and running statistics."""
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                moved = torch.randn(value.shape, generator=generator) * 0.1
                value.add_(moved.abs() if key.endswith("running_var") else moved)
    return model


@pytest.fixture
def map_card(write_card):
    """Write the card of an encoder that gives a map."""

    def write(name, patch, width, weights=None, **arguments):
        return write_card(
            architecture=name, arguments=arguments, patch=patch, width=width, prefix_tokens=0, depth=None,
            weights=weights,
        )  # fmt: skip

    return write


@pytest.fixture
def saved(tmp_path, map_card):
    """Return a scattered model, and the encoder that is loaded from its file."""

    def save(name):
        width, arguments = SMALL[name]
        model = scattered(name, **arguments, **any_size(name))
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        return model, load(map_card(name, 32, width, {"file": "weights.safetensors"}, **arguments))

    return save


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("side", [224, 96])
def test_tokens_are_timms_features_each_on_its_own_row_and_column(saved, name, side):
    (model, encoder), images = saved(name), noise(2, side)
    h = side // 32
    grids = token_grids(encoder, images, GridGeometry(side, 32))
    assert grids.shape == (2, SMALL[name][0], h, h)
    with torch.no_grad():
        features = model.forward_features(normalised(images, encoder))
    for row in range(h):
        for col in range(h):
            token = features[:, row, col] if name == SWIN else features[:, :, row, col]
            assert torch.allclose(grids[:, :, row, col], token, **CLOSE)
    assert not torch.allclose(grids, grids.transpose(2, 3), atol=1e-2)  # rows and columns differ


@pytest.mark.parametrize(("policy", "side", "sees"), [("fit", 3, 96), ("pad", 4, 128), ("crop", 3, 96)])
def test_strides_take_the_size_policies_of_patches(saved, policy, side, sees):
    (model, encoder), images = saved("resnet10t"), noise(1, 100)
    grid = GridGeometry(100, 32, policy)
    grids = token_grids(encoder, images, grid)
    assert grids.shape == (1, 512, side, side)
    assert grid.input_px == sees
    if policy == "fit":
        return
    padded = np.pad(images, ((0, 0), (0, 28), (0, 28), (0, 0)), mode="reflect")
    laid = padded if policy == "pad" else images[:, :96, :96]
    with torch.no_grad():
        assert torch.allclose(grids, model.forward_features(normalised(laid, encoder)), **CLOSE)


@pytest.mark.parametrize("name", SMALL)
def test_a_tap_is_a_stage_of_timms_features_only_with_a_stride_of_its_own(saved, name):
    (model, encoder), images = saved(name), noise(1, 96)
    stages = timm.create_model(name, features_only=True, **SMALL[name][1], **any_size(name)).eval()
    flat = {re.sub(r"^(layers|stages|stem)\.", r"\1_", key): value for key, value in model.state_dict().items()}
    assert not stages.load_state_dict(flat, strict=False).missing_keys
    taps = tuple(str(i + 1) for i in range(len(encoder.taps)))
    with torch.no_grad():
        outputs = stages(normalised(images, encoder))
    grids = tapped_grids(encoder, images, GridGeometry(96, 32), "float32", (*taps, "last"))
    assert [96 // grid.shape[-1] for grid in grids[:-1]] == stages.feature_info.reduction()
    for grid, output, channels in zip(grids[:-1], outputs, stages.feature_info.channels(), strict=True):
        expected = output.permute(0, 3, 1, 2) if name == SWIN else output
        assert expected.shape[1] == channels
        assert torch.allclose(grid, expected, **CLOSE)
    assert torch.allclose(grids[-1], token_grids(encoder, images, GridGeometry(96, 32)), **CLOSE)


def test_taps_whose_strides_fit_the_tile_in_another_way_see_it_in_their_own(saved):
    (model, encoder), images = saved("resnet10t"), noise(1, 100)
    third, last = tapped_grids(encoder, images, GridGeometry(100, 32, "pad"), "float32", ("3", "last"))
    assert (third.shape, last.shape) == ((1, 128, 13, 13), (1, 512, 4, 4))  # of 104 px, and of 128 px
    padded = np.pad(images, ((0, 0), (0, 4), (0, 4), (0, 0)), mode="reflect")
    with torch.no_grad():
        (expected,) = model.forward_intermediates(
            normalised(padded, encoder), indices=[2], output_fmt="NCHW", intermediates_only=True
        )
    assert torch.allclose(third, expected, **CLOSE)


@pytest.mark.parametrize("tap", ["6", "2+norm"])
def test_a_stage_that_is_not_there_or_has_no_norm_is_refused(tap):
    encoder = load("timm:resnet10t", random_weights=True)
    with pytest.raises(SpecError, match=f"'timm-resnet10t' has no stage {re.escape(tap)}") as caught:
        tapped_grids(encoder, noise(1, 64), GridGeometry(64, 32), "float32", (tap,))
    assert "a stage from 1 to 5, 2, 4, 8, 16, 32 px a token" in caught.value.expected


@pytest.mark.parametrize("name", SMALL)
def test_the_tokens_of_a_view_do_not_depend_on_the_batch_it_is_in(saved, name):
    (_, encoder), images = saved(name), noise(3, 64)
    together = token_grids(encoder, images, GridGeometry(64, 32))
    for i in range(3):
        assert torch.allclose(
            token_grids(encoder, images[i : i + 1], GridGeometry(64, 32)), together[i : i + 1], **CLOSE
        )


def test_running_statistics_come_from_the_file_and_are_no_parameters(saved, tmp_path):
    model, encoder = saved("resnet10t")
    assert encoder.params == sum(p.numel() for p in model.parameters()) == card_for_timm("resnet10t").params
    assert torch.equal(encoder.module.bn1.running_var, model.bn1.running_var)
    assert encoder.module.bn1.num_batches_tracked.dtype == torch.long
    state = model.state_dict()
    save_file({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.safetensors")
    old = load("timm:resnet10t", tmp_path / "old.safetensors")
    assert old.module.state_dict().keys() == state.keys()
    assert torch.equal(old.module.bn1.running_mean, model.bn1.running_mean)
    save_file({k: v for k, v in state.items() if k != "bn1.running_mean"}, tmp_path / "less.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        load("timm:resnet10t", tmp_path / "less.safetensors")
    assert "1 missing: bn1.running_mean" in caught.value.found


def test_the_classifier_of_a_file_is_left_out(tmp_path):
    whole = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder, images = load("timm:resnet10t", tmp_path / "whole.safetensors"), noise(1, 64)
    with torch.no_grad():
        features = whole.forward_features(normalised(images, encoder))
    assert torch.allclose(token_grids(encoder, images, GridGeometry(64, 32)), features, **CLOSE)


def as_facebook_names(key):
    for ours, theirs in (
        (r"^stem\.", "downsample_layers.0."), (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"blocks\.", ""), ("conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"), (r"^head\.norm", "norm"),
    ):  # fmt: skip
        key = re.sub(ours, theirs, key)
    return key


def test_a_publishers_names_are_those_that_timm_knows(saved, tmp_path):
    for name, rename, more in (
        ("test_convnext", as_facebook_names, {"head.weight": torch.zeros(3, 64)}),
        (SWIN, str, {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}),
    ):
        model, encoder = saved(name)
        drop = ["head."] if name == SWIN else ["head.fc."]
        card = msgspec.structs.replace(encoder.card, weights=Weights(file=str(tmp_path / "p.safetensors"), drop=drop))
        path = tmp_path / "published.yaml"
        path.write_text(yaml.safe_dump(msgspec.to_builtins(card)))
        save_file({rename(key): value for key, value in model.state_dict().items()} | more, tmp_path / "p.safetensors")
        assert sha256_state(load(path).module.state_dict()) == sha256_state(encoder.module.state_dict())


def test_a_table_of_another_size_is_never_resampled_in_silence(saved, map_card, tmp_path):
    saved(SWIN)
    arguments = SMALL[SWIN][1] | {"window_size": 4}
    path = map_card(SWIN, 32, 192, {"file": "weights.safetensors"}, **arguments)
    with pytest.raises(WeightsMismatch) as caught:
        load(path)
    assert "of another shape: layers.0.blocks.0.attn.relative_position_bias_table" in caught.value.found


def test_random_weights_of_a_map_are_the_same_again():
    first, second = (load("timm:test_convnext", random_weights=True).weights_sha256 for _ in range(2))
    assert first == second
    assert first != load("timm:test_convnext2", random_weights=True).weights_sha256


def test_a_card_of_a_map_has_its_stride_as_patch(map_card):
    assert load(map_card("resnet10t", 32, 512), random_weights=True).axes == "channels first"
    with pytest.raises(SpecError, match="contradicts the model that timm builds from it: patch") as caught:
        load(map_card("resnet10t", 16, 512), random_weights=True)
    assert caught.value.found == "patch: 32"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("inception_v3", "8 x 8 at 320 px, where a stride of 32 px gives 10 x 10"),
        ("mixer_s32_224", "features (1, 49, 512) at 224 px: not a map with rows"),
        ("coat_tiny", "features of other kinds"),
    ],
)
def test_a_map_that_does_not_lie_on_the_pixels_is_refused_with_the_reason(name, why):
    with pytest.raises(SpecError, match=f"'{name}' gives no grid of tokens") as caught:
        load(f"timm:{name}", random_weights=True)
    assert why in caught.value.found


def test_a_model_of_one_size_runs_at_that_size_and_is_refused_at_others_before_anything_runs():
    encoder = load("timm:test_maxvit", random_weights=True)
    assert token_grids(encoder, noise(1, 160), GridGeometry(160, 32)).shape == (1, 128, 5, 5)
    with pytest.raises(SpecError, match="'timm-test_maxvit' does not accept views of 128 px") as caught:
        token_grids(encoder, noise(1, 128), GridGeometry(128, 32))
    assert "`tile_px: 160`" in caught.value.next_step
    assert "must be divisible by window" in caught.value.found


def test_a_model_of_one_size_can_be_built_for_another_by_a_card(map_card):
    encoder = load(map_card("test_maxvit", 32, 128, img_size=128), random_weights=True)
    assert token_grids(encoder, noise(1, 128), GridGeometry(128, 32)).shape == (1, 128, 4, 4)


class Fixed(torch.nn.Module):
    """A model of one size whose features are as long as wide as deep: shapes cannot tell its axes."""

    img_size, num_features = 64, 8

    def __init__(self):
        super().__init__()
        self.feature_info = [{"reduction": 8, "num_chs": 8}]

    def forward_features(self, x):
        if x.shape[2:] != (64, 64):
            raise AssertionError("64 px only")
        return x.new_empty(len(x), 8, 8, 8)


def test_axes_that_shapes_cannot_tell_are_taken_from_the_model_and_never_guessed():
    with pytest.raises(SpecError, match="gives no grid of tokens") as caught:
        outline("fixed", Fixed())
    assert "the order of the axes is unclear" in caught.value.found
    telling = Fixed()
    telling.output_fmt = "NHWC"
    assert outline("fixed", telling).axes == "channels last"


def test_operations_of_a_map_are_counted_from_its_layers():
    card = card_for_timm("resnet50")
    assert card.depth == 0
    assert forward_flop(card, 224) == pytest.approx(2 * 4.09e9, rel=0.01)  # 4.1 G multiply-adds: He et al., 2016
    assert forward_flop(card, 448) == pytest.approx(4 * forward_flop(card, 224), rel=0.01)
    vit = msgspec.structs.replace(card_for_timm("vit_small_patch16_224"), depth=0)
    assert forward_flop(vit, 224) == pytest.approx(2 * 4.6e9, rel=0.01)


def test_run_files_of_a_map_are_handed_to_torch_compile():
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
    grids = token_grids(encoder, images, GridGeometry(side, 16))
    assert torch.allclose(grids, tokens.transpose(1, 2).reshape(1, 48, h, h), atol=1e-5)
    assert token_grids(encoder, noise(1, 518), GridGeometry(518, 16)).shape == (1, 48, 32, 32)
