import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmcache.encoders.cards import read_card
from fmcache.encoders.fitting import fit_weights
from fmcache.encoders.load import load_encoder
from fmcache.encoders.reading import read_weights
from fmcache.encoders.weights import find_weights
from fmcache.errors import EncoderUnavailable, WeightsMismatch
from fmcache.identity import sha256_file
from fmcache.specs import EncoderChoice


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def load(card, weights=""):
    return load_encoder(EncoderChoice(str(card), str(weights)), torch.device("cpu"), offline=True)


def save_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_wrapped(state, path):
    torch.save({"model": state, "epoch": 3}, path)


@pytest.mark.parametrize("save", [save_file, torch.save, save_old, save_wrapped])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_kind_of_file_gives_the_weights_that_were_saved(write_card, tiny_model, tmp_path, save, dtype):
    state = {name: tensor.to(dtype) for name, tensor in tiny_model().state_dict().items()}
    save(state, tmp_path / "any.name")
    loaded = load(write_card(), tmp_path / "any.name").module.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)


def test_weights_stay_when_their_file_is_overwritten(write_card, tiny_model, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny_model().state_dict(), path)
    loaded = load(write_card()).module.state_dict()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny_model().state_dict().items())


def save_pickle(value, path):
    path.write_bytes(pickle.dumps(value, 2))


def run_checkpoint(path):
    torch.load(path, weights_only=False)


def run_pickle(path):
    pickle.loads(path.read_bytes())  # noqa: S301


@pytest.mark.parametrize(
    ("save", "run"), [(torch.save, run_checkpoint), (save_old, run_checkpoint), (save_pickle, run_pickle)]
)
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, save, run):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    save({"a": Trap(canary)}, path)
    with pytest.raises(WeightsMismatch, match="was refused: reading it could run code") as caught:
        read_weights(path)
    assert not canary.exists()
    assert "mkdir" in caught.value.found
    run(path)
    assert canary.exists()  # the trap does spring where nobody is careful


@pytest.mark.parametrize("save", [save_file, torch.save, save_old])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tiny_model, tmp_path, save, share):
    path = tmp_path / "weights"
    save(tiny_model().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsMismatch, match=r"truncated or corrupt"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>"])
def test_what_is_no_weights_file_is_called_so(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match="is not a weights file"):
        read_weights(path)


def test_a_file_of_another_encoder_is_outlined(write_card, tiny_model, tmp_path):
    other = tiny_model(embed_dim=96, depth=3, patch_size=8)
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsMismatch, match="does not fit 'tiny'") as caught:
        load(write_card())
    assert "patch 16, width 48, 2 blocks" in caught.value.expected
    assert "patch 8, width 96, 3 blocks" in caught.value.found
    assert "blocks.2.attn.proj.bias (96,)" in caught.value.found
    assert "instead of" in caught.value.found


def test_a_missing_key_is_named_with_its_shape(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict()
    del state["norm.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card())
    assert caught.value.found.endswith("1 missing: norm.weight (48,)")


def test_keys_beyond_the_encoder_are_refused_unless_the_card_drops_them(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict() | {"head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card())
    assert "2 left over: head.bias (10,), head.weight (10, 48)" in caught.value.found
    encoder = load(write_card(weights={"file": "weights.safetensors", "drop": ["head."]}))
    assert torch.equal(encoder.module.norm.weight, state["norm.weight"])


def test_a_classifier_in_the_file_of_a_timm_model_is_dropped(tmp_path):
    encoder = load_encoder(
        EncoderChoice("timm:vit_tiny_patch16_224", random_weights=True), torch.device("cpu"), offline=True
    )
    state = encoder.module.state_dict() | {"head.weight": torch.ones(10, 192), "head.bias": torch.ones(10)}
    save_file(state, tmp_path / "w.safetensors")
    loaded = load("timm:vit_tiny_patch16_224", tmp_path / "w.safetensors")
    assert (loaded.params, loaded.random_weights) == (encoder.params, False)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_a_position_table_of_another_size_gives_the_image_size_to_write(
    write_card, tiny_model, tmp_path, no_embed_class
):
    save_file(tiny_model(img_size=96, no_embed_class=no_embed_class).state_dict(), tmp_path / "weights.safetensors")
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "reg_tokens": 2, "init_values": 0.1}
    arguments["no_embed_class"] = no_embed_class
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card(arguments=arguments))
    assert "`img_size: 96`" in caught.value.next_step
    assert load(write_card(arguments=arguments | {"img_size": 96})).params > 0


def test_layer_scale_as_it_was_made_is_not_taken_for_trained(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict()
    gammas = [name for name in state if name.endswith("gamma")]
    assert len(gammas) == 4
    untrained = {name: torch.full_like(t, 1e-5) if name in gammas else t for name, t in state.items()}
    save_file(untrained, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsMismatch, match="does not seem to hold a trained LayerScale") as caught:
        load(write_card())
    assert "1e-05 in all 4 gammas" in caught.value.found
    untrained[gammas[-1]] = state[gammas[-1]]
    save_file(untrained, tmp_path / "weights.safetensors")
    assert load(write_card()).params > 0


def test_the_sha256_of_a_card_must_match(write_card, tiny_model, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny_model().state_dict(), path)
    right = sha256_file(path)
    assert load(write_card(weights={"file": path.name, "sha256": right})).weights_sha256 == right
    with pytest.raises(WeightsMismatch, match="is not the file whose sha256 the card states"):
        load(write_card(weights={"file": path.name, "sha256": "0" * 64}))


def test_a_chosen_file_or_folder_goes_before_the_card(write_card, tmp_path):
    card = read_card(str(write_card(weights={"repo": "someone/model", "file": "sub/model.safetensors"})))
    (tmp_path / "folder").mkdir()
    inside = tmp_path / "folder" / "model.safetensors"
    with pytest.raises(EncoderUnavailable, match="holds no weights of 'tiny'") as caught:
        find_weights(card, str(tmp_path / "folder"), offline=True, lock=None)
    assert caught.value.found == "an empty folder"
    inside.touch()
    assert find_weights(card, str(tmp_path / "folder"), offline=True, lock=None).path == inside
    assert find_weights(card, str(inside), offline=True, lock=None).path == inside
    with pytest.raises(EncoderUnavailable, match="there is no weights file"):
        find_weights(card, str(tmp_path / "nowhere"), offline=True, lock=None)


def test_a_card_whose_file_is_not_there_says_where_it_was_looked_for(write_card, tmp_path):
    with pytest.raises(EncoderUnavailable) as caught:
        load(write_card())
    assert str(tmp_path / "weights.safetensors") in caught.value.problem


def test_nothing_is_resampled_or_renamed_on_the_way(write_card, tiny_model):
    model = tiny_model()
    card = read_card(str(write_card()))
    fitted = fit_weights(Path("w"), model.state_dict(), card, model.state_dict())
    assert all(torch.equal(fitted[name], tensor) for name, tensor in model.state_dict().items())
