"""What training code wraps around an encoder's weights: wrappers, heads beside it, prefixes, chunks of blocks.

Names of keys only; tensors pass through. How a publisher names the weights themselves is `weight_layouts`' business.
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
"""Keys under which training code puts a state dict."""

_WITHIN = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_PARTS_OF_ENCODERS = {"blocks", "layers", "layer", "stages", "embeddings"}


class Drop:
    """The prefixes of keys that a card drops. Each is used up at the first level of wrapping where it finds a key.

    A head beside the encoder may bear the name of a part inside it (``norm.``), which is not to go with it.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._left = tuple(prefixes)

    def __call__(self, state: State) -> State:
        """Return the keys that do not begin with a prefix that is left."""
        used = tuple(prefix for prefix in self._left if any(name.startswith(prefix) for name in state))
        self._left = tuple(prefix for prefix in self._left if prefix not in used)
        return {name: tensor for name, tensor in state.items() if not name.startswith(used)} if used else state


def without_infixes(state: State) -> State:
    """Return a state dict without what torch.compile, FSDP and activation checkpointing write into its names."""
    renamed = {_WITHIN.sub("", name): tensor for name, tensor in state.items()}
    return renamed if len(renamed) == len(state) else state


def head_of(name: str) -> str:
    """Return what stands before the first dot of a key; '' where there is none."""
    head, dot, _ = name.partition(".")
    return head if dot else ""


class Level(NamedTuple):
    """What lies below a level of the names, and what there is to say of its choice ('' mostly)."""

    state: State
    note: str


def inside(state: State, under: Collection[str], where: str) -> Level | None:
    """Return what lies below the first level of the names, the level taken off; None where the encoder starts here.

    A level is one that all names share, the one called in `under`, or the teacher beside a student: the weights that
    self-distillation keeps.

    Raises
    ------
    WeightsMismatch
        When several wrappers hold a state dict and none of them is called in `under`.
    """
    heads = {head_of(name) for name in state}
    named = [head for head in heads if head in under]
    note = ""
    if len(named) == 1:
        chosen = named[0]
    elif len(heads) == 1:
        chosen = heads.pop()
    elif heads == {"teacher", "student"}:
        chosen = "teacher"
        note = (
            f"{where} holds a teacher and a student: the teacher is taken (`under: student` below `weights` in the "
            "card takes the other)"
        )
    elif heads and heads <= set(WRAPPERS):
        raise several(where, sorted(heads))
    else:
        return None
    if not chosen or chosen in _PARTS_OF_ENCODERS:
        return None
    start = f"{chosen}."
    return Level({name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}, note)


def several(where: str, wrappers: Sequence[str]) -> WeightsMismatch:
    """Return the error for a file in which it is open which state dict is meant."""
    return WeightsMismatch(
        f"{where} holds several state dicts",
        expected="one, or a card that says which",
        found=", ".join(wrappers),
        next_step="write which one into the card: "
        + " or ".join(f"`under: {wrapper}`" for wrapper in wrappers)
        + " below `weights`",
    )


def unchunked(state: State) -> State:
    """Return a state dict whose blocks are numbered through, where they are stored in chunks (``blocks.CHUNK.BLOCK.``).

    Blocks are numbered through all chunks already (DINOv2), or anew in each.
    """
    found = {name: _CHUNKED.match(name) for name in state if name.startswith("blocks.")}
    if not found or not all(found.values()):
        return state
    pairs = sorted({(int(match[1]), int(match[2])) for match in found.values() if match})
    through = len({block for _, block in pairs}) == len(pairs)
    numbers = {pair: pair[1] if through else i for i, pair in enumerate(pairs)}

    def renamed(name: str) -> str:
        match = found.get(name)
        return f"blocks.{numbers[int(match[1]), int(match[2])]}.{name[match.end() :]}" if match else name

    return {renamed(name): tensor for name, tensor in state.items()}
