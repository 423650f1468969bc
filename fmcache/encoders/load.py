"""Card -> frozen module on a device: built by timm, checked against its card, weights fitted, gradients off."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import timm
import torch
from torch import nn

from fmcache.encoders.cards import TIMM, Card, Weights, read_card
from fmcache.encoders.controls import ColourTexture, Pixels
from fmcache.encoders.fitting import fit_weights
from fmcache.encoders.layouts import to_timm
from fmcache.encoders.outline import table_px
from fmcache.encoders.peeling import State
from fmcache.encoders.reading import read_weights
from fmcache.encoders.weights import find_weights
from fmcache.errors import SpecError
from fmcache.identity import canonical_json, random_key
from fmcache.specs import EncoderChoice

CLASSES: dict[str, dict[str, type[nn.Module]]] = {
    "mlp_layer": {"swiglu_packed": timm.layers.SwiGLUPacked},
    "act_layer": {"silu": nn.SiLU, "gelu": nn.GELU},
}
"""Arguments of timm that take classes, and the names by which cards call them."""

META = torch.device("meta")
CPU = torch.device("cpu")


class Module(Protocol):
    """What fmcache asks of an encoder's module."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens (view, token, channel), prefix tokens first, of normalised pixels (view, colour, y, x)."""


class Encoder(NamedTuple):
    """A frozen encoder.

    `weights_sha256` is that of the weights file; for random weights that of names and values; '' where there are none.
    `params` counts the weights of the module.
    """

    card: Card
    module: Module
    device: torch.device
    weights_sha256: str
    random_weights: bool
    params: int


def load_encoder(
    choice: EncoderChoice, device: torch.device, *, offline: bool = False, lock: Path | None = None
) -> Encoder:
    """Return the encoder of a recipe's choice, in evaluation mode, with gradients off, in float32.

    torch's global generators are left as they were. With `offline`, weights must be on this machine. `lock`
    holds hub files to what they were at first (`find_weights`).

    Raises
    ------
    EncoderUnavailable
        When there is no such encoder, or its weights cannot be had.
    SpecError
        When the card contradicts itself or the model that timm builds; the field is named.
    WeightsMismatch
        When the weights file cannot be read safely, or does not fit the card.
    """
    card = card_of(choice.name)
    random_weights = choice.random_weights or card.random_weights
    if random_weights and choice.weights:
        raise SpecError(
            f"{card.name!r} is to have random weights and those of a file",
            found=f"weights: {choice.weights}",
            next_step="leave out one of them",
        )
    if card.kind != "timm":
        return _control(card, choice, device)
    model = build(card, META)
    check_card(card, model)  # before weights are looked for: they may be gigabytes away
    module, sha256 = (
        _random_module(card) if random_weights else _trained_module(card, model, choice.weights, offline, lock)
    )
    module = module.eval().requires_grad_(False).to(device)
    return Encoder(card, module, device, sha256, random_weights, _count(module))


def compile_blocks(encoder: Encoder) -> None:
    """Let torch.compile translate the encoder's blocks when they first run; tokens move by rounding.

    Block by block: all are alike, so one is translated and the others take what came of it. Controls have no blocks.
    """
    for block in getattr(encoder.module, "blocks", ()):
        block.compile()


def _control(card: Card, choice: EncoderChoice, device: torch.device) -> Encoder:
    if choice.weights or choice.random_weights:
        raise SpecError(f"{card.name!r} has no weights", next_step="leave out --weights and --random-weights")
    module = Pixels(card.patch) if card.kind == "pixels" else ColourTexture(card.patch)
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
        When timm has no such model, or it gives no grid of tokens.
    """
    model = _create(name, {}, META)
    outline = _outline(name, model)
    config = model.pretrained_cfg
    classifier = config.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return Card(
        name=f"timm-{name}",
        title=name,
        architecture=name,
        patch=outline.patch,
        width=outline.width,
        prefix_tokens=outline.prefix_tokens,
        depth=outline.depth,
        params=outline.params,
        native_px=model.patch_embed.img_size[0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        weights=Weights(drop=tuple(f"{head}." for head in heads)),
        notes=f"Mean and std are those timm lists for its own weights {config.get('tag') or name!r}; if yours were "
        "trained with others, write a card.",
    )


def _create(architecture: str, arguments: dict[str, Any], device: torch.device) -> Any:
    """Return a timm model without classifier, on `device`; torch's global generators are the caller's to guard."""
    if not timm.is_model(architecture):  # also keeps hub names out: timm would go and fetch their configuration
        close = difflib.get_close_matches(architecture, timm.list_models("*vit*"), n=4)
        raise SpecError(
            f"timm {timm.__version__} has no model {architecture!r}",
            expected=", ".join(close) or "a name from timm.list_models()",
            next_step="correct the name",
        )
    try:
        with device:
            return timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **arguments)
    except (TypeError, RuntimeError, ValueError, AssertionError) as reason:
        raise SpecError(
            f"timm cannot build {architecture!r} as an encoder",
            expected="a vision transformer that takes dynamic_img_size and the arguments of the card",
            found=str(reason) or type(reason).__name__,
            next_step="correct the arguments, or choose a vision transformer",
        ) from reason


def build(card: Card, device: torch.device) -> Any:
    """Return the timm model of a card on `device`, as timm initialises it.

    Raises
    ------
    SpecError
        When timm has no such model, or does not take the card's arguments.
    """
    return _create(card.architecture, _with_classes(card), device)


def _with_classes(card: Card) -> dict[str, Any]:
    arguments = dict(card.arguments)
    for key, known in CLASSES.items():
        name = arguments.get(key)
        if name is None:
            continue
        if name not in known:
            raise SpecError(
                f"card {card.name!r}: arguments.{key} has no class called {name!r}",
                expected=", ".join(known),
                next_step="write one of these names",
            )
        arguments[key] = known[name]
    return arguments


class Outline(NamedTuple):
    """What a card says of a model, as the model itself tells it."""

    patch: int
    width: int
    prefix_tokens: int
    depth: int
    params: int


def _outline(name: str, model: Any) -> Outline:
    """Return the outline of a model on the meta device.

    Raises
    ------
    SpecError
        When it does not turn square patches into (view, token, channel).
    """
    embed = getattr(model, "patch_embed", None)
    size, patch = (timm.layers.to_2tuple(getattr(embed, key, None) or 0) for key in ("img_size", "patch_size"))
    prefix = getattr(model, "num_prefix_tokens", -1)
    found: tuple[int, ...] = ()
    if patch[0] == patch[1] > 0:
        found = tuple(model.eval().forward_features(torch.empty(1, 3, *size, device=META)).shape)
        if found == (1, prefix + (size[0] // patch[0]) * (size[1] // patch[1]), found[-1]):
            return Outline(patch[0], found[-1], prefix, len(getattr(model, "blocks", ())), _count(model))
    raise SpecError(
        f"{name!r} gives no grid of tokens",
        expected="a vision transformer with square patches: features (view, token, channel), one token for each patch",
        found=f"{type(model).__name__}, patches {tuple(patch)}, features {found}",
        next_step="choose a plain vision transformer",
    )


def check_card(card: Card, model: Any) -> None:
    """Check patch, width, prefix tokens and, where the card tells them, depth and parameters of a model on `META`.

    Raises
    ------
    SpecError
        When the card says otherwise; the field is named.
    """
    for field, found in _outline(card.architecture, model)._asdict().items():
        expected = getattr(card, field)
        if expected != found and (expected or field not in ("depth", "params")):
            raise SpecError(
                f"card {card.name!r} contradicts the model that timm builds from it: {field}",
                expected=f"{field}: {expected}",
                found=f"{field}: {found}",
                next_step=f"correct `{field}`, or `architecture` and `arguments`",
            )


def _random_module(card: Card) -> tuple[Any, str]:
    """Return the module with random weights, the same for the same architecture and arguments, and their sha256."""
    key = random_key("random weights", card.architecture, canonical_json(card.arguments).decode())
    with _own_generator(key):
        module = build(card, CPU)
    return module, sha256_state(module.state_dict())


def _trained_module(card: Card, model: Any, chosen: str, offline: bool, lock: Path | None) -> tuple[Any, str]:
    path, sha256 = find_weights(card, chosen, offline, lock)
    state = to_timm(path, read_weights(path), card)
    built = _at_size_of(state, card)
    if built is not card:
        model = build(built, META)
    state = fit_weights(path, state, card, model.state_dict())
    if any(True for _ in model.buffers()):
        # Tables that no file holds (rotary positions) are computed when built; other models lack nothing but weights.
        with _own_generator(0):
            model = build(built, CPU)
    model.load_state_dict(state, strict=True, assign=True)
    return model, sha256


def _at_size_of(state: State, card: Card) -> Card:
    """Return the card with the image size of the position table in `state`, where the card allows for that size."""
    size = table_px(state, card)
    if not card.weights or size not in card.weights.stored_px:
        return card
    return msgspec.structs.replace(card, arguments=card.arguments | {"img_size": size})


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    # timm draws from torch's global CPU generator. torch.manual_seed would reach the GPUs' generators as well.
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


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
