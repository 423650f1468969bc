"""Encoders as data: what an encoder is, how it is built and normalised, where its weights come from. No torch here.

A card is a YAML file. The cards that come with fmcache are in ``cards/``; a user's own card is passed by its path. An
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
from fmcache.strict import Document, Frozen, decodable

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
"""The encoders of the study of Vitoria et al. ``--all`` means these, also when cards are added."""

GROUPS = ("study", "newer", "baselines", "controls")
"""The groups in which cards are listed; baselines were trained on natural images."""

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
"""Arguments of timm that only fmcache sets: they would fetch weights, shift patches relative to the pixels, or change
the output of a model."""

TEXTURE_WIDTH = 30
"""Channels of kind ``texture``: mean and spread of 3 colours and 12 filters."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBER = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")


LayoutName = Literal[
    "timm", "hf-vit", "hf-dinov2", "hf-dinov2-registers", "hf-dinov3", "hf-clip", "conch", "conchv1.5", "open-clip",
    "dinov2", "dinov3", "torchvision", "mmpretrain",
]  # fmt: skip
"""How publishers name the keys of a weights file (`fmcache.encoders.weight_layouts`)."""


@decodable
class Weights(Frozen, frozen=True):
    """Where weights come from: `file` of a hub `repo`, or, without a repo, a local `file` (relative to the card).

    `layouts` names the key layouts that a file of this encoder may have (without it: all); the keys show which one it
    has. `drop` lists prefixes of keys that the file may hold in addition to the encoder (as in the file, with or
    without its wrappers). Any other surplus key is an error. `under` names the wrapper to use if a file holds several.
    `stored_px` lists image sizes, in addition to the card's ``img_size``, for which a file may hold its position table.
    `sha256`, if given, must match, and `revision`, if given, is requested. Without them, later runs are pinned to those
    of the first download. `megabytes` is the size of a download.
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


@decodable
class Card(Frozen, frozen=True, kw_only=True):
    """An encoder.

    `kind` is ``timm`` (a model built by timm from `architecture` and `arguments`), ``pixels`` (the normalised pixels of
    each patch) or ``texture`` (hand-crafted colour and texture). The last two have no network and no weights
    (`fmcache.encoders.controls`). The weights are `weights`, or random weights from a fixed seed (`random_weights`, for
    controls). `width` is d of one token. `patch` is the side in pixels of the area of one token: P of a vision
    transformer, the total stride of any other encoder. `prefix_tokens` counts CLS and registers. `depth` (number of
    blocks of a transformer, 0 for other encoders) and `params` are checked if given. `native_px` is the image size for
    which the encoder was made. `precision` is the published inference precision, used on GPUs. A `baseline` was trained
    on natural images: it is ranked, but listed separately. A `control` is never ranked.

    `arguments` are passed to timm unchanged; classes are written as the names in `fmcache.encoders.building`.
    `img_size` in them is the image size for which the weights file stores its position table.
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
        """The group of `GROUPS` in which it is listed."""
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
        When no card has this name; the message lists the existing cards.
    SpecError
        When a card file is not valid; the message names file, line and key.
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
    """Return the precision of an encoder's forward passes: the one in the recipe; for `published`, the card's on a GPU.

    For `published`, a CPU uses float32: most CPUs have no arithmetic of lower precision.
    """
    if asked != "published":
        return asked
    return card.precision if on_gpu else "float32"


def study_encoders() -> list[str]:
    """Return the names of the 15 encoders of the study, sorted."""
    return list(STUDY)
