"""A card -> a frozen encoder: built by timm, weights loaded strictly, every fact of the card checked on the module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from fmcache.encoders.cards import Card, read_card
from fmcache.encoders.weights import State, find_weights, read_state
from fmcache.errors import EncoderUnavailable, SpecError, WeightsMismatch
from fmcache.identity import random_key, sha256_file
from fmcache.specs import EncoderChoice

TIMM = "timm:"

# Classes cannot stand in a YAML card; these words stand for them.
CLASSES: dict[str, type[nn.Module]] = {"swiglu_packed": SwiGLUPacked, "silu": nn.SiLU, "gelu": nn.GELU}
CLASS_ARGUMENTS = ("mlp_layer", "act_layer")


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder on its device. `module` is None for raw pixels; `weights_sha256` is then empty."""

    card: Card
    module: nn.Module | None
    device: torch.device
    weights_sha256: str
    random_weights: bool

    @property
    def params(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.module.parameters()) if self.module else 0


def load_encoder(choice: EncoderChoice, device: torch.device, offline: bool = False) -> Encoder:
    """Return the encoder of a choice: in eval mode, gradients off, in float32, on `device`.

    Raises
    ------
    EncoderUnavailable
        When it is unknown, or its weights cannot be had.
    WeightsMismatch
        When the file does not hold exactly this encoder.
    SpecError
        When the card does not describe what timm builds.
    """
    card = card_of(choice)
    if card.kind == "pixels":
        return Encoder(card, None, device, "", False)
    if choice.random_weights or card.random_weights:
        module = _build_random(card)
        check_module(card, module)
        return Encoder(card, _freeze(module, device), device, state_sha256(module.state_dict()), True)
    path = find_weights(card, choice.weights, offline)
    module = _build(card)
    check_module(card, module)
    load_strictly(card, module, read_state(path), str(path))
    return Encoder(card, _freeze(module, device), device, sha256_file(path), False)


def card_of(choice: EncoderChoice) -> Card:
    """Return the card of a choice; for ``timm:NAME`` one made from the timm model itself."""
    return card_for_timm(choice.name.removeprefix(TIMM)) if choice.name.startswith(TIMM) else read_card(choice.name)


def card_for_timm(name: str) -> Card:
    """Return a card for a timm vision transformer, made from the model on the meta device (no memory, no weights).

    Raises
    ------
    EncoderUnavailable
        When timm knows no such model.
    SpecError
        When it is no plain vision transformer.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise EncoderUnavailable(f"timm has no model {name!r}", expected=near, next_step="see timm.list_models()")
    with torch.device("meta"):
        module = timm.create_model(name, pretrained=False, num_classes=0)
    _require_transformer(name, module)
    cfg = module.pretrained_cfg
    return Card(
        name=f"timm-{name}",
        title=name,
        architecture=name,
        arguments={"img_size": int(module.patch_embed.img_size[0])},
        patch=int(module.patch_embed.patch_size[0]),
        width=int(module.embed_dim),
        prefix_tokens=int(module.num_prefix_tokens),
        depth=len(module.blocks),
        native_px=int(module.patch_embed.img_size[0]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        notes="mean and std are timm's for this name; weights trained otherwise need a card of their own",
    )


def load_strictly(card: Card, module: nn.Module, state: State, source: str) -> None:
    """Load `state` into `module`: every key used or on the card's `drop` list, every shape equal, nothing left over.

    A position table of another grid size is the one thing that is adapted; `check_module` ties the module to the card's
    ``img_size``, so cards state the size of the file and no table is resampled here.

    Raises
    ------
    WeightsMismatch
        Naming keys and shapes; or when trained LayerScale is expected and all its values are equal.
    """
    own = module.state_dict()
    drop = card.weights.drop if card.weights else ()
    state = {key: value for key, value in state.items() if not key.startswith(drop) or key in own} if drop else state
    surplus, missing = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
    shapes = [
        f"{key}: expected {tuple(own[key].shape)}, found {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if surplus or missing or shapes:
        raise WeightsMismatch(
            f"{source} does not hold the weights of {card.name}",
            expected=f"{len(own)} keys" + (f"; missing {_some(missing)}" if missing else ""),
            found=f"{len(state)} keys{_surplus(surplus)}"
            + (f"; {_some(shapes)}" if shapes else "")
            + _looks_like(state),
            next_step="check that file and card belong together; keys to ignore go into the card's weights: drop:",
        )
    scales = [key for key in own if key.endswith((".ls1.gamma", ".ls2.gamma"))]
    if scales and all((state[key] == state[scales[0]].flatten()[0]).all() for key in scales):
        raise WeightsMismatch(
            f"all LayerScale values in {source} are equal: it does not look trained",
            found=f"{state[scales[0]].flatten()[0].item():g} throughout",
            next_step="get the published file, or use --random-weights for a dry run",
        )
    module.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)


def check_module(card: Card, module: nn.Module) -> None:
    """Check every fact of the card on the module that was built from it.

    Raises
    ------
    SpecError
        Naming the first field that differs.
    """
    _require_transformer(card.name, module)
    facts: dict[str, int] = {
        "patch": module.patch_embed.patch_size[0],  # type: ignore[union-attr,index]
        "width": module.embed_dim,  # type: ignore[dict-item]
        "prefix_tokens": module.num_prefix_tokens,  # type: ignore[dict-item]
        "depth": len(module.blocks),  # type: ignore[arg-type]
        "params": sum(p.numel() for p in module.parameters()),
    }
    for field, found in facts.items():
        stated = getattr(card, field)
        if stated != found and not (field in ("params", "depth") and stated == 0):
            raise SpecError(
                f"card {card.name}: `{field}` is not what timm builds from `architecture` and `arguments`",
                expected=f"{field}: {found}",
                found=f"{field}: {stated}",
                next_step="correct the card",
            )


def state_sha256(state: State) -> str:
    """Return the sha256 of names, shapes and bytes of tensors: the identity of weights that came from no file."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key} {tuple(state[key].shape)} {state[key].dtype}".encode())
        digest.update(state[key].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _build(card: Card) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(
            card.architecture, pretrained=False, num_classes=0, dynamic_img_size=True, **_arguments(card)
        )
    except (RuntimeError, TypeError, ValueError) as reason:
        raise SpecError(
            f"card {card.name}: timm cannot build {card.architecture!r}",
            found=str(reason).split("\n", 1)[0][:200],
            next_step="correct `architecture` and `arguments` in the card",
        ) from None
    return module


def _build_random(card: Card) -> nn.Module:
    # timm initialises from the global generator: it is seeded in a fork and given back as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_key("random weights", card.architecture) % 2**63)
        return _build(card)


def _freeze(module: nn.Module, device: torch.device) -> nn.Module:
    return module.eval().requires_grad_(False).to(device)


def _arguments(card: Card) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(card.arguments)
    for name in CLASS_ARGUMENTS:
        if (word := arguments.get(name)) is None:
            continue
        if word not in CLASSES:
            raise SpecError(
                f"card {card.name}: {name} {word!r} is unknown",
                expected=" or ".join(CLASSES),
                next_step="correct `arguments` in the card",
            )
        arguments[name] = CLASSES[word]
    return arguments


def _require_transformer(name: str, module: nn.Module) -> None:
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    plain = hasattr(module, "num_prefix_tokens") and hasattr(module, "blocks")
    if not plain or not isinstance(patch, tuple) or patch[0] != patch[1]:
        raise SpecError(
            f"{name} is no vision transformer with square patches",
            found=type(module).__name__,
            next_step="choose a vit_* model; other networks have no token grid of one size",
        )


def _some(lines: Iterable[str]) -> str:
    listed = list(lines)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _surplus(keys: list[str]) -> str:
    return f"; unknown {_some(keys)}" if keys else ""


def _looks_like(state: State) -> str:
    kernel = next((value for key, value in state.items() if key.endswith("patch_embed.proj.weight")), None)
    if kernel is None or kernel.ndim != 4:
        return ""
    return f"; it looks like width {kernel.shape[0]}, patch {kernel.shape[-1]}"
