"""Recipes: everything that can change a number, as frozen structs with the protocol's defaults.

Settings that cannot change a number (workers, folders) are flags. Device, threads and versions change only the last
bits; they are recorded with each result.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fmcache.errors import SpecError
from fmcache.settings import Setting, Value, field_types, settings_of, short_name, typed_sweep, value_text, with_setting
from fmcache.strict import Document, Frozen, decodable

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
GridPolicy = Literal["fit", "pad", "crop"]
DecoderPrecision = Literal["float32", "float32-ieee", "bfloat16"]
Precision = Literal["float32", "bfloat16", "float16"]
DecoderKind = Literal["paper", "paper-norm", "linear", "multi-tap"]


_TAP = re.compile(r"last|[1-9][0-9]*(\+norm)?")
_STORE = re.compile(r"(float16|float32)(-round([1-9]|1[0-9]))?")
_STORE_BITS = {"float16": 9, "float32": 19}  # fewer than the type has, or nothing would be rounded


_LENGTH = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(um|px)")


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

    `bias` is how the biases of the logits start: at random, as all other parameters, or with ``label-shares`` at the
    logarithms of the labels' shares of the training pixels, so that training starts from the shares of labels.
    """

    kind: DecoderKind = "paper"
    width: Positive = 256
    bias: Literal["random", "label-shares"] = "random"

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

    `precision` is that of the decoder. With ``float32``, a GPU with tensor cores rounds the inputs of convolutions to
    TF32 (10 bits), as PyTorch does unless told otherwise; with ``float32-ieee`` it does not. With ``bfloat16``, torch's
    autocast chooses the operations; weights, logits and loss stay float32.
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
    precision: DecoderPrecision = "float32"


NAME_ONE = "to keep both, name one of them with `as: NAME`, as in {name: uni, weights: FILE, as: uni-mine}"
"""The next step when two encoders of a recipe would have the same folder."""


@decodable
class Recipe(Frozen, frozen=True):
    """One study. Every default is the paper's protocol; `expect` is free text about the expected results.

    `sweep` lists values of fields by dotted name, such as ``fit.passes_per_epoch``. Each combination of values is one
    study (`variants`); an additional report compares them. Caches are shared where no field changes them.

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
    sweep: dict[str, tuple[Value, ...]] = {}  # noqa: RUF012 - msgspec copies it

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
        if self.sweep:
            msgspec.structs.force_setattr(self, "sweep", _typed_sweep(self.sweep, _place_in_sweep))

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


@decodable
class Variant(Recipe, frozen=True, kw_only=True):
    """One study of a sweep. Its record states what it belongs to, so that nobody has to read this from its name.

    `sweep_of` is the name of the recipe with the sweep, `setting` the values of this study by dotted field, and `swept`
    all values of the sweep, both in its order. None of them is part of a run's identity. `sweep` is empty.
    """

    sweep_of: str
    setting: Setting
    swept: tuple[tuple[str, tuple[Value, ...]], ...]


OF_SWEEP = ("sweep_of", "setting", "swept")
"""The fields that `Variant` adds; no recipe in a file has them."""

NOT_SWEPT = {
    "name": "variants get their names from the recipe's name and their values",
    "question": "all variants of a sweep answer one question",
    "expect": "all variants of a sweep are one study",
    "datasets": "list the datasets in `datasets`: they appear side by side",
    "encoders": "list the encoders in `encoders`: each is a row of every table",
    "taps": "list the layers in `taps`: each is a row of every table",
    "precision": "write one recipe for each precision, and use a --work folder for each",
    "sweep": "list the fields directly below `sweep`",
}
"""Fields that cannot be swept, with what to do instead."""


@functools.cache
def _sweepable() -> dict[str, Any]:
    """Return the types of the fields that can be swept."""
    return {field: kind for field, kind in field_types(Recipe).items() if field not in NOT_SWEPT}


def _typed_sweep(sweep: Mapping[str, Any], where: Callable[..., str]) -> dict[str, tuple[Value, ...]]:
    return typed_sweep(sweep, _sweepable(), NOT_SWEPT, where)


def _place_in_sweep(*at: str | int) -> str:
    return "sweep" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)


def changes_caches(field: str) -> bool:
    """Return whether other values of a field need other caches. More views of the same kind only extend a cache."""
    return field in ("tile_px", "grid", "store") or (field.startswith("views.") and field != "views.count")


def variants(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the studies of a recipe: itself, or one for each setting of its sweep, called ``NAME.FIELD-VALUE...``.

    Raises
    ------
    SpecError
        When a setting gives an invalid recipe.
    """
    return tuple(_variant(recipe, setting) for setting in settings_of(recipe.sweep)) if recipe.sweep else (recipe,)


def cache_recipes(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return a recipe for each set of caches that the variants of a recipe read; its sweep is over all other fields."""
    ours = {field: values for field, values in recipe.sweep.items() if changes_caches(field)}
    others = {field: values for field, values in recipe.sweep.items() if field not in ours}
    return tuple(_set(msgspec.structs.replace(recipe, sweep=others), setting) for setting in settings_of(ours))


def setting_text(setting: Setting) -> str:
    """Return a setting for tables and sentences: ``passes_per_epoch 5, subset 10``."""
    return ", ".join(f"{short_field(field)} {value_text(value)}" for field, value in setting)


def short_field(field: str) -> str:
    """Return the name of a swept field for folders and tables: its last part if no other field ends in it."""
    return short_name(field, _sweepable())


def _variant(recipe: Recipe, setting: Setting) -> Variant:
    values = (f"{short_field(field)}-{value_text(value)}" for field, value in setting)
    name = ".".join([recipe.name, *("".join(c if is_name(f"a{c}") else "_" for c in text) for text in values)])
    one = _set(msgspec.structs.replace(recipe, sweep={}), setting)
    fields = {field: getattr(one, field) for field in Recipe.__struct_fields__}
    return Variant(**fields | {"name": name}, sweep_of=recipe.name, setting=setting, swept=tuple(recipe.sweep.items()))


def _set(recipe: Recipe, setting: Setting) -> Recipe:
    try:
        return with_setting(recipe, setting)
    except ValueError as reason:
        raise SpecError(
            f"sweep: with {setting_text(setting)} the recipe is invalid: {reason}",
            next_step="leave out this value, or change the fields that it needs",
        ) from None


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file; paths of cards and weights in it are relative to that file.

    Raises
    ------
    SpecError
        With file, line and key, when the file is missing or a key is unknown, of the wrong type or out of range.
    """
    document = Document(path, SpecError)
    if isinstance(document.value, dict) and isinstance(sweep := document.value.get("sweep"), dict):
        _typed_sweep(sweep, functools.partial(document.where, "sweep"))
    recipe: Recipe = document.convert(Recipe)
    try:
        variants(recipe)
    except SpecError as reason:
        problem = f"{document.where('sweep')}: {reason.problem.removeprefix('sweep: ')}"
        raise SpecError(problem, next_step=reason.next_step) from None
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
