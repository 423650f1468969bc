"""Which line of a card would make a weights file fit: advice for the message that the file does not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from fmcache.encoders.cards import TIMM, Card, Weights, card_names
from fmcache.encoders.peeling import State, first_part, unchunked
from fmcache.encoders.state_shapes import Shapes, px_of_table, shapes_of
from fmcache.encoders.weight_layouts import LAYOUTS, published

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_BIAS = re.compile(r".*\.attn\.[qkv]_bias$")
_POSITIONS = "pos_embed"
COUNTER = ".num_batches_tracked"
"""Ending of the keys that count training batches: old files do not have them, and evaluation does not need them."""
_OF_LAYOUTS = ("visual.", "vision_model.", "embeddings.", "encoder.", "layer.", "layers.", "model.layer.")
"""Prefixes of the encoder's keys in published layouts. A prefix to drop must be longer than these."""


def advice(path: Path, card: Card, state: State, wanted: Shapes) -> str:
    """Return what to do when the `state` of a file (timm's names) does not match `wanted`; '' when unknown."""
    found = shapes_of(state)
    surplus = found.keys() - wanted.keys()
    if {key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)} == {_POSITIONS}:
        return _position_advice(card, found)
    if surplus and all(map(_BIAS.match, surplus)) and not card.architecture.endswith("_qkvb"):
        return f"write `architecture: {card.architecture}_qkvb` in the card: this file's attention has biases"
    if {"norm.weight", "fc_norm.weight"} <= found.keys() ^ wanted.keys() and "fc_norm.weight" in surplus:
        return (
            "write `global_pool: avg` in the card's arguments: this file has its last norm after pooling, so tokens "
            "are taken before a norm"
        )
    if part := _PART.search(path.stem):
        index = path.with_name(f"{path.name.replace(part[0], '')}.index.json")
        return f"this file is one of {int(part[2])} parts: pass the index of all parts ({index}), or their folder"
    if lines := drop_lines(card, state, wanted):
        first, *others = (f"`drop: [{', '.join(line)}]`" for line in lines)
        return f"write {first} below `weights` in {_which_card(card)}" + "".join(
            f"; or, to use other weights of this file, {line}" for line in others
        )
    return ""


def _which_card(card: Card) -> str:
    weights = card.weights or Weights()
    if weights.file and card.name not in card_names():
        return "the card"
    name = card.name if card.name in card_names() else TIMM + card.architecture
    return f"a card of your own (`fmcache encoders show {name} > mine.yaml`) and pass mine.yaml as the encoder"


def _position_advice(card: Card, found: Shapes) -> str:
    size = px_of_table(found[_POSITIONS], card) if _POSITIONS in found else 0
    if not size:
        return ""
    side = size // card.patch
    return f"write `img_size: {size}` in the card's arguments: its position table is {side} x {side}"


def drop_lines(card: Card, state: State, wanted: Shapes) -> list[list[str]]:
    """Return the values of `weights.drop` with which a file would fit; several if it holds several such encoders.

    For each prefix of the keys, this tests whether the encoder is below it. The prefix of a teacher comes first.
    Position tables may have another size.
    """
    outline = {name: tensor.to("meta") for name, tensor in state.items()}
    dropped = card.weights.drop if card.weights else ()
    needed = {name: shape for name, shape in wanted.items() if not name.endswith(COUNTER)}
    lines = []
    for prefix in sorted(_prefixes(outline, len(wanted) // 2), key=_likeliest_first):
        sub = {name.removeprefix(prefix): tensor for name, tensor in outline.items() if name.startswith(prefix)}
        renamed = _in_timms_names(card, sub, needed)
        if not all(
            name in renamed and (shape == renamed[name] or name == _POSITIONS) for name, shape in needed.items()
        ):
            continue
        surplus = {name for name in renamed.keys() - wanted.keys() if not _BIAS.match(name)}
        used = [prefix + name for name in sub.keys() - surplus]
        outside = [name for name in outline if not name.startswith(prefix)]
        line = _covering([*outside, *(prefix + name if name in sub else name for name in surplus)], used)
        if line:
            lines.append(list(dict.fromkeys([*dropped, *line])))
    return lines


def _likeliest_first(prefix: str) -> tuple[bool, bool, str]:
    """Return the sort key: the teacher of self-distillation and the query encoder of MoCo are usually used."""
    return "teacher" not in prefix, "encoder_k" in prefix, prefix


def _prefixes(state: State, least: int) -> Iterator[str]:
    """Yield '' and the prefixes, up to a dot, that at least `least` names share."""
    counts = Counter(name[: dot.end()] for name in state for dot in re.finditer(r"\.", name))
    yield ""
    yield from (prefix for prefix, count in counts.items() if count >= max(1, least))


def _in_timms_names(card: Card, state: State, needed: Shapes) -> Shapes:
    # numbered parts: in the order of the model's parts
    if state and all(first_part(name).isdecimal() for name in state):
        shapes = [shape for name, shape in shapes_of(state).items() if not name.endswith(COUNTER)]
        return dict(zip(needed, shapes, strict=True)) if len(shapes) == len(needed) else {}
    layout = published(state)
    accepted = card.weights.layouts if card.weights else ()
    if accepted and layout not in accepted:
        return {}
    if layout not in LAYOUTS:
        return shapes_of(unchunked(state))
    renamed = shapes_of(LAYOUTS[layout].rename(state))
    return {name: shape for name, shape in renamed.items() if not LAYOUTS[layout].unused.match(name)}


def _covering(surplus: Collection[str], used: Collection[str]) -> list[str]:
    """Return the shortest prefixes, up to a dot, that cover all of `surplus` and none of `used`; [] if impossible."""
    prefixes: set[str] = set()
    for name in sorted(surplus):
        if name.startswith(tuple(prefixes)):
            continue
        dots = [] if name.startswith(_OF_LAYOUTS) else re.finditer(r"\.", name)
        ends = [dot.end() for dot in dots] + [len(name)]
        free = next((name[:end] for end in ends if not any(key.startswith(name[:end]) for key in used)), "")
        if not free:
            return []
        prefixes.add(free)
    return sorted(prefixes)
