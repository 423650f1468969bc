"""Encoders as data: what an encoder is, how it is built and normalised, where its weights come from. No torch here.

A card is a YAML file; the cards that come with fmcache lie in ``cards/``, a user's own card is passed by its path.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from fmcache.errors import EncoderUnavailable, SpecError
from fmcache.specs import Positive, Precision
from fmcache.strict import Document, Frozen

Colour3 = tuple[float, float, float]

BUILT_IN = Path(str(resources.files("fmcache.encoders"))) / "cards"
SUFFIXES = (".yaml", ".yml")


class Weights(Frozen):
    """Where weights come from: a hub repository and file, or a local `file` (relative to the card).

    `layout` names the key layout of the file (``timm`` needs no renaming). `drop` lists prefixes of keys that the file may
    hold beyond the encoder; any other surplus key is an error. `sha256`, when given, must match.
    """

    repo: str = ""
    file: str = ""
    revision: str = ""
    sha256: str = ""
    layout: Literal["timm"] = "timm"
    drop: tuple[str, ...] = ()


class Card(Frozen, kw_only=True):
    """An encoder.

    `kind` is ``timm`` (a vision transformer built by timm from `architecture` and `arguments`) or ``pixels`` (the
    normalised pixels of each patch, no network). Weights are `weights`, or random ones from a fixed seed
    (`random_weights`, for controls). `width` is d of one patch token, `patch` is P in pixels, `prefix_tokens` counts CLS
    and registers. `precision` is the published inference precision, used on GPUs.
    """

    name: str
    title: str
    kind: Literal["timm", "pixels"] = "timm"
    architecture: str = ""
    arguments: dict[str, Any] = {}
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


def names() -> list[str]:
    """Return the names of the cards that come with fmcache, sorted."""
    return sorted(path.stem for path in BUILT_IN.iterdir() if path.suffix in SUFFIXES)


def read_card(name: str) -> Card:
    """Return the card called `name`, or the card in the file `name`.

    Raises
    ------
    EncoderUnavailable
        When no card has this name; the message lists those that exist.
    SpecError
        With file, line and key, when a card file is not as it should be.
    """
    if Path(name).suffix in SUFFIXES:
        card: Card = Document(Path(name), SpecError).convert(Card)
        return card
    if name not in names():
        raise EncoderUnavailable(
            f"no encoder is called {name!r}",
            expected=", ".join(names()),
            next_step="choose one of these, or pass a card file (mine.yaml) or timm:NAME with --weights FILE",
        )
    built_in: Card = Document(BUILT_IN / f"{name}.yaml", SpecError).convert(Card)
    return built_in
