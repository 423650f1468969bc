"""Encoders as data: what an encoder is, how it is built and normalised, where its weights come from. No torch here.

A card is a YAML file; the cards that come with fmcache lie in ``cards/``, a user's own card is passed by its path. An
encoder called ``timm:NAME`` has no file: `fmcache.encoders.load` makes its card from the model.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fmcache.errors import EncoderUnavailable, SpecError
from fmcache.specs import Positive, Precision
from fmcache.strict import Document, Frozen

Colour3 = tuple[float, float, float]

BUILT_IN = Path(str(resources.files("fmcache.encoders"))) / "cards"
SUFFIXES = (".yaml", ".yml")
TIMM = "timm:"

STUDY = (
    "conch",
    "conchv1.5",
    "h-optimus-0",
    "h-optimus-1",
    "hibou-b",
    "hibou-l",
    "kaiko-vitl14",
    "lunit-vits8",
    "phikon",
    "phikon-v2",
    "prov-gigapath",
    "uni",
    "uni2-h",
    "virchow",
    "virchow2",
)
"""The encoders of the study of Vitoria et al.: what ``--all`` means, whatever cards are added."""

GROUPS = ("study", "newer", "baselines", "controls")
"""How cards are listed; baselines were trained on natural images."""

RESERVED = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "in_chans",
    "num_classes",
    "features_only",
    "out_indices",
    "dynamic_img_size",
    "dynamic_img_pad",
)
"""Arguments of timm that are fmcache's to give: they would fetch weights, move patches under the pixels, or change what
a model gives."""

TEXTURE_WIDTH = 30
"""Channels of kind ``texture``: mean and spread of 3 colours and 12 filters."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBER = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")


LayoutName = Literal[
    "timm", "hf-vit", "hf-dinov2", "hf-dinov2-registers", "hf-dinov3", "hf-clip", "conch", "conchv1.5", "open-clip",
    "dinov2", "dinov3", "torchvision", "mmpretrain",
]  # fmt: skip
"""Ways in which publishers name the keys of a weights file (`fmcache.encoders.weight_layouts`)."""


class Weights(Frozen, frozen=True):
    """Where weights come from: `file` of a hub `repo`, or, without one, a local `file` (relative to the card).

    `layouts` names the key layouts a file of this encoder may have (without it: all); which one it has shows in its
    keys. `drop` lists prefixes of keys (as in the file, with or without what it wraps around them) that it may hold
    beyond the encoder; any other surplus key is an error. `under` names the wrapper to take where a file holds several.
    `stored_px` lists image sizes, beyond the card's own ``img_size``, for which a file may hold its position table.
    `sha256`, when given, must match, and a `revision` is asked for by name; without them, those of the first download
    are held to. `megabytes` tells the size of a download.
    """

    repo: str = ""
    file: str = ""
    revision: str = ""
    sha256: str = ""
    layouts: tuple[LayoutName, ...] = ()
    drop: tuple[str, ...] = ()
    under: str = ""
    stored_px: tuple[Positive, ...] = ()
    megabytes: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if (self.repo or self.sha256) and not self.file:
            raise ValueError("repo and sha256 need the name of the `file`")
        if self.revision and not self.repo:
            raise ValueError("a revision needs the `repo` it belongs to")
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"expected a sha256 of 64 hex digits, found {self.sha256!r}")


class Card(Frozen, frozen=True, kw_only=True):
    """An encoder.

    `kind` is ``timm`` (a model built by timm from `architecture` and `arguments`), ``pixels`` (the normalised pixels of
    each patch) or ``texture`` (hand-crafted colour and texture); the last two have no network and no weights
    (`fmcache.encoders.controls`). Weights are `weights`, or random ones from a fixed seed (`random_weights`, for
    controls). `width` is d of one token. `patch` is the pixels along a side that a token stands for: P of a vision
    transformer, the total stride of any other encoder. `prefix_tokens` counts CLS and registers; `depth` (blocks of a
    transformer, none of any other encoder) and `params` are checked where given. `native_px` is the image size the
    encoder was made for. `precision` is the published inference precision, used on GPUs. A `baseline` was trained on
    natural images: it is ranked, and listed apart. A `control` is never ranked.

    `arguments` go to timm as they are; classes are written as the names that `fmcache.encoders.load` knows. `img_size`
    in them is the size at which the weights file stores its position table.
    """

    name: str
    title: str
    kind: Literal["timm", "pixels", "texture"] = "timm"
    architecture: str = ""
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
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
    baseline: bool = False
    gated: bool = False
    licence: str = ""
    licence_page: str = ""
    citation: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"card name {self.name!r}: expected letters, digits, '.', '_' and '-'")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: expected three numbers above 0")
        if self.control and self.baseline:
            raise ValueError("control and baseline contradict each other: keep one of them")
        if self.kind != "timm":
            self._check_without_network()
        elif not self.architecture:
            raise ValueError("architecture: expected the name of a timm model")
        if self.random_weights and self.weights:
            raise ValueError("random_weights and weights contradict each other: keep one of them")
        for key, value in self.arguments.items():
            if key in RESERVED:
                raise ValueError(f"arguments.{key} is set by fmcache: leave it out")
            if isinstance(value, str) and _NUMBER.fullmatch(value):
                raise ValueError(f"arguments.{key}: {value} is text to YAML; write it with a dot, as in 1.0e-5")

    @property
    def group(self) -> str:
        """Which of `GROUPS` it is listed in."""
        if self.control:
            return GROUPS[3]
        return GROUPS[2] if self.baseline else GROUPS[0] if self.name in STUDY else GROUPS[1]

    def _check_without_network(self) -> None:
        if self.architecture or self.arguments or self.weights or self.random_weights or self.prefix_tokens:
            raise ValueError(
                f"kind {self.kind} has no network: leave out architecture, arguments, prefix_tokens and weights"
            )
        width = 3 * self.patch**2 if self.kind == "pixels" else TEXTURE_WIDTH
        if self.width != width:
            raise ValueError(f"width {self.width}: expected {width} for kind {self.kind} and patch {self.patch}")


def card_names() -> list[str]:
    """Return the names of the cards that come with fmcache, sorted."""
    return sorted(path.stem for path in BUILT_IN.iterdir() if path.suffix in SUFFIXES)


def read_card(name: str) -> Card:
    """Return the card called `name`, or the card in the file `name`, with a local weights file anchored to its folder.

    Raises
    ------
    EncoderUnavailable
        When no card has this name; the message lists those that exist.
    SpecError
        With file, line and key, when a card file is not as it should be.
    """
    if Path(name).suffix in SUFFIXES:
        return _anchored(Document(Path(name), SpecError).convert(Card), Path(name).parent)
    if name not in card_names():
        raise EncoderUnavailable(
            f"no encoder is called {name!r}",
            expected=", ".join(card_names()),
            next_step="choose one of these, or pass a card file (mine.yaml) or timm:NAME with --weights FILE",
        )
    built_in: Card = Document(BUILT_IN / f"{name}.yaml", SpecError).convert(Card)
    return built_in


def _anchored(card: Card, folder: Path) -> Card:
    if not card.weights or card.weights.repo or not card.weights.file:
        return card
    weights = msgspec.structs.replace(card.weights, file=str(folder / card.weights.file))
    return msgspec.structs.replace(card, weights=weights)


def precision_of(asked: Precision | Literal["published"], card: Card, on_gpu: bool) -> Precision:
    """Return the precision of an encoder's forward passes: what a recipe asks for, else the card's on a GPU.

    A CPU runs float32 where the published precision is asked for: most have no arithmetic for less.
    """
    if asked != "published":
        return asked
    return card.precision if on_gpu else "float32"


def study_encoders() -> list[str]:
    """Return the names of the 15 encoders of the study, sorted."""
    return list(STUDY)
