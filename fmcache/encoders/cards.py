"""Encoders as data: what an encoder is, how it is built and normalised, where its weights come from. No torch here.

A card is a YAML file; the cards that come with fmcache lie in ``cards/``, a user's own card is passed by its path.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fmcache.errors import EncoderUnavailable, SpecError
from fmcache.specs import Positive, Precision
from fmcache.strict import Document, Frozen

Colour3 = tuple[float, float, float]

BUILT_IN = Path(str(resources.files("fmcache.encoders"))) / "cards"
SUFFIXES = (".yaml", ".yml")


class Weights(Frozen):
    """Where weights come from: file `file` of hub repository `repo`, or a local `file` (relative to the card).

    `layout` names the key layout of the file (``timm`` needs no renaming). `drop` lists prefixes of keys that the file
    may hold beyond the encoder; any other surplus key is an error. `sha256`, when given, must match.
    """

    file: str
    repo: str = ""
    revision: str = ""
    sha256: str = ""
    layout: Literal["timm"] = "timm"
    drop: tuple[str, ...] = ()


class Card(Frozen, kw_only=True):
    """An encoder.

    `kind` is ``timm`` (a vision transformer built by timm from `architecture` and `arguments`) or ``pixels`` (the
    normalised pixels of each patch, no network). Weights are `weights`, or random ones from a fixed seed
    (`random_weights`, for controls). `width` is d of one patch token, `patch` is P in pixels, `prefix_tokens` counts
    CLS and registers. `precision` is the published inference precision, used on GPUs. `params` 0: not stated.
    """

    name: str
    title: str
    kind: Literal["timm", "pixels"] = "timm"
    architecture: str = ""
    arguments: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)
    patch: Positive
    width: Positive
    prefix_tokens: Annotated[int, Meta(ge=0)] = 0
    depth: Annotated[int, Meta(ge=0)] = 0
    params: Annotated[int, Meta(ge=0)] = 0
    native_px: Positive = 224
    mean: Colour3
    std: Colour3
    precision: Precision = "float32"
    weights: Weights | None = None
    random_weights: bool = False
    control: bool = False
    gated: bool = False
    licence: str = ""
    licence_page: str = ""
    citation: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if self.kind == "timm" and not self.architecture:
            raise ValueError("an encoder of kind 'timm' needs an `architecture`, the name of a timm model")
        if self.kind == "pixels" and self.width != 3 * self.patch**2:
            raise ValueError(
                f"raw pixels of patch {self.patch}: expected width {3 * self.patch**2}, found {self.width}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std: expected numbers above 0, found {self.std}")


def names() -> list[str]:
    """Return the names of the cards that come with fmcache, sorted."""
    return sorted(path.stem for path in BUILT_IN.iterdir() if path.suffix in SUFFIXES)


def is_card_file(name: str) -> bool:
    """Return whether an encoder is named by the path of a card file."""
    return Path(name).suffix in SUFFIXES


def read_card(name: str) -> Card:
    """Return the card called `name`, or the card in the file `name`, whose local weights file is made absolute.

    Raises
    ------
    EncoderUnavailable
        When no card has this name; the message lists those that exist.
    SpecError
        With file, line and key, when a card file is not as it should be.
    """
    if not is_card_file(name) and name not in names():
        raise EncoderUnavailable(
            f"no encoder is called {name!r}",
            expected=", ".join(names()),
            next_step="choose one of these, or pass a card file (mine.yaml) or timm:NAME with --weights FILE",
        )
    path = Path(name) if is_card_file(name) else BUILT_IN / f"{name}.yaml"
    card: Card = Document(path, SpecError).convert(Card)
    if card.weights is None or card.weights.repo:
        return card
    local = str((path.parent / card.weights.file).resolve())
    return msgspec.structs.replace(card, weights=msgspec.structs.replace(card.weights, file=local))
