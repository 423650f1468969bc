"""Every published layout, written by the library that publishers used, loaded by us: the same tokens."""

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from fmcache.encoders.cards import STUDY, read_card
from fmcache.encoders.fitting import fit_weights
from fmcache.encoders.load import META, build, load_encoder
from fmcache.encoders.tokens import input_pixels, token_grids
from fmcache.encoders.weight_layouts import published, to_timm
from fmcache.errors import WeightsMismatch
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

WIDTH, DEPTH, HEADS, PATCH, SIDE = 48, 3, 3, 8, 32
COMMON = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "image_size": SIDE,
    "patch_size": PATCH, "layer_norm_eps": 1e-6,
}  # fmt: skip
ARGUMENTS = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}


def card_with(write_card, layout, prefix, **arguments):
    path = write_card(
        arguments=ARGUMENTS | arguments, patch=PATCH, width=WIDTH, prefix_tokens=prefix, depth=DEPTH,
        weights={"file": "model.safetensors", "layouts": [layout], "drop": ["pooler.", "embeddings.mask_token"]},
    )  # fmt: skip
    return str(path)


def scattered(model):
    """Give every parameter values of its own: what is never initialised otherwise could be dropped unseen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def vit():
    return scattered(transformers.ViTModel(transformers.ViTConfig(intermediate_size=4 * WIDTH, **COMMON)))


def dinov2():
    return scattered(transformers.Dinov2Model(transformers.Dinov2Config(**COMMON)))


def dinov2_with_registers():
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, use_swiglu_ffn=True, **COMMON)
    return scattered(transformers.Dinov2WithRegistersModel(config))


SWIGLU = {
    "mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 2 * 128 / WIDTH, "reg_tokens": 4,
    "no_embed_class": True, "init_values": 1.0e-5,
}  # fmt: skip
FAMILIES = {
    "hf-vit": (vit, 1, {}, [SIDE]),
    "hf-dinov2": (dinov2, 1, {"init_values": 1.0e-5}, [SIDE]),
    # antialiased bicubic, as in timm: the only family that agrees with it at other sizes too
    "hf-dinov2-registers": (dinov2_with_registers, 5, SWIGLU, [SIDE, 5 * PATCH]),
}


def noise(side):
    return np.random.default_rng(side).integers(0, 256, (2, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", FAMILIES)
def test_weights_as_transformers_writes_them_give_the_tokens_of_transformers(write_card, tmp_path, layout):
    make, prefix, arguments, sides = FAMILIES[layout]
    model = make()
    model.save_pretrained(tmp_path)
    assert published(load_file(tmp_path / "model.safetensors")) == layout
    encoder = load_encoder(EncoderChoice(card_with(write_card, layout, prefix, **arguments)), torch.device("cpu"))
    for side in sides:
        grid = GridGeometry(side, PATCH)
        with torch.no_grad():
            expected = model(input_pixels(encoder, noise(side), grid)).last_hidden_state[:, prefix:]
        found = token_grids(encoder, noise(side), grid)
        assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=2e-5), side
        assert float(expected.std()) > 0.1


def as_dinov2(model):
    """Name the weights of a timm model as the publisher's DINOv2 does, its CLS position split off again."""
    state = model.state_dict()
    position = torch.linspace(-1, 1, state["cls_token"].shape[-1])[None, None]
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, WIDTH)
    names_there = {"reg_token": "register_tokens"}
    return {
        names_there.get(name, name).replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in state.items()
    }


def timm_model(**arguments):
    classes = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    plain = {name: classes.get(name, value) for name, value in (ARGUMENTS | arguments).items()}
    return scattered(timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **plain))


def test_the_publishers_dinov2_file_is_renamed_as_timm_itself_renames_it(write_card, tmp_path):
    model = timm_model(**SWIGLU)
    stored = as_dinov2(model)
    card = read_card(card_with(write_card, "dinov2", 5, **SWIGLU))
    dropping = type(card.weights)(file="w", layouts=("dinov2",), drop=("mask_token",))
    card = type(card)(**{f: getattr(card, f) for f in card.__struct_fields__} | {"weights": dropping})
    ours, theirs = to_timm(tmp_path, stored, card).state, checkpoint_filter_fn(dict(stored), model)
    assert published(stored) == "dinov2"
    assert ours.keys() == theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # the sum of CLS and its position is what the model had
    assert torch.allclose(ours["cls_token"], model.state_dict()["cls_token"], atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "prefix", "surplus"),
    [
        ("conch", "visual.trunk.", ["visual.attn_pool_contrast.q", "text.cls_emb", "logit_scale", "text_decoder.x"]),
        ("conchv1.5", "trunk.", ["attn_pool_contrast.query", "ln_contrast.weight"]),
    ],
)
def test_the_trunk_of_conch_is_taken_and_its_pooler_and_text_tower_are_left(
    write_card, tmp_path, layout, prefix, surplus
):
    model = timm_model()
    stored = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    stored |= {name: torch.ones(2) for name in surplus}
    path = tmp_path / "model.safetensors"
    save_file(stored, path)
    assert published(stored) == layout
    weights = {"file": path.name, "layouts": [layout], "drop": list(read_card(layout).weights.drop)}
    card = card_with(write_card, layout, 1)
    text = write_card(arguments=ARGUMENTS, patch=PATCH, width=WIDTH, prefix_tokens=1, depth=DEPTH, weights=weights)
    assert str(text) == card
    encoder = load_encoder(EncoderChoice(card), torch.device("cpu"))
    image, grid = noise(SIDE), GridGeometry(SIDE, PATCH)
    with torch.no_grad():
        expected = model.forward_features(input_pixels(encoder, image, grid))[:, 1:]
    assert torch.allclose(token_grids(encoder, image, grid).flatten(2).transpose(1, 2), expected, atol=1e-5)
    save_file(stored | {"someone.else": torch.ones(2)}, path)
    with pytest.raises(WeightsMismatch, match="does not fit") as caught:
        load_encoder(EncoderChoice(card), torch.device("cpu"))
    assert "someone.else" in caught.value.found


def test_conchv15_is_built_at_the_size_of_the_position_table_in_its_file(write_card, tmp_path):
    path = tmp_path / "model.safetensors"
    card = write_card(
        arguments=ARGUMENTS, patch=PATCH, width=WIDTH, prefix_tokens=1, depth=DEPTH,
        weights={"file": path.name, "layouts": ["conchv1.5"], "stored_px": [48]},
    )  # fmt: skip
    for side, loads in ((SIDE, True), (48, True), (64, False)):
        state = timm_model(img_size=side).state_dict()
        save_file({f"trunk.{name}": tensor for name, tensor in state.items()}, path)
        if loads:
            module = load_encoder(EncoderChoice(str(card)), torch.device("cpu")).module
            assert torch.equal(module.pos_embed, state["pos_embed"])
        else:
            with pytest.raises(WeightsMismatch):
                load_encoder(EncoderChoice(str(card)), torch.device("cpu"))


def test_registers_that_are_missing_are_named(write_card, tmp_path):
    dinov2_with_registers().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(path).items() if "register" not in name}
    save_file(state, path)
    card = card_with(write_card, "hf-dinov2-registers", 5, **SWIGLU)
    with pytest.raises(WeightsMismatch, match="keys have another layout") as caught:
        load_encoder(EncoderChoice(card), torch.device("cpu"))
    assert "hf-dinov2:" in caught.value.found


# keys, parameters and position table of the published models, as their publishers' code builds them
SHEET = {
    "uni": (342, 303_350_784, (1, 197, 1024)),
    "uni2-h": (343, 681_394_176, (1, 256, 1536)),
    "conch": (150, 86_250_240, (1, 785, 768)),
    "conchv1.5": (342, 303_952_896, (1, 785, 1024)),
    "phikon": (150, 85_798_656, (1, 197, 768)),
    "phikon-v2": (342, 303_350_784, (1, 197, 1024)),
    "virchow": (454, 631_229_184, (1, 257, 1280)),
    "virchow2": (455, 631_239_424, (1, 261, 1280)),
    "prov-gigapath": (566, 1_134_953_984, (1, 197, 1536)),
    "h-optimus-0": (567, 1_134_774_272, (1, 256, 1536)),
    "h-optimus-1": (567, 1_134_774_272, (1, 256, 1536)),
    "kaiko-vitl14": (343, 304_370_688, (1, 1369, 1024)),
    "lunit-vits8": (150, 21_670_272, (1, 785, 384)),
    "hibou-b": (175, 85_739_520, (1, 256, 768)),
    "hibou-l": (343, 303_657_216, (1, 256, 1024)),
}


def test_the_cards_are_those_of_the_fifteen_encoders_of_the_study():
    assert set(STUDY) == SHEET.keys()


@pytest.fixture(scope="module")
def outlines():
    """Names and shapes of all fifteen, on the meta device."""
    return {name: build(read_card(name), META).state_dict() for name in SHEET}


@pytest.mark.parametrize("name", SHEET)
def test_an_encoder_of_the_study_has_its_published_keys_parameters_and_position_table(name, outlines):
    keys, params, table = SHEET[name]
    assert len(outlines[name]) == keys
    assert sum(tensor.numel() for tensor in outlines[name].values()) == params
    assert tuple(outlines[name]["pos_embed"].shape) == table


@pytest.mark.parametrize("name", SHEET)
def test_a_file_of_another_encoder_of_the_study_is_refused_with_its_outline(name, outlines, tmp_path):
    """Shapes alone decide here; twins (UNI and Phikon-v2, both H-Optimus) differ only in their sha256."""
    refused = 0
    for other in SHEET.keys() - {name}:
        if SHEET[other] == SHEET[name]:
            continue
        with pytest.raises(WeightsMismatch, match="does not fit") as caught:
            fit_weights(tmp_path, outlines[other], read_card(name), outlines[name])
        assert "it looks like patch" in caught.value.found
        refused += 1
    assert refused >= 13
