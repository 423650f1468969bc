import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from fmcache.encoders.building import META, build
from fmcache.encoders.cards import card_names, read_card
from fmcache.encoders.load import card_for_timm, load_encoder, sha256_state
from fmcache.encoders.outlines import check_card
from fmcache.errors import EncoderUnavailable, SpecError
from fmcache.identity import sha256_file
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")


def load(name, weights="", random_weights=False):
    return load_encoder(EncoderChoice(str(name), str(weights), random_weights), CPU, offline=True)


@pytest.mark.parametrize("name", [name for name in card_names() if read_card(name).kind == "timm"])
def test_every_built_in_card_is_what_timm_builds_from_it(name):
    card = read_card(name)
    assert card.params > 0
    assert card.depth > 0 or card.architecture == "resnet50"
    outlined = check_card(card, build(card, META))
    assert outlined.params == card.params
    assert outlined.native_px == card.native_px


def test_virchow2_has_the_published_shapes():
    model = build(read_card("virchow2"), META)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 455
    assert shapes["pos_embed"] == (1, 261, 1280)
    assert shapes["reg_token"] == (1, 4, 1280)
    assert shapes["blocks.31.mlp.fc1.weight"] == (6832, 1280)
    assert shapes["blocks.31.mlp.fc2.weight"] == (1280, 3416)
    assert shapes["blocks.31.ls1.gamma"] == (1280,)
    assert isinstance(model.blocks[0].mlp.act, torch.nn.SiLU)


def test_an_encoder_is_frozen_and_in_evaluation_mode(write_card):
    encoder = load(write_card(), random_weights=True)
    assert not any(module.training for module in encoder.module.modules())
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    assert encoder.params == sum(parameter.numel() for parameter in encoder.module.parameters()) > 0
    assert encoder.random_weights


def test_raw_pixels_have_neither_weights_nor_parameters():
    encoder = load("raw-pixels")
    assert (encoder.weights_sha256, encoder.params, encoder.random_weights) == ("", 0, False)
    with pytest.raises(SpecError, match="'raw-pixels' has no weights"):
        load("raw-pixels", random_weights=True)


def test_random_weights_are_the_same_in_every_process(write_card):
    path = write_card()
    here = load(path, random_weights=True).weights_sha256
    script = (
        "import sys, torch; from fmcache.encoders.load import load_encoder; from fmcache.specs import EncoderChoice; "
        "torch.manual_seed(9); choice = EncoderChoice(sys.argv[1], random_weights=True); "
        "print(load_encoder(choice, torch.device('cpu')).weights_sha256)"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == here


def test_random_weights_differ_between_architectures(write_card):
    first = load(write_card(), random_weights=True)
    # one head more or less moves no shape: only the seed can tell these two apart
    arguments = dict(first.card.arguments, num_heads=4)
    second = load(write_card(arguments=arguments), random_weights=True)
    assert first.weights_sha256 != second.weights_sha256


def test_loading_leaves_the_global_generator_alone(write_card, tiny_model, tmp_path):
    save_file(tiny_model().state_dict(), tmp_path / "weights.safetensors")
    path = write_card()
    before = torch.get_rng_state()
    load(path)
    load(path, random_weights=True)
    card_for_timm("vit_tiny_patch16_224")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_identity_of_weights_is_the_sha256_of_their_file(write_card, tiny_model, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(tiny_model().state_dict(), weights)
    encoder = load(write_card())
    assert encoder.weights_sha256 == sha256_file(weights)
    assert not encoder.random_weights


def test_the_identity_of_a_state_dict_moves_with_names_values_shapes_and_types():
    state = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.ones(2)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.zeros(4, dtype=torch.float16)},
    ]
    assert sha256_state(state) == sha256_state(dict(reversed(state.items())))
    assert len({sha256_state(other) for other in [state, *others]}) == 5


@pytest.mark.parametrize(
    ("field", "value"), [("width", 64), ("patch", 8), ("prefix_tokens", 1), ("depth", 3), ("params", 1)]
)
def test_a_card_that_contradicts_its_model_is_refused_by_field(write_card, field, value):
    with pytest.raises(SpecError, match=f"contradicts the model that timm builds from it: {field}") as caught:
        load(write_card(**{field: value}), random_weights=True)
    assert caught.value.expected == f"{field}: {value}"


def test_a_class_that_is_not_known_lists_those_that_are(write_card):
    with pytest.raises(SpecError, match=r"arguments.mlp_layer has no class called 'swigloo'") as caught:
        load(write_card(arguments={"mlp_layer": "swigloo"}), random_weights=True)
    assert "swiglu_packed" in caught.value.expected


def test_an_argument_that_timm_does_not_take_is_named(write_card):
    with pytest.raises(SpecError, match="cannot build") as caught:
        load(write_card(arguments={"heads": 3}), random_weights=True)
    assert "'heads'" in caught.value.found


def test_a_timm_model_gets_its_card_from_itself():
    card = card_for_timm("vit_small_patch14_reg4_dinov2.lvd142m")
    assert (card.patch, card.width, card.prefix_tokens, card.depth, card.native_px) == (14, 384, 5, 12, 518)
    assert card.mean == (0.485, 0.456, 0.406)
    assert "'lvd142m'" in card.notes
    encoder = load("timm:vit_tiny_patch16_224", random_weights=True)
    assert encoder.card.name == "timm-vit_tiny_patch16_224"
    assert encoder.params == encoder.card.params == 5524416


def test_a_timm_model_without_weights_says_what_to_pass():
    with pytest.raises(EncoderUnavailable, match="needs weights") as caught:
        load("timm:vit_tiny_patch16_224")
    assert "--weights FILE, or --random-weights" in caught.value.next_step


def test_rotary_tables_that_no_file_holds_are_computed(write_card, tmp_path):
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    path = write_card(architecture="vit_small_patch16_rope_224", arguments=arguments, prefix_tokens=1)
    module = load(path, random_weights=True).module
    assert list(module.buffers())
    for parameter in module.parameters():
        parameter.add_(torch.linspace(0, 0.1, parameter.numel()).reshape(parameter.shape))
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    assert torch.equal(load(path).module.forward_features(pixels), module.forward_features(pixels))


@pytest.mark.parametrize("name", ["vit_small_r26_s32_224", "mixer_s32_224", "crossvit_tiny_240", "vit_tinny"])
def test_a_timm_model_without_a_token_grid_is_refused(name):
    with pytest.raises(SpecError, match=name) as caught:
        load(f"timm:{name}", random_weights=True)
    assert caught.value.expected


def test_a_hub_name_is_never_handed_to_timm():
    with pytest.raises(SpecError, match="has no model 'hf-hub:a/b'"):
        load("timm:hf-hub:a/b", random_weights=True)


def test_random_weights_and_a_file_exclude_each_other(write_card, tmp_path):
    with pytest.raises(SpecError, match="both random weights and a weights file"):
        load(write_card(), tmp_path / "w.safetensors", random_weights=True)
