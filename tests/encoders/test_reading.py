"""Files that are weights in several parts, and files that are none: each read whole, or called by its name."""

import json
import pickle
import re
import shlex
import zipfile
from fractions import Fraction

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import save_file

from fmcache.encoders.load import load_encoder
from fmcache.encoders.reading import read_weights
from fmcache.errors import EncoderUnavailable, WeightsMismatch
from fmcache.identity import sha256_file
from fmcache.specs import EncoderChoice


def load(card, weights=""):
    return load_encoder(EncoderChoice(str(card), str(weights)), torch.device("cpu"), offline=True)


def in_parts(folder, state, save=save_file, kind="model.safetensors"):
    """Write a state dict in two files and their index, as transformers does; return the index."""
    stem, _, ending = kind.partition(".")
    names = sorted(state)
    files = {f"{stem}-0000{i + 1}-of-00002.{ending}": names[i::2] for i in range(2)}
    folder.mkdir(exist_ok=True)
    for file, part in files.items():
        save({name: state[name] for name in part}, folder / file)
    index = folder / f"{kind}.index.json"
    listed = {name: file for file, part in files.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return index


@pytest.mark.parametrize(
    ("save", "kind"), [(save_file, "model.safetensors"), (torch.save, "pytorch_model.bin")]
)  # fmt: skip
def test_weights_in_several_files_are_read_by_their_index_or_folder(write_card, tiny_model, tmp_path, save, kind):
    state = tiny_model().state_dict()
    index = in_parts(tmp_path / "parts", state, save, kind)
    by_index, by_folder = load(write_card(), index), load(write_card(), index.parent)
    by_card = load(write_card(weights={"file": f"parts/{index.name}"}))
    by_folder_in_card = load(write_card(weights={"file": "parts"}))
    assert all(torch.equal(by_index.module.state_dict()[name], state[name]) for name in state)
    digests = {one.weights_sha256 for one in (by_index, by_folder, by_card, by_folder_in_card)}
    assert len(digests) == 1
    part = next(index.parent.glob("*00002.*"))
    save({name: tensor + 1 for name, tensor in read_weights(part).items()}, part)
    assert load(write_card(), index).weights_sha256 not in digests  # it covers every file


def test_an_index_never_leads_out_of_its_folder(tiny_model, tmp_path):
    index = in_parts(tmp_path / "parts", tiny_model().state_dict())
    save_file(tiny_model().state_dict(), tmp_path / "secret.safetensors")
    for file in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "..", "", "..\\secret", "sub/x", "C:x"):
        index.write_text(json.dumps({"weight_map": {"norm.weight": file}}))
        with pytest.raises(WeightsMismatch, match="lists a file that is not beside it"):
            read_weights(index)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 9999]
)
def test_what_is_no_index_is_called_so(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsMismatch, match="is not an index of weights files"):
        read_weights(tmp_path / "model.safetensors.index.json")


def test_run_files_that_are_missing_or_hold_other_keys_than_listed_are_refused(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict()
    index = in_parts(tmp_path / "parts", state)
    part = index.parent / "model-00002-of-00002.safetensors"
    save_file(read_weights(part) | {"more": torch.ones(2)}, part)
    with pytest.raises(WeightsMismatch, match=r"does not hold what .* lists for it") as caught:
        load(write_card(), index)
    assert "more" in caught.value.found
    part.unlink()
    with pytest.raises(WeightsMismatch, match="1 of them are not beside it") as caught:
        load(write_card(), index)
    assert part.name in caught.value.found


def test_one_part_alone_leads_to_its_index(write_card, tiny_model, tmp_path):
    index = in_parts(tmp_path / "parts", tiny_model().state_dict())
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card(), index.parent / "model-00001-of-00002.safetensors")
    assert str(index) in caught.value.next_step


def test_a_folder_of_transformers_is_enough_for_a_card_without_a_file(tiny_model, write_card, tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    save_file(tiny_model().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    card = write_card(weights=None)
    assert load(card, folder).weights_sha256 == sha256_file(folder / "model.safetensors")


def write_zip(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def script(path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


NO_WEIGHTS = {
    "TorchScript": (script, "is a TorchScript archive"),
    "ONNX": (lambda p: p.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x05"), "it is an ONNX file"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "it is an HDF5 file"),
    "GGUF": (lambda p: p.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(99)), "it is a GGUF file"),
    "npz": (lambda p: write_zip(p, {"a.npy": b"x", "b.npy": b"x"}), "is a NumPy archive"),
    "npy": (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00" + bytes(99)), "it is a NumPy array"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "it is a gzip archive"),
    "zip": (lambda p: write_zip(p, {"weights.pth": b"x", "readme.txt": b"x"}), "is a zip archive"),
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "Keras": (lambda p: write_zip(p, {"config.json": b"{}", "model.weights.h5": b"x"}), "is a Keras archive"),
    "an answer": (lambda p: p.write_bytes(b'{"error": "Access to this model is restricted"}'), "it is a text (JSON)"),
    "git-lfs": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "it is a git-lfs pointer"),
    "web page": (lambda p: p.write_bytes(b"\n<!doctype html><html>"), "it is a web page"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_files_of_other_kinds_are_refused_by_name_with_what_to_do(tmp_path, kind):
    write, says = NO_WEIGHTS[kind]
    write(tmp_path / "weights.bin")
    with pytest.raises(WeightsMismatch) as caught:
        read_weights(tmp_path / "weights.bin")
    assert says in caught.value.problem
    assert caught.value.next_step


def test_a_checkpoint_is_known_by_its_bytes_whatever_its_name_says(write_card, tiny_model, tmp_path):
    for old in (False, True):
        path = tmp_path / "weights.safetensors"
        torch.save(tiny_model().state_dict(), path, _use_new_zipfile_serialization=not old)
        assert load(write_card()).params


def typed(next_step):
    """Run the Python command that a message names, as a shell would pass it on; return the file it leaves."""
    command, path = re.search(r"(python -c .*), and pass (\S+)$", next_step).groups()
    python, flag, program = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    exec(program, {})  # noqa: S102
    return path


def test_the_way_out_of_torchscript_works(write_card, tiny_model, tmp_path):
    model = tiny_model()
    holder = torch.nn.Module()  # as small a program as holds the weights
    for name, tensor in model.state_dict().items():
        at = holder
        *path, last = name.split(".")
        for part in path:
            at.add_module(part, getattr(at, part, torch.nn.Module()))
            at = getattr(at, part)
        at.register_parameter(last, torch.nn.Parameter(tensor))
    torch.jit.script(holder).save(str(tmp_path / "own.pt"))
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card(), tmp_path / "own.pt")
    loaded = load(write_card(), typed(caught.value.next_step)).module
    assert torch.equal(loaded.norm.weight, model.norm.weight)


def test_the_way_out_of_a_distributed_checkpoint_works(write_card, tiny_model, tmp_path):
    model = tiny_model()
    torch.distributed.checkpoint.save({"model": model.state_dict()}, checkpoint_id=str(tmp_path / "step_9"))
    with pytest.raises(EncoderUnavailable, match=r"torch\.distributed") as caught:
        load(write_card(), tmp_path / "step_9")
    loaded = load(write_card(), typed(caught.value.next_step)).module
    assert torch.equal(loaded.norm.weight, model.norm.weight)


@pytest.mark.parametrize(
    "stored",
    [
        lambda m: m,
        lambda m: {"model": m.state_dict(), "by": Fraction(1, 2)},
        lambda m: {name: tensor.numpy() for name, tensor in m.state_dict().items()},
    ],
)
def test_the_way_out_of_a_checkpoint_with_code_works(write_card, tiny_model, tmp_path, stored):
    model = tiny_model()
    torch.save(stored(model), tmp_path / "own.pth")
    with pytest.raises(WeightsMismatch, match="could run code") as caught:
        load(write_card(), tmp_path / "own.pth")
    loaded = load(write_card(), typed(caught.value.next_step)).module
    assert torch.equal(loaded.norm.weight, model.norm.weight)


def save_qint8(state, path):
    torch.save({name: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8) for name, t in state.items()}, path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, "qint8"])
def test_quantised_weights_are_refused_by_name(write_card, tiny_model, tmp_path, dtype):
    state = tiny_model().state_dict()
    path = tmp_path / "weights.safetensors"
    if dtype == "qint8":
        save_qint8(state, path)
    else:
        save_file({name: t.to(dtype) if "mlp" in name and t.ndim > 1 else t for name, t in state.items()}, path)
    with pytest.raises(WeightsMismatch, match="holds quantised weights") as caught:
        load(write_card())
    assert str(dtype).removeprefix("torch.") in caught.value.found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_by_key(write_card, tiny_model, tmp_path, value):
    state = tiny_model().state_dict()
    state["blocks.1.attn.qkv.weight"][0, :5] = value
    state["norm.bias"][3] = value
    torch.save({"model": {f"backbone.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch, match="NaN or infinite") as caught:
        load(write_card(weights={"file": "w.pth"}))
    assert caught.value.found.startswith("6 values in 2 keys")
    assert "blocks.1.attn.qkv.weight (5 of 6912)" in caught.value.found
    assert "norm.bias (1 of 48)" in caught.value.found


def test_values_of_dropped_keys_do_not_count(write_card, tiny_model, tmp_path):
    state = tiny_model().state_dict() | {"head.weight": torch.full((2,), torch.nan)}
    save_file(state, tmp_path / "weights.safetensors")
    assert load(write_card(weights={"file": "weights.safetensors", "drop": ["head."]})).params


def expanded(path):
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)


def inflated(path):
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries[next(name for name in entries if name.endswith("data.pkl"))] = b"\x80\x02" + b"N" * 2**24 + b"."
    write_zip(path, entries, zipfile.ZIP_DEFLATED)


def laughing(path):
    value: dict = {"x": 1}
    for _ in range(12):
        value = {f"k{i}": value for i in range(30)}
    path.write_bytes(pickle.dumps(value, 2))


def endless(path):
    path.write_bytes(b"\x80\x02" + b"(" * 10**4 + b".")


def huge(path):
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x40\x85R.")


@pytest.mark.parametrize("bomb", [expanded, inflated, laughing, endless, huge])
def test_a_small_file_that_would_fill_memory_or_time_is_one_plain_error(write_card, tmp_path, bomb):
    bomb(tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch) as caught:
        load(write_card(weights={"file": "w.pth"}))
    assert len(str(caught.value)) < 900


def test_weights_without_values_are_refused(write_card, tiny_model, tmp_path):
    torch.save({name: tensor.to("meta") for name, tensor in tiny_model().state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch, match="cannot be read"):
        load(write_card(weights={"file": "w.pth"}))
