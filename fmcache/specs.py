"""Recipes: everything that can change a number, as frozen structs with the protocol's defaults.

Settings that cannot change a number (workers, folders) are flags. Device, threads and versions change only the last
bits; they are recorded with each result.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fmcache.errors import SpecError
from fmcache.strict import Document, Frozen, decodable

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
GridPolicy = Literal["fit", "pad", "crop"]
Precision = Literal["float32", "bfloat16", "float16"]
DecoderKind = Literal["paper", "paper-norm", "linear", "multi-tap"]


_TAP = re.compile(r"last|[1-9][0-9]*(\+norm)?")
_STORE = re.compile(r"(float16|float32)(-round([1-9]|1[0-9]))?")
_STORE_BITS = {"float16": 9, "float32": 19}  # fewer than the type has, or nothing would be rounded


_LENGTH = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(um|px)")


_VARIANT = re.compile(r"(.+)\.(views|passes_per_epoch)-([1-9][0-9]*)")


def is_name(text: str) -> bool:
    """Return whether a text can name a folder and a table row: letters and digits of any script, and ``._-``."""
    return bool(text) and all(c.isalnum() or c in "._-" for c in text) and text[0] not in "._-"


@decodable
class ViewSpec(Frozen, frozen=True):
    """How the views of a tile are drawn. View 0 is the untouched tile; 1..count are random.

    Angles are the largest turn in degrees, to either side. `translate` and the colour changes are the largest share, up
    or down (brightness 0.2: factor 0.8 to 1.2; hue 0.05: up to 5 % of the colour circle). `scale` is the largest zoom;
    zooming in and out are equally likely. `outside` is the mask's label where a view extends beyond the tile: the
    ignore label, or the reflected label. The image is always reflected there, so that it has no black corners.
    """

    count: Positive = 50
    seed: Annotated[int, Meta(ge=0)] = 0
    rotate_deg: Annotated[float, Meta(ge=0, le=180)] = 180.0
    flip: bool = True
    scale: Annotated[float, Meta(ge=1, le=4)] = 1.2
    shear_deg: Annotated[float, Meta(ge=0, lt=60)] = 5.0
    translate: Share = 0.05
    brightness: Share = 0.2
    contrast: Share = 0.2
    saturation: Share = 0.2
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.05
    outside: Literal["ignore", "reflect"] = "ignore"


@decodable
class EncoderChoice(Frozen, frozen=True):
    """An encoder in a recipe: a card's name, ``timm:NAME`` or a card file; optionally with other or random weights.

    `alias` (``as:`` in a recipe) is the name in folders, tables and figures instead of the card's name, so that one
    encoder can be used with two weights. If it is not given, no record contains the field.
    """

    name: str
    weights: str = ""
    random_weights: bool = False
    alias: str | msgspec.UnsetType = msgspec.field(name="as", default=msgspec.UNSET)

    def __post_init__(self) -> None:
        if self.alias and not (is_name(self.alias) and self.alias != "view-bank"):
            raise ValueError(f"as: {self.alias!r}: expected letters, digits, '.', '_' and '-'; view-bank is taken")


@decodable
class DecoderSpec(Frozen, frozen=True):
    """The light decoder: its `kind` (`fmcache.decoders.registry`), and its `width`, D in the protocol.

    The kind ``multi-tap`` reads all `taps` of the recipe. Every other kind is trained on each tap separately.

    The kind ``linear`` has no width. A width beside it is accepted, because a recipe may sweep the kind; it changes
    nothing, and is not recorded.
    """

    kind: DecoderKind = "paper"
    width: Positive = 256

    @property
    def joins_taps(self) -> bool:
        """Whether one decoder reads all taps of the recipe."""
        return self.kind == "multi-tap"


@decodable
class FitSpec(Frozen, frozen=True):
    """How a decoder is trained (protocol, point 6).

    Each epoch uses `passes_per_epoch` views of each training tile. The learning rate follows a cosine from
    `learning_rate` to 0, step by step, and restarts every `restart_epochs` epochs. The validation Dice is computed
    every `validate_epochs` epochs and after the last one; the weights with the best Dice are tested.
    """

    seeds: Positive = 10
    epochs: Positive = 50
    batch: Positive = 8
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-4
    restart_epochs: Positive = 10
    validate_epochs: Positive = 10
    passes_per_epoch: Positive = 1
    standardise: Literal["none", "channel"] = "none"
    cross_entropy_weight: Annotated[float, Meta(ge=0)] = 1.0
    dice_weight: Annotated[float, Meta(ge=0)] = 1.0


@decodable
class Sweep(Frozen, frozen=True):
    """Several values of one field of a recipe, tried one after another with the same cache.

    The field is either `views` (the number of available views of each training tile) or `passes_per_epoch`.
    """

    views: tuple[Positive, ...] = ()
    passes_per_epoch: tuple[Positive, ...] = ()

    def __post_init__(self) -> None:
        if self.views and self.passes_per_epoch:
            raise ValueError("sweep: expected values of one field, found views and passes_per_epoch")
        for values in (self.views, self.passes_per_epoch):
            if len(set(values)) < len(values) or list(values) != sorted(values):
                raise ValueError(f"sweep: expected rising values, found {', '.join(map(str, values))}")

    @property
    def field(self) -> str:
        """Name of the field that is swept; '' when there is no sweep."""
        return "views" if self.views else "passes_per_epoch" if self.passes_per_epoch else ""

    @property
    def values(self) -> tuple[int, ...]:
        """The values that are tried."""
        return self.views or self.passes_per_epoch


NAME_ONE = "to keep both, name one of them with `as: NAME`, as in {name: uni, weights: FILE, as: uni-mine}"
"""The next step when two encoders of a recipe would have the same folder."""


@decodable
class Recipe(Frozen, frozen=True):
    """One study. Every default is the paper's protocol; `expect` is free text about the expected results.

    A recipe with a `sweep` is one study for each value (`variants`); an additional report compares them.

    `taps` says where tokens are taken: ``last`` (after the final norm), the output of a block counted from 1 (``6``),
    or that output after the final norm (``6+norm``). All taps come from one forward pass; each has its own cache, and
    each is one entry of the tables, unless the decoder joins them.
    `store` is the type of cached tokens: ``float16``, ``float32``, or a rounded type with N mantissa bits:
    ``float16-round5``.

    With `folds`, every seed is trained on each of the dataset's folds instead of on its fixed split. With `subset` n,
    every seed is trained on the dataset's listed subset of n training tiles (``fmcache data split`` writes both lists).

    With `boundary`, a length such as ``2 um`` or ``4 px`` (of `tile_px`), runs also count how much of the boundaries of
    truth and prediction lie within this distance of each other.
    """

    name: str = "paper"
    question: str = ""
    expect: str = ""
    datasets: tuple[str, ...] = ()
    folds: bool = False
    subset: Annotated[int, Meta(ge=0)] = 0
    encoders: tuple[str | EncoderChoice, ...] = ()
    tile_px: Annotated[int, Meta(ge=8, le=8192)] = 512
    views: ViewSpec = ViewSpec()
    grid: GridPolicy = "fit"
    taps: tuple[str, ...] = ("last",)
    precision: Literal["published", "float32", "bfloat16", "float16"] = "published"
    store: str = "float16"
    decoder: DecoderSpec = DecoderSpec()
    fit: FitSpec = FitSpec()
    dice: Literal["pooled", "per_tile", "puma"] = "pooled"
    boundary: str = ""
    sweep: Sweep = Sweep()

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"recipe name {self.name!r}: expected letters, digits, '.', '_' and '-'")
        for tap in self.taps:
            if not _TAP.fullmatch(tap):
                raise ValueError(f"tap {tap!r}: expected 'last', a block such as '6', or '6+norm'")
        store = _STORE.fullmatch(self.store)
        if not store or int(store[3] or 1) > _STORE_BITS[store[1]]:
            raise ValueError(
                f"store {self.store!r}: expected 'float16', 'float32', or one with rounding, such as 'float16-round5' "
                "(float16 can keep 1 to 9 bits, float32 1 to 19)"
            )
        if self.boundary and not _LENGTH.fullmatch(self.boundary):
            raise ValueError(f"boundary {self.boundary!r}: expected a length such as '2 um' or '4 px', or '' for none")
        if not self.taps:
            raise ValueError("taps: expected at least one, such as 'last'")
        if self.decoder.joins_taps and len(self.taps) < 2:
            raise ValueError(
                f"decoder: {self.decoder.kind} needs at least two taps, such as taps: ['6', last]; "
                f"found {', '.join(self.taps)}"
            )
        for kind, names in (("dataset", self.datasets), ("tap", self.taps)):
            if len(set(names)) < len(names):
                raise ValueError(f"a {kind} is listed twice: {', '.join(names)}")
        chosen = [(c.alias or c.name, c.random_weights) for c in self.encoder_choices]
        if twice := [name for i, (name, how) in enumerate(chosen) if (name, how) in chosen[:i]]:
            raise ValueError(f"an encoder is listed twice: {', '.join(twice)}; {NAME_ONE}")

    @property
    def taps_of_decoders(self) -> tuple[tuple[str, ...], ...]:
        """The taps of each decoder that is trained for an encoder."""
        return (self.taps,) if self.decoder.joins_taps else tuple((tap,) for tap in self.taps)

    @property
    def encoder_choices(self) -> tuple[EncoderChoice, ...]:
        """The encoders, each as an `EncoderChoice`."""
        return tuple(EncoderChoice(name=c) if isinstance(c, str) else c for c in self.encoders)

    @property
    def boundary_length(self) -> tuple[float, Literal["um", "px"]] | None:
        """The tolerance of boundaries and its unit; None when none are counted."""
        found = _LENGTH.fullmatch(self.boundary)
        return (float(found[1]), "um" if found[2] == "um" else "px") if found else None


def variants(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the studies of a recipe: itself, or one for each value of its sweep, called ``NAME.FIELD-VALUE``."""
    sweep = recipe.sweep
    if not sweep.field:
        return (recipe,)
    return tuple(
        msgspec.structs.replace(
            recipe,
            name=f"{recipe.name}.{sweep.field}-{value}",
            views=msgspec.structs.replace(recipe.views, count=value) if sweep.views else recipe.views,
            fit=msgspec.structs.replace(recipe.fit, passes_per_epoch=value) if not sweep.views else recipe.fit,
        )
        for value in sweep.values
    )


def variant_of(study: str) -> tuple[str, str, int] | None:
    """Return (recipe name, field, value) of a study that belongs to a sweep; None for any other study."""
    found = _VARIANT.fullmatch(study)
    return (found[1], found[2], int(found[3])) if found else None


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file; paths of cards and weights in it are relative to that file.

    Raises
    ------
    SpecError
        With file, line and key, when the file is missing or a key is unknown, of the wrong type or out of range.
    """
    recipe: Recipe = Document(path, SpecError).convert(Recipe)
    return msgspec.structs.replace(
        recipe, encoders=tuple(_anchored(choice, path.parent) for choice in recipe.encoder_choices)
    )


def _anchored(choice: EncoderChoice, folder: Path) -> EncoderChoice:
    def anchored(text: str) -> str:
        return str(folder / text)

    is_file = choice.name.endswith((".yaml", ".yml"))
    return msgspec.structs.replace(
        choice,
        name=anchored(choice.name) if is_file else choice.name,
        weights=anchored(choice.weights) if choice.weights else "",
    )
