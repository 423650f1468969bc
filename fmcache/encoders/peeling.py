"""Remove what training code adds to an encoder's weights: wrappers, other modules beside it, prefixes, block chunks.

Only key names change; tensors do not. The names that publishers give to the weights are handled in `weight_layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch

from fmcache.errors import WeightsMismatch

State = dict[str, torch.Tensor]

WRAPPERS = (
    "state_dict", "model", "model_state_dict", "teacher", "student", "net", "network", "module", "encoder",
    "target_encoder", "backbone", "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "weights",
)  # fmt: skip
"""Keys under which training code stores a state dict."""

_WITHIN = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_PARTS_OF_ENCODERS = {"blocks", "layers", "layer", "stages", "embeddings"}


class Drop:
    """The prefixes of keys that a card drops. Each is used only at the first level of wrappers where it matches a key.

    Reason: a module beside the encoder may have the name of a part inside it (``norm.``), which must not be dropped.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._left = tuple(prefixes)

    def __call__(self, state: State) -> State:
        """Return the keys that do not begin with one of the remaining prefixes."""
        used = tuple(prefix for prefix in self._left if any(name.startswith(prefix) for name in state))
        self._left = tuple(prefix for prefix in self._left if prefix not in used)
        return {name: tensor for name, tensor in state.items() if not name.startswith(used)} if used else state


def without_infixes(state: State) -> State:
    """Return a state dict without the name parts that torch.compile, FSDP and activation checkpointing insert."""
    renamed = {_WITHIN.sub("", name): tensor for name, tensor in state.items()}
    return renamed if len(renamed) == len(state) else state


def first_part(name: str) -> str:
    """Return the text before the first dot of a key; '' if it has no dot."""
    first, dot, _ = name.partition(".")
    return first if dot else ""


class Level(NamedTuple):
    """The state dict below a level of the names, and a note on the choice of this level (usually '')."""

    state: State
    note: str


def inside(state: State, under: Collection[str], where: str) -> Level | None:
    """Return the state dict below the first level of the names, without this level; None if the encoder starts here.

    A level is one that all names share, or one listed in `under`, or the teacher beside a student (self-distillation
    keeps the weights of the teacher).

    Raises
    ------
    WeightsMismatch
        When several wrappers hold a state dict and none of them is listed in `under`.
    """
    first_parts = {first_part(name) for name in state}
    named = [part for part in first_parts if part in under]
    note = ""
    if len(named) == 1:
        chosen = named[0]
    elif len(first_parts) == 1:
        chosen = first_parts.pop()
    elif first_parts == {"teacher", "student"}:
        chosen = "teacher"
        note = (
            f"{where} holds a teacher and a student: the teacher is used (to use the student, write `under: student` "
            "below `weights` in the card)"
        )
    elif first_parts and first_parts <= set(WRAPPERS):
        raise several(where, sorted(first_parts))
    else:
        return None
    if not chosen or chosen in _PARTS_OF_ENCODERS:
        return None
    start = f"{chosen}."
    return Level({name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}, note)


def several(where: str, wrappers: Sequence[str]) -> WeightsMismatch:
    """Return the error for a file with several state dicts, when it is unclear which one to use."""
    return WeightsMismatch(
        f"{where} holds several state dicts",
        expected="one state dict, or a card that names one",
        found=", ".join(wrappers),
        next_step="name one in the card: "
        + " or ".join(f"`under: {wrapper}`" for wrapper in wrappers)
        + " below `weights`",
    )


def unchunked(state: State) -> State:
    """Return a state dict with continuous block numbers, if blocks are stored in chunks (``blocks.CHUNK.BLOCK.``).

    The stored numbers continue through all chunks (DINOv2), or start again in each chunk.
    """
    found = {name: _CHUNKED.match(name) for name in state if name.startswith("blocks.")}
    if not found or not all(found.values()):
        return state
    pairs = sorted({(int(match[1]), int(match[2])) for match in found.values() if match})
    continuous = len({block for _, block in pairs}) == len(pairs)
    numbers = {pair: pair[1] if continuous else i for i, pair in enumerate(pairs)}

    def renamed(name: str) -> str:
        match = found.get(name)
        return f"blocks.{numbers[int(match[1]), int(match[2])]}.{name[match.end() :]}" if match else name

    return {renamed(name): tensor for name, tensor in state.items()}
