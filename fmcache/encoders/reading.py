"""Read the tensors of a weights file without running any code in it; errors name the kind of other files."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fmcache.encoders.index import is_index, parts_of
from fmcache.encoders.peeling import WRAPPERS, State
from fmcache.errors import WeightsMismatch, some

PLAIN = (argparse.Namespace, PosixPath)
"""Classes that training scripts store beside the weights (their arguments); they contain no code of their own."""

_COMMON = ("state_dict", "model", "teacher", "student", "net")
_BROKEN = (
    RuntimeError,
    EOFError,
    OSError,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
    NotImplementedError,
)
_CONVERT = "convert it where it was made, and pass a state dict saved as safetensors"
_OTHER_KINDS = (
    (b"\x89HDF\r\n", "an HDF5 file (Keras, TensorFlow)", _CONVERT),
    (b"GGUF", "a GGUF file (quantised weights of language models)", "pass the original weights"),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
    (b"\x1f\x8b", "a gzip archive", "unpack it, and pass the weights file inside"),
    (b"BZh", "a bzip2 archive", "unpack it, and pass the weights file inside"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it, and pass the weights file inside"),
    (b"Rar!", "a RAR archive", "unpack it, and pass the weights file inside"),
    (b"version https://git-lfs", "a git-lfs pointer", "fetch the file itself: git lfs pull"),
    (b"{", "a text (JSON)", "fetch the file itself: this may be the answer of a server instead of the file"),
    (b"<", "a web page, or another markup file", "fetch the file itself: a web page was saved instead of the file"),
)


def read_weights(path: Path) -> State:
    """Return the tensors in a safetensors file, a torch checkpoint, or the files of an index.

    The tensors are on the CPU, in their stored types. The first bytes of a file decide its kind, not its name. Pickled
    checkpoints are read by torch's restricted reader, which creates only tensors and plain containers. If state dicts
    are below other keys (`WRAPPERS`), these keys are put before the names, joined with dots.

    Raises
    ------
    WeightsMismatch
        When the file is truncated or of another kind, or holds code, no tensors, or tensors larger than itself.
    """
    if is_index(path):
        return _joined(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{":
        state = _read_safetensors(path)
    elif head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        state = _flat(path, _read_pickle(path, zipped=True))
    elif head.startswith(b"\x80"):
        state = _flat(path, _read_pickle(path, zipped=False))
    else:
        raise _no_weights(path, head)
    _check_tensors(path, state)
    return state


def _joined(index: Path) -> State:
    joined: State = {}
    for part, listed in parts_of(index).items():
        if is_index(part):
            raise _broken(index, ValueError(f"{part.name} is an index as well"))
        state = read_weights(part)
        if state.keys() != listed:
            raise WeightsMismatch(
                f"{part} does not hold what {index.name} lists for it",
                expected=f"{len(listed)} keys",
                found=f"{len(state)} keys; not in both: {some(sorted(state.keys() ^ listed))}",
                next_step="fetch the index and the files again, from the same revision",
            )
        joined |= state
    return joined


def _read_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (SafetensorError, *_BROKEN) as reason:
        raise _broken(path, reason) from reason
    return state


def _check_archive(path: Path) -> None:
    """Refuse zip archives that are not torch checkpoints: programs, compressed archives, archives of other tools."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _BROKEN as reason:
        raise _broken(path, reason) from reason
    inner = {entry.filename.partition("/")[2] or entry.filename for entry in entries}
    if any(name == "constants.pkl" or name.startswith("code/") for name in inner):
        plain = path.with_name(f"{path.stem}-plain.pth")
        raise WeightsMismatch(
            f"{path} is a TorchScript archive: a program with its weights",
            expected="weights alone",
            next_step="if you trust its source: python -c \"import torch; torch.save(torch.jit.load('"
            f"{path}', 'cpu').state_dict(), '{plain}')\", and pass {plain}",
        )
    if "data.pkl" not in inner:
        kind = "a NumPy archive (.npz)" if all(e.filename.endswith(".npy") for e in entries) else "a zip archive"
        kind = "a Keras archive" if "model.weights.h5" in inner else kind
        raise WeightsMismatch(
            f"{path} is {kind}, not a torch checkpoint",
            found=some(sorted(entry.filename for entry in entries)) or "nothing in it",
            next_step=_CONVERT if kind != "a zip archive" else "unpack it, and pass the weights file inside",
        )
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size for entry in entries):
        raise _broken(path, ValueError("it holds compressed entries, and torch writes none"))


@contextmanager
def _plain_classes() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(PLAIN))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        with _plain_classes(), path.open("rb") as file:
            # Only zipped checkpoints can be mapped; then the file is not in memory twice. For names that end in
            # .safetensors torch would ignore the bytes and trust the name, so such files are passed as open files.
            by_path = zipped and path.suffix != ".safetensors"
            return torch.load(path if by_path else file, map_location="cpu", weights_only=True, mmap=by_path)
    except pickle.UnpicklingError as reason:
        culprit = re.search(r"GLOBAL (\S+)", str(reason))
        plain = path.with_name(f"{path.stem}-plain.pth")
        raise WeightsMismatch(
            f"{path} was refused: reading it could run code in it",
            expected="tensors and plain containers only",
            found=f"a call of {culprit[1]}" if culprit else "instructions that a file of tensors does not need",
            next_step="if you trust its source, save only its weights: "
            f"python -c \"import torch; c = torch.load('{path}', 'cpu', weights_only=False); torch.save(c.state_dict() "
            f"if hasattr(c, 'state_dict') else {{k: c[k] for k in {_COMMON} if k in c}} or {{k: torch.as_tensor(v) "
            f"for k, v in c.items() if hasattr(v, 'shape')}} or c, '{plain}')\", and pass "
            f"{plain}",
        ) from reason
    except _BROKEN as reason:
        raise _broken(path, reason) from reason


def _broken(path: Path, reason: Exception) -> WeightsMismatch:
    first, _, _ = str(reason).strip().partition("\n")
    return WeightsMismatch(
        f"{path} cannot be read: it is truncated or corrupt",
        found=f"{path.stat().st_size} bytes; {first[:200] or type(reason).__name__}",
        next_step="fetch the file again, and compare its size with that at the source",
    )


def _no_weights(path: Path, head: bytes) -> WeightsMismatch:
    kind, step = next(
        ((kind, step) for start, kind, step in _OTHER_KINDS if head.lstrip().startswith(start)),
        ("", "fetch the file itself, or save the encoder's state dict as safetensors and pass that"),
    )
    # An ONNX file is a protocol buffer: a version number, then the name of the program that wrote it.
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and re.match(rb"\x08.\x12.[\x20-\x7e]{3}", head, re.DOTALL)):
        kind, step = "an ONNX file: a program with its weights", _CONVERT
    if not head:
        kind, step = "empty", "fetch the file again: the download ended before the first byte"
    if path.suffix in (".msgpack", ".tflite", ".pb", ".pt2"):
        kind, step = f"a {path.suffix} file of another framework", _CONVERT
    return WeightsMismatch(
        f"{path} is not a weights file" + (f": it is {kind}" if kind else ""),
        expected="safetensors, a torch checkpoint (.pth, .bin), or an index (.index.json) of such files",
        found=f"{path.stat().st_size} bytes that begin with {head[:24]!r}",
        next_step=step,
    )


def _flat(path: Path, loaded: Any) -> State:
    """Return the state dicts in nested mappings, keys joined with dots; other entries are ignored."""
    state = _state_dicts(loaded, set())
    if state:
        return state
    keys = list(loaded) if isinstance(loaded, Mapping) else []
    raise WeightsMismatch(
        f"{path} holds no state dict",
        expected=f"names and tensors, alone or under a key such as {some(WRAPPERS)}",
        found=some([str(key) for key in keys]) or type(loaded).__name__,
        next_step="save the encoder's state dict as safetensors and pass that",
    )


def _state_dicts(value: Any, seen: set[int]) -> State:
    # A mapping is visited once: a small file can hold references to itself that would never end.
    if not isinstance(value, Mapping) or id(value) in seen or not all(isinstance(key, str) for key in value):
        return {}
    seen.add(id(value))
    tensors = {key: tensor for key, tensor in value.items() if isinstance(tensor, torch.Tensor)}
    if len(tensors) == len(value):
        return tensors
    inner = {key: value[key] for key in WRAPPERS if key in value}
    found = {key: state for key, one in inner.items() if (state := _state_dicts(one, seen))}
    if not found and not tensors:
        found = {key: state for key, one in value.items() if (state := _state_dicts(one, seen))}
    if not found:
        return tensors
    return {f"{key}.{name}": tensor for key, state in found.items() for name, tensor in state.items()}


def _check_tensors(path: Path, state: State) -> None:
    """Refuse tensors without plain values, and tensors that claim more bytes than the file has."""
    size = path.stat().st_size
    for name, tensor in state.items():
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise _broken(path, ValueError(f"{name} holds no plain values ({tensor.device.type}, {tensor.layout})"))
        if tensor.numel() * tensor.element_size() > size:
            raise _broken(path, ValueError(f"{name} claims {tensor.numel() * tensor.element_size()} bytes"))
