"""Layouts that came later, and names as transformers holds them in memory: the same tokens as the library's own."""

import re

import msgspec
import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
import yaml
from safetensors.torch import save_file
from timm.models import eva, vision_transformer

from fmcache.encoders import load as load_room
from fmcache.encoders.cards import read_card
from fmcache.encoders.load import load_encoder
from fmcache.encoders.reading import read_weights
from fmcache.encoders.tokens import input_pixels, token_grids
from fmcache.encoders.weight_layouts import published
from fmcache.errors import WeightsMismatch
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

WIDTH, DEPTH, HEADS, PATCH, SIDE = 48, 3, 3, 8, 32
COMMON = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "image_size": SIDE,
    "patch_size": PATCH, "intermediate_size": 4 * WIDTH,
}  # fmt: skip
ARGUMENTS = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
EXACT = {"layer_norm_eps": 1e-6}
SWIGLU = {
    "mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 2 * 128 / WIDTH, "reg_tokens": 4,
    "no_embed_class": True, "init_values": 1.0e-5,
}  # fmt: skip
CLIP_TEXT = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "vocab_size": 9,
}  # fmt: skip


def scattered(model):
    """Give every parameter values of its own: what is never initialised otherwise could be dropped unseen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**COMMON, **EXACT))


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**COMMON, **EXACT))


def registers():
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, use_swiglu_ffn=True, **COMMON, **EXACT)
    return transformers.Dinov2WithRegistersModel(config)


def dinov3(**changes):
    config = transformers.DINOv3ViTConfig(num_register_tokens=4, **COMMON, **changes)
    return transformers.DINOv3ViTModel(config)


def dinov3_gated():
    return dinov3(use_gated_mlp=True, hidden_act="silu")


def clip():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(hidden_act="gelu", **COMMON))


FAMILIES = {
    "vit": (vit, "hf-vit", "vit_tiny_patch16_224", 1, {}, ["pooler."]),
    "dinov2": (dinov2, "hf-dinov2", "vit_tiny_patch16_224", 1, {"init_values": 1.0e-5}, []),
    "registers": (registers, "hf-dinov2-registers", "vit_tiny_patch16_224", 5, SWIGLU, []),
    "dinov3": (dinov3, "hf-dinov3", "vit_small_patch16_dinov3_qkvb", 5, {}, []),
    "dinov3, gated": (
        dinov3_gated, "hf-dinov3", "vit_small_plus_patch16_dinov3_qkvb", 5, {"mlp_ratio": 4, "swiglu_align_to": 8}, [],
    ),
    "clip": (clip, "hf-clip", "vit_base_patch16_clip_224", 1, {}, []),
}  # fmt: skip


def card_for(write_card, architecture, prefix, arguments, drop, **weights):
    return write_card(
        architecture=architecture, arguments=ARGUMENTS | arguments, patch=PATCH, width=WIDTH, prefix_tokens=prefix,
        depth=DEPTH, weights={"file": "model.any", "drop": drop, **weights},
    )  # fmt: skip


def load(card):
    return load_encoder(EncoderChoice(str(card)), torch.device("cpu"), offline=True)


def noise(side):
    return np.random.default_rng(side).integers(0, 256, (2, side, side, 3), dtype=np.uint8)


def assert_same_tokens(encoder, reference, sides):
    for side in sides:
        grid = GridGeometry(side, PATCH)
        with torch.no_grad():
            expected = reference(input_pixels(encoder, noise(side), grid))[:, encoder.card.prefix_tokens :]
        found = token_grids(encoder, noise(side), grid)
        assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=3e-5), side
        assert float(expected.std()) > 0.1


@pytest.mark.parametrize("stored", ["in memory", "file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_transformers_give_its_tokens(write_card, tmp_path, family, stored):
    make, layout, architecture, prefix, arguments, drop = FAMILIES[family]
    model = scattered(make())
    if stored == "file":
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "model.any")
    else:
        torch.save(model.state_dict(), tmp_path / "model.any")
    assert published(read_weights(tmp_path / "model.any")) == layout
    encoder = load(card_for(write_card, architecture, prefix, arguments, drop))

    def reference(pixels):
        tokens = model(pixels).last_hidden_state
        # CLIP hands out tokens before its last norm, and norms the class token alone
        return model.post_layernorm(tokens) if family == "clip" else tokens

    # positions of DINOv3 are computed: it agrees at every size
    assert_same_tokens(encoder, reference, [SIDE, 6 * PATCH] if "dinov3" in family else [SIDE])


def test_the_image_tower_of_a_whole_clip_is_taken_once_the_card_drops_the_rest(write_card, tmp_path):
    config = transformers.CLIPConfig(vision_config={"hidden_act": "gelu", **COMMON}, text_config=CLIP_TEXT)
    whole = scattered(transformers.CLIPModel(config))
    save_file(whole.state_dict(), tmp_path / "model.any")
    with pytest.raises(WeightsMismatch) as caught:
        load(card_for(write_card, "vit_base_patch16_clip_224", 1, {}, []))
    assert "`drop: [logit_scale, text_model., text_projection., visual_projection.]`" in caught.value.next_step
    drop = ["logit_scale", "text_model.", "text_projection.", "visual_projection."]
    encoder = load(card_for(write_card, "vit_base_patch16_clip_224", 1, {}, drop))
    tower = whole.vision_model
    assert_same_tokens(encoder, lambda pixels: tower.post_layernorm(tower(pixels).last_hidden_state), [SIDE])


def tiny(architecture, **changes):
    return scattered(
        timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **ARGUMENTS | changes)
    )  # fmt: skip


OPEN_CLIP = (
    ("blocks.", "transformer.resblocks."), ("norm_pre.", "ln_pre."), (".norm", ".ln_"), (".qkv.", ".in_proj_"),
    (".attn.proj.", ".attn.out_proj."), (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."),
    ("patch_embed.proj.", "conv1."), ("pos_embed", "positional_embedding"), ("cls_token", "class_embedding"),
)  # fmt: skip


def as_open_clip(state):
    """Name the weights of a timm model as OpenAI's CLIP does, beside a text tower."""
    named = {}
    for name, tensor in state.items():
        new = f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for old, theirs in OPEN_CLIP:
            new = new.replace(old, theirs)
        named[f"visual.{new}"] = tensor.squeeze() if new in ("class_embedding", "positional_embedding") else tensor
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(4), "ln_final.weight": torch.ones(4)}
    text |= {
        "positional_embedding": torch.ones(7, 4),
        "logit_scale": torch.ones(()),
        "text_projection": torch.ones(4, 4),
    }
    return named | text | {"visual.proj": torch.ones(WIDTH, 4)}


def test_open_clip_is_renamed_as_timm_itself_renames_it(write_card, tmp_path):
    model = tiny("vit_base_patch16_clip_224")
    stored = as_open_clip(model.state_dict())
    theirs = vision_transformer.checkpoint_filter_fn(dict(stored), model)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, tmp_path / "model.any")
    assert published(stored) == "open-clip"
    with pytest.raises(WeightsMismatch) as caught:
        load(card_for(write_card, "vit_base_patch16_clip_224", 1, {}, []))
    text = ["ln_final.", "logit_scale", "positional_embedding", "text_projection", "transformer."]
    assert f"`drop: [{', '.join(text)}, visual.proj]`" in caught.value.next_step
    drop = [*text, "visual.proj"]
    state = load(card_for(write_card, "vit_base_patch16_clip_224", 1, {}, drop)).module.state_dict()
    assert all(torch.equal(state[name], theirs[name]) for name in state)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def as_dinov3(model):
    """Name the weights of timm's Eva as the publisher's DINOv3 does, with masked biases of keys and its constants."""
    stored = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("v_bias"):
            continue
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            keys = torch.full_like(tensor, 7.0)
            value = model.state_dict()[f"{block}v_bias"]
            stored[f"{block}qkv.bias"] = torch.cat([tensor, keys, value])
            stored[f"{block}qkv.bias_mask"] = torch.cat(
                [torch.ones_like(keys), torch.zeros_like(keys), torch.ones_like(keys)]
            )
            continue
        for theirs, ours in (("storage_tokens", "reg_token"), (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2")):
            name = name.replace(ours, theirs)
        stored[name] = tensor
    return stored | {"mask_token": torch.zeros(1, WIDTH), "rope_embed.periods": torch.full((4,), torch.nan)}


def test_the_publishers_dinov3_is_renamed_as_timm_itself_renames_it(write_card, tmp_path):
    model = tiny("vit_small_patch16_dinov3_qkvb")
    stored = as_dinov3(model)
    theirs = eva.checkpoint_filter_fn(dict(stored), model)
    save_file(stored, tmp_path / "model.any")
    assert published(stored) == "dinov3"
    state = load(card_for(write_card, "vit_small_patch16_dinov3_qkvb", 5, {}, [])).module.state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in state)
    del stored["blocks.1.attn.qkv.bias_mask"]  # then the biases of keys count, and no model has a place for them
    save_file(stored, tmp_path / "model.any")
    with pytest.raises(WeightsMismatch) as caught:
        load(card_for(write_card, "vit_small_patch16_dinov3_qkvb", 5, {}, []))
    assert "1 left over: blocks.1.attn.k_bias" in caught.value.found


def test_biases_of_zero_fit_a_dinov3_without_biases_and_others_name_the_architecture(write_card, tmp_path):
    model = scattered(dinov3())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.bias", "v_proj.bias")):
                parameter.zero_()
    torch.save(model.state_dict(), tmp_path / "model.any")
    card = card_for(write_card, "vit_small_patch16_dinov3", 5, {}, [])
    assert_same_tokens(load(card), lambda pixels: model(pixels).last_hidden_state, [SIDE])
    torch.save(scattered(model).state_dict(), tmp_path / "model.any")
    with pytest.raises(WeightsMismatch) as caught:
        load(card)
    assert "`architecture: vit_small_patch16_dinov3_qkvb`" in caught.value.next_step


def test_a_classifier_of_transformers_is_taken_after_its_head_is_dropped(write_card, tmp_path):
    config = transformers.ViTConfig(num_labels=4, **COMMON, **EXACT)
    model = scattered(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.any")
    with pytest.raises(WeightsMismatch) as caught:
        load(card_for(write_card, "vit_tiny_patch16_224", 1, {}, []))
    assert "`drop: [classifier.]`" in caught.value.next_step
    encoder = load(card_for(write_card, "vit_tiny_patch16_224", 1, {}, ["classifier."]))
    assert_same_tokens(encoder, lambda pixels: model.vit(pixels).last_hidden_state, [SIDE])


def test_a_layout_that_a_card_does_not_list_is_refused_with_the_line_that_lists_it(write_card, tmp_path):
    torch.save(scattered(dinov2()).state_dict(), tmp_path / "model.any")
    with pytest.raises(WeightsMismatch, match="keys have another layout") as caught:
        load(card_for(write_card, "vit_tiny_patch16_224", 1, {"init_values": 1.0}, [], layouts=["timm"]))
    assert "`weights.layouts: [timm, hf-dinov2]`" in caught.value.next_step
    layouts = ["timm", "hf-dinov2"]
    assert load(card_for(write_card, "vit_tiny_patch16_224", 1, {"init_values": 1.0}, [], layouts=layouts)).params


def torchvision_vit():
    return torchvision.models.VisionTransformer(SIDE, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=3)


def test_names_of_torchvision_give_its_tokens(write_card, tmp_path):
    model = scattered(torchvision_vit())
    torch.save(model.state_dict(), tmp_path / "model.any")
    with pytest.raises(WeightsMismatch, match=re.escape("`drop: [heads.]`")):
        load(card_for(write_card, "vit_tiny_patch16_224", 1, {}, []))
    encoder = load(card_for(write_card, "vit_tiny_patch16_224", 1, {}, ["heads."]))

    def reference(pixels):
        patches = model._process_input(pixels)
        return model.encoder(torch.cat([model.class_token.expand(len(patches), -1, -1), patches], 1))

    assert_same_tokens(encoder, reference, [SIDE])


@pytest.mark.parametrize("how", ["architecture", "act_layer"])
def test_the_note_on_quick_gelu_names_a_model_that_gives_the_tokens_of_the_library(write_card, tmp_path, caplog, how):
    tower = scattered(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(hidden_act="quick_gelu", **COMMON)))
    torch.save(tower.state_dict(), tmp_path / "model.any")
    plain = "vit_base_patch16_clip_224" if how == "architecture" else "vit_medium_patch16_clip_224"
    encoder = load(card_for(write_card, plain, 1, {}, []))
    (note,) = encoder.notes
    assert note in caplog.text
    line = yaml.safe_load(re.search(rf"`({how}: \w+)`", note)[1])
    caplog.clear()
    encoder = load(card_for(write_card, line.pop("architecture", plain), 1, line, []))
    assert encoder.notes == () and not caplog.text
    assert_same_tokens(encoder, lambda pixels: tower.post_layernorm(tower(pixels).last_hidden_state), [SIDE])


def small(name, monkeypatch, file, **arguments):
    """Return the encoder of a card that comes with fmcache, at a small width, with the weights in `file`."""
    card = msgspec.structs.replace(
        read_card(name), arguments=read_card(name).arguments | ARGUMENTS | arguments, patch=PATCH, width=WIDTH,
        depth=DEPTH, params=0,
    )  # fmt: skip
    monkeypatch.setattr(load_room, "read_card", lambda _: card)
    return load_encoder(EncoderChoice(name, str(file)), torch.device("cpu"), offline=True)


def test_a_file_in_the_shape_of_midnight_gives_its_tokens_under_its_card(tmp_path, monkeypatch):
    config = transformers.Dinov2Config(use_swiglu_ffn=True, **COMMON, **EXACT)
    model = scattered(transformers.Dinov2Model(config))
    model.save_pretrained(tmp_path)
    encoder = small("midnight-12k", monkeypatch, tmp_path)
    assert_same_tokens(encoder, lambda pixels: model(pixels).last_hidden_state, [SIDE])


@pytest.mark.parametrize("name", ["dinov2-vits14", "dinov2-vitb14", "dinov2-vitl14"])
def test_cards_of_dinov2_take_the_file_of_transformers(tmp_path, monkeypatch, name):
    model = scattered(transformers.Dinov2Model(transformers.Dinov2Config(**COMMON, **EXACT)))
    model.save_pretrained(tmp_path)
    encoder = small(name, monkeypatch, tmp_path)
    assert_same_tokens(encoder, lambda pixels: model(pixels).last_hidden_state, [SIDE])


@pytest.mark.parametrize("name", ["dinov3-vits16", "dinov3-vitb16", "dinov3-vitl16"])
def test_cards_of_dinov3_take_the_file_of_transformers(tmp_path, monkeypatch, name):
    config = transformers.DINOv3ViTConfig(num_register_tokens=4, **COMMON)
    model = scattered(transformers.DINOv3ViTModel(config))
    with torch.no_grad():  # as published: timm leaves them out
        for key, parameter in model.named_parameters():
            if re.search(r"[qkv]_proj\.bias$", key):
                parameter.zero_()
    model.save_pretrained(tmp_path)
    encoder = small(name, monkeypatch, tmp_path)
    assert_same_tokens(encoder, lambda pixels: model(pixels).last_hidden_state, [SIDE])
    assert read_card(name).weights.layouts == ("timm", "hf-dinov3", "dinov3")
