"""Weights files: which one, read without running anything in it, and fitted key by key to the model it is for."""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fmcache.encoders.cards import Card, Weights
from fmcache.encoders.hub import download
from fmcache.errors import EncoderUnavailable, WeightsMismatch
from fmcache.identity import sha256_file

State = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model", "teacher")
"""Keys under which training code wraps a state dict."""

_LAYER_SCALE = re.compile(r"\.(ls\d+\.gamma|gamma_\d+)$")
_BLOCK = re.compile(r"\b(?:blocks|layer|layers)\.(\d+)\.")
_SHOWN = 4


def find_weights(card: Card, chosen: str, offline: bool) -> Path:
    """Return the path of an encoder's weights file.

    `chosen` (a file, or a folder that holds the card's file) goes before the card's local file, that before the hub.

    Raises
    ------
    EncoderUnavailable
        When there is no such file, the card names none, or the hub does not give it.
    """
    weights = card.weights or Weights()
    if chosen:
        return _chosen_file(card, weights, Path(chosen))
    if weights.repo:
        return download(card, weights, offline)
    if not weights.file:
        raise EncoderUnavailable(
            f"{card.name!r} needs weights, and its card names no file",
            next_step="pass --weights FILE, or --random-weights for a dry run",
        )
    if not Path(weights.file).is_file():
        raise EncoderUnavailable(
            f"the weights of {card.name!r} are not at {weights.file}",
            next_step="correct `weights.file` in the card (it is relative to the card), or pass --weights FILE",
        )
    return Path(weights.file)


def _chosen_file(card: Card, weights: Weights, chosen: Path) -> Path:
    if chosen.is_file():
        return chosen
    name = Path(weights.file).name
    if name and (chosen / name).is_file():
        return chosen / name
    if not chosen.is_dir():
        raise EncoderUnavailable(f"there is no weights file {chosen}", next_step="check the path given with --weights")
    raise EncoderUnavailable(
        f"the folder {chosen} holds no weights of {card.name!r}",
        expected=name or "a file: the card names none",
        found=_some(sorted(path.name for path in chosen.iterdir())) or "an empty folder",
        next_step="pass the file itself with --weights FILE",
    )


def read_weights(path: Path) -> State:
    """Return the tensors in a safetensors file or a torch checkpoint, on the CPU, in the types they are stored in.

    What kind of file it is shows in its first bytes, not in its name. Pickled checkpoints are read by torch's restricted
    reader, which makes tensors and nothing else. One level of wrapping (`WRAPPERS`) is taken off.

    Raises
    ------
    WeightsMismatch
        When the file is truncated or of another kind, holds code or more than tensors, or several state dicts.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] == b"{":
        try:
            state: State = load_file(path)
        except SafetensorError as reason:
            raise _broken(path, reason) from reason
        return state
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _unwrapped(path, _read_pickle(path, zipped=head.startswith(b"PK")))
    raise WeightsMismatch(
        f"{path} is not a weights file",
        expected="safetensors, or a torch checkpoint (.pth, .bin)",
        found=f"{path.stat().st_size} bytes that begin with {head[:24]!r}",
        next_step="fetch the file itself: a git-lfs pointer or a saved web page begins with text",
    )


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        # Only zipped checkpoints can be mapped: then the file is not held in memory twice.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as reason:
        culprit = re.search(r"GLOBAL (\S+)", str(reason))
        raise WeightsMismatch(
            f"{path} was refused: reading it could run code that is in it",
            expected="tensors and plain containers only",
            found=f"a call of {culprit[1]}" if culprit else "instructions that a file of tensors does not need",
            next_step="if you trust where it comes from, save its state dict as safetensors elsewhere and pass that",
        ) from reason
    except (
        RuntimeError,
        EOFError,
        OSError,
        struct.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as reason:
        raise _broken(path, reason) from reason


def _broken(path: Path, reason: Exception) -> WeightsMismatch:
    return WeightsMismatch(
        f"{path} cannot be read: it is truncated or corrupt",
        found=f"{path.stat().st_size} bytes; {str(reason).strip().splitlines()[0] if str(reason).strip() else 'no end'}",
        next_step="fetch the file again, and compare its size with that at the source",
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())
    )


def _unwrapped(path: Path, loaded: Any) -> State:
    if _is_state(loaded):
        return dict(loaded)
    keys = list(loaded) if isinstance(loaded, Mapping) else []
    inner = [key for key in WRAPPERS if key in keys and _is_state(loaded[key])]
    if len(inner) == 1:
        return dict(loaded[inner[0]])
    raise WeightsMismatch(
        f"{path} holds {'several state dicts' if inner else 'no state dict'}",
        expected=f"names and tensors, alone or under one of {', '.join(WRAPPERS)}",
        found=_some([str(key) for key in keys]) or type(loaded).__name__,
        next_step="save the encoder's state dict as safetensors and pass that",
    )


def check_sha256(path: Path, expected: str) -> str:
    """Return the sha256 of a weights file.

    Raises
    ------
    WeightsMismatch
        When the card expects another one.
    """
    found = sha256_file(path)
    if expected and found != expected:
        raise WeightsMismatch(
            f"{path} is not the file the card was written for",
            expected=f"sha256 {expected}",
            found=f"sha256 {found}",
            next_step="fetch the file again, or correct `weights.sha256` in the card",
        )
    return found


def fit_weights(path: Path, stored: State, card: Card, model: Mapping[str, torch.Tensor]) -> State:
    """Return `stored` as a float32 state dict for the `model` whose names and shapes are given.

    Every key must be used, or match a prefix in the card's ``weights.drop``. The model is built at the size of the
    file's position table (``arguments.img_size``), so that the table is taken as it is; at other image sizes timm
    resamples it once, with antialiased bicubic interpolation.

    Raises
    ------
    WeightsMismatch
        When keys are missing, left over or of another shape, or LayerScale holds one single value.
    """
    drop = card.weights.drop if card.weights else ()
    state = {name: tensor for name, tensor in stored.items() if not name.startswith(drop)}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.items()}
    if shapes != wanted:
        raise _misfit(path, card, shapes, wanted)
    scales = [tensor for name, tensor in state.items() if _LAYER_SCALE.search(name)]
    if scales and all(bool((scale == scales[0].flatten()[0]).all()) for scale in scales):
        raise WeightsMismatch(
            f"{path} does not seem to hold trained LayerScale",
            expected="gammas that differ from each other",
            found=f"{float(scales[0].flatten()[0]):g} in all {len(scales)} gammas: the value they are made with",
            next_step="fetch the trained weights; an untrained model runs with --random-weights",
        )
    # Copied: tensors of a mapped file would change, or vanish, with the file.
    return {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in state.items()}


Shapes = Mapping[str, tuple[int, ...]]


def _misfit(path: Path, card: Card, found: Shapes, wanted: Shapes) -> WeightsMismatch:
    groups = {
        "missing": [f"{name} {wanted[name]}" for name in wanted.keys() - found.keys()],
        "left over": [f"{name} {found[name]}" for name in found.keys() - wanted.keys()],
        "of another shape": [
            f"{name} {found[name]} instead of {wanted[name]}"
            for name in wanted.keys() & found.keys()
            if found[name] != wanted[name]
        ],
    }
    return WeightsMismatch(
        f"{path} does not fit {card.name!r}",
        expected=f"{len(wanted)} keys: {_looks(wanted)}",
        found=f"{len(found)} keys: {_looks(found)}; "
        + "; ".join(f"{len(keys)} {what}: {_some(sorted(keys))}" for what, keys in groups.items() if keys),
        next_step=_position_advice(card, found, wanted)
        or "pass the file of this encoder; what a file may hold beyond it is listed as `weights.drop` in a card",
    )


def _position_advice(card: Card, found: Shapes, wanted: Shapes) -> str:
    name = "pos_embed"
    if {key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)} != {name}:
        return ""
    for unplaced in (card.prefix_tokens, 0):
        built, stored = (shapes[name][1] - unplaced if name in shapes else -1 for shapes in (wanted, found))
        if built > 0 and stored > 0 and math.isqrt(built) ** 2 == built and math.isqrt(stored) ** 2 == stored:
            side = math.isqrt(stored)
            return (
                f"write `img_size: {side * card.patch}` in the card's arguments: its position table is {side} x {side}"
            )
    return ""


def _looks(shapes: Shapes) -> str:
    """Return the outline of a vision transformer: patch size, width and blocks, as the shapes tell them."""
    blocks = {found[1] for name in shapes if (found := _BLOCK.search(name))}
    parts = [f"{len(blocks)} blocks"] if blocks else []
    # The patch embedding is the one kernel over the three colours, whatever it is called.
    for shape in shapes.values():
        if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]:
            parts = [f"patch {shape[2]}", f"width {shape[0]}", *parts]
            break
    return "it looks like " + ", ".join(parts) if parts else "not those of a vision transformer"


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
