"""From a card to a frozen module on a device: built by timm, checked against its card, weights loaded, no gradients."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import torch

from fmcache.encoders.advice import COUNTER
from fmcache.encoders.building import CPU, META, build, create, gelu_note
from fmcache.encoders.cards import TIMM, Card, Weights, read_card
from fmcache.encoders.controls import ColourTexture, RawPixels
from fmcache.encoders.fitting import fit_weights
from fmcache.encoders.outlines import CARD_FIELDS, REFUSALS, Axes, Outline, Tap, check_card, count_params, outline
from fmcache.encoders.peeling import State, first_part
from fmcache.encoders.reading import read_weights
from fmcache.encoders.state_shapes import table_px
from fmcache.encoders.weight_layouts import to_timm
from fmcache.encoders.weights import find_weights
from fmcache.errors import SpecError
from fmcache.identity import canonical_json, random_key
from fmcache.specs import EncoderChoice


class Module(Protocol):
    """What fmcache needs from an encoder's module."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of normalised pixels (view, colour, y, x); `Encoder.axes` states their axes."""


class Encoder(NamedTuple):
    """A frozen encoder.

    `weights_sha256` is the sha256 of the weights file, for random weights of names and values, and '' without weights.
    `params` counts the weights of the module. `axes` are the axes of its features. `taps` are the blocks or stages
    where tokens can be taken. `weights` is the weights file, `notes` are remarks on it.
    """

    card: Card
    module: Module
    device: torch.device
    weights_sha256: str
    random_weights: bool
    params: int
    axes: Axes = "tokens"
    taps: tuple[Tap, ...] = ()
    weights: Path | None = None
    notes: tuple[str, ...] = ()


def load_encoder(
    choice: EncoderChoice, device: torch.device, *, offline: bool = False, lock: Path | None = None
) -> Encoder:
    """Return the encoder of a recipe's choice, in evaluation mode, with gradients off, in float32.

    torch's global generators do not change. With `offline`, weights must be on this machine. With `lock`, hub files are
    pinned to their first download (`find_weights`).

    Raises
    ------
    EncoderUnavailable
        When there is no such encoder, or its weights are unavailable.
    SpecError
        When the card contradicts itself or the model that timm builds; the message names the field.
    WeightsMismatch
        When the weights file cannot be read safely, or does not fit the card.
    """
    card = card_of(choice.name)
    random_weights = choice.random_weights or card.random_weights
    if random_weights and choice.weights:
        raise SpecError(
            f"{card.name!r} is set to use both random weights and a weights file",
            found=f"weights: {choice.weights}",
            next_step="leave out one of them",
        )
    if card.kind != "timm":
        return _control(card, choice, device)
    model = build(card, META)
    outlined = check_card(card, model)  # before a possible download of gigabytes of weights
    if random_weights:
        trained = _random_module(card)
    else:
        trained = _trained_module(card, model, outlined, choice.weights, offline, lock)
    for note in trained.notes:
        logging.getLogger("fmcache").warning("note: %s", note)
    module = trained.module.eval().requires_grad_(False).to(device)
    return Encoder(
        card, module, device, trained.sha256, random_weights, count_params(module), outlined.axes, outlined.taps,
        trained.file, trained.notes,
    )  # fmt: skip


def compile_blocks(encoder: Encoder) -> None:
    """Let torch.compile compile the encoder's blocks when they first run; tokens change by rounding only.

    Each block is compiled separately: all blocks are alike, so the others use the code compiled for the first one. For
    encoders without blocks, their outermost modules are compiled. Controls have neither.
    """
    module: Any = encoder.module
    for block in getattr(module, "blocks", ()) if encoder.axes == "tokens" else module.children():
        block.compile()


def _control(card: Card, choice: EncoderChoice, device: torch.device) -> Encoder:
    if choice.weights or choice.random_weights:
        raise SpecError(f"{card.name!r} has no weights", next_step="leave out --weights and --random-weights")
    module = RawPixels(card.patch) if card.kind == "pixels" else ColourTexture(card.patch)
    return Encoder(card, module.eval().to(device), device, "", False, 0)


def card_of(name: str) -> Card:
    """Return the card of an encoder by card name, card file or ``timm:NAME``; raises as `read_card`."""
    return card_for_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else read_card(name)


def card_for_timm(name: str) -> Card:
    """Return a card for a timm model, made from the model itself (on the meta device: nothing is allocated).

    Its classifier's keys may be dropped from a weights file.

    Raises
    ------
    SpecError
        When timm has no such model, or its output is not a grid of tokens.
    """
    model = create(name, {}, META)
    outlined = outline(name, model)
    config = model.pretrained_cfg
    classifier = config.get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return Card(
        name=f"timm-{name}",
        title=name,
        architecture=name,
        **{field: getattr(outlined, field) for field in (*CARD_FIELDS, "native_px")},
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        weights=Weights(drop=tuple(f"{prefix}." for prefix in classifiers)),
        notes=f"Mean and std are those that timm lists for its own weights {config.get('tag') or name!r}. If your "
        "weights were trained with other values, write a card.",
    )


class _Filled(NamedTuple):
    """A module with weights, their sha256, their file, and remarks on it."""

    module: Any
    sha256: str
    file: Path | None = None
    notes: tuple[str, ...] = ()


def _random_module(card: Card) -> _Filled:
    """Return the module with random weights, the same for the same architecture and arguments, and their sha256."""
    key = random_key("random weights", card.architecture, canonical_json(card.arguments).decode())
    with _own_generator(key):
        module = build(card, CPU)
    return _Filled(module, sha256_state(module.state_dict()))


def _trained_module(
    card: Card, model: Any, outlined: Outline, chosen: str, offline: bool, lock: Path | None
) -> _Filled:
    path, sha256 = find_weights(card, chosen, offline, lock)
    state, layout, notes = to_timm(path, read_weights(path), card)
    built = _at_size_of(state, card)
    if built is not card:
        model = build(built, META)
    wanted = model.state_dict()
    if outlined.axes != "tokens":  # names of vision transformers are handled by `weight_layouts`
        state = _renamed_by_timm(state, model, card)
    state = fit_weights(path, _with_counters(state, wanted), card, wanted)
    # fit_weights gives float32 for all tensors; batch counters must stay integers
    state = {
        key: value if wanted[key].is_floating_point() else value.to(wanted[key].dtype) for key, value in state.items()
    }
    if any(True for _ in model.buffers()):
        # Tables that no file holds (rotary positions) are computed when the model is built on the CPU.
        with _own_generator(0):
            model = build(built, CPU)
    model.load_state_dict(state, strict=True, assign=True)
    if note := gelu_note(card, layout, model):
        notes = (*notes, note)
    return _Filled(model, sha256, path, notes)


def _renamed_by_timm(state: State, model: Any, card: Card) -> State:
    """Return a state dict renamed by timm's rule for the publisher's names, if its names are not those of the model.

    Names that begin with numbers are the numbered parts of the model (``nn.Sequential(*resnet.children())``). A rule of
    timm may also resample tables. Then the state dict is returned unchanged, and an error reports the wrong shapes.
    """
    parts = dict(enumerate(name for name, _ in model.named_children()))
    if all(first_part(name).isdecimal() and int(first_part(name)) in parts for name in state):
        return {parts[int(first_part(name))] + name[len(first_part(name)) :]: value for name, value in state.items()}
    rule = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rule is None or state.keys() == model.state_dict().keys():
        return state
    try:
        renamed: State = rule(dict(state), model)
    except (*REFUSALS, LookupError, AttributeError):
        return state  # the rule is not for this file
    if Counter(value.numel() for value in renamed.values()) - Counter(value.numel() for value in state.values()):
        return state
    drop = card.weights.drop if card.weights else ()
    return {name: value for name, value in renamed.items() if not name.startswith(drop)}


def _with_counters(state: State, wanted: State) -> State:
    """Add the batch counters (`COUNTER`) that a file lacks.

    They are added only beside running statistics: keys with other names must not count as part of the encoder.
    """
    lacking = (name for name in wanted.keys() - state.keys() if name.endswith(COUNTER))
    counters = {name for name in lacking if name.removesuffix(COUNTER) + ".running_mean" in state}
    return state | {name: torch.zeros((), dtype=torch.long) for name in counters}


def _at_size_of(state: State, card: Card) -> Card:
    """Return the card with the image size of the position table in `state`, if the card allows this size."""
    size = table_px(state, card)
    if not card.weights or size not in card.weights.stored_px:
        return card
    return msgspec.structs.replace(card, arguments=card.arguments | {"img_size": size})


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    # timm draws from torch's global CPU generator. torch.manual_seed would also change the generators of the GPUs.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        yield


def sha256_state(state: State) -> str:
    """Return the sha256 over names, types, shapes and values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
