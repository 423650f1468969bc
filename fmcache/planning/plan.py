"""The plan of a recipe before anything runs: cost of each encoder on each dataset, device speed, other variants."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fmcache.cache.encoding import COMPACT, store_of
from fmcache.decoders.registry import KINDS, settings
from fmcache.demand import Demand, check_sweep, demands
from fmcache.encoders.cards import TIMM, Card, precision_of, read_card, study_encoders
from fmcache.grid import GridGeometry
from fmcache.manifest import AnyDataset, Manifest
from fmcache.planning.costs import Cost, cost_of
from fmcache.planning.gpus import Fleet
from fmcache.settings import Value, value_text, with_setting
from fmcache.specs import Precision, Recipe
from fmcache.stages import places
from fmcache.stages.flags import Flags

if TYPE_CHECKING:
    from fmcache.planning.speed import Speed  # torch

CHEAPER_VIEWS, NARROWER = 5, 2
"""Cheaper variants: a fifth of the views, half the decoder width; half the seeds are tried too."""
HELPED: tuple[tuple[str, Value], ...] = (
    ("fit.learning_rate", 1e-3),
    ("fit.passes_per_epoch", 5),
    ("fit.standardise", "channel"),
    ("decoder.kind", "linear"),
)
"""The changes that `fmcache.scores.missed.WHAT_HELPS` names for messages, as values of fields."""


class Item(NamedTuple):
    """One encoder on one dataset, and its cost; `precision` is that of its forward passes on this device."""

    dataset: str
    encoder: str
    card: Card
    grid: GridGeometry
    precision: Precision
    cost: Cost


class Change(NamedTuple):
    """A changed recipe, and the speed of its decoder (None when nothing was measured)."""

    recipe: Recipe
    speed: Speed | None


class Plan(NamedTuple):
    """The costs of a recipe; `speed` is None when nothing was measured. `sweep` states how much work a sweep is.

    `against_collapse` are the changes that helped when labels were never predicted, by the lines to write in the
    recipe. `fleet` is None when the recipe is planned for this machine.
    """

    recipe: Recipe
    datasets: dict[str, AnyDataset]
    items: tuple[Item, ...]
    speed: Speed | None
    sweep: str = ""
    against_collapse: Mapping[str, Change] = MappingProxyType({})
    fleet: Fleet | None = None


def plan(recipe: Recipe, manifest: Manifest, flags: Flags, measure: bool = True, fleet: Fleet | None = None) -> Plan:
    """Return the costs of a recipe on this machine, or on a number of GPUs; for these, nothing is measured.

    A recipe without encoders is planned for all 15 encoders of the study.

    Raises
    ------
    ManifestError, SpecError, EncoderUnavailable
        When the recipe names a dataset or an encoder that does not exist.
    """
    if not recipe.encoders:
        recipe = msgspec.structs.replace(recipe, encoders=tuple(study_encoders()))
    asked = demands(recipe, manifest)
    datasets = {demand.name: demand.dataset for demand in asked}
    sweep = check_sweep(recipe, manifest, yes=True)
    helping = against_collapse(recipe)
    if fleet or not measure:
        changes = {line: Change(changed, None) for line, changed in helping.items()}
        return Plan(recipe, datasets, _items(recipe, asked, on_gpu=bool(fleet)), None, sweep, changes, fleet)
    from fmcache.planning.speed import measure_speed
    from fmcache.runtime.devices import pick_device, using_threads

    device = pick_device(flags.device)
    items = _items(recipe, asked, on_gpu=device.type == "cuda")
    most_costly = max(items, key=lambda item: item.cost.decoder_flop)
    labels = len(datasets[most_costly.dataset].labels)
    with using_threads(flags.threads):
        speed = measure_speed(recipe, most_costly.card, labels, {item.precision for item in items}, device)
        changes = {}
        for line, changed in helping.items():
            own = speed
            if changed.decoder.kind != recipe.decoder.kind:
                own = measure_speed(changed, most_costly.card, labels, (), device)._replace(encoder=speed.encoder)
            changes[line] = Change(changed, own)
    return Plan(recipe, datasets, items, speed, sweep, changes)


def cheaper(recipe: Recipe) -> dict[str, Recipe]:
    """Return cheaper variants of a recipe; the keys are the lines to write in the recipe."""
    changed: dict[str, Recipe] = {}
    for field, values in recipe.sweep.items():
        if fewer := values[:-1]:
            line = f"sweep: {{{field}: [{', '.join(map(value_text, fewer))}]}}"
            changed[line] = msgspec.structs.replace(recipe, sweep={**recipe.sweep, field: fewer})
    if recipe.views.count >= CHEAPER_VIEWS and "views.count" not in recipe.sweep:
        views = msgspec.structs.replace(recipe.views, count=recipe.views.count // CHEAPER_VIEWS)
        changed[f"views: {{count: {views.count}}}"] = msgspec.structs.replace(recipe, views=views)
    if not store_of(recipe.store).keep_bits and "store" not in recipe.sweep:
        changed[f"store: {COMPACT}"] = msgspec.structs.replace(recipe, store=COMPACT)
    if recipe.decoder.width > 1 and KINDS[recipe.decoder.kind].has_width and "decoder.width" not in recipe.sweep:
        decoder = msgspec.structs.replace(recipe.decoder, width=recipe.decoder.width // NARROWER)
        fields = ", ".join(f"{name}: {value}" for name, value in settings(decoder).items())
        changed[f"decoder: {{{fields}}}"] = msgspec.structs.replace(recipe, decoder=decoder)
    if recipe.fit.seeds > 1 and "fit.seeds" not in recipe.sweep:
        fit = msgspec.structs.replace(recipe.fit, seeds=-(-recipe.fit.seeds // 2))
        changed[f"fit: {{seeds: {fit.seeds}}}"] = msgspec.structs.replace(recipe, fit=fit)
    return changed


def against_collapse(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe with each change of `HELPED` that it lacks; the keys are the lines to write in the recipe."""
    changed: dict[str, Recipe] = {}
    for field, value in HELPED:
        now: Any = functools.reduce(getattr, field.split("."), recipe)
        enough = now == value if isinstance(value, str) else now >= value
        if not enough and field not in recipe.sweep:
            outer, _, inner = field.partition(".")
            changed[f"{outer}: {{{inner}: {value_text(value)}}}"] = with_setting(recipe, [(field, value)])
    return changed


def _items(recipe: Recipe, asked: Sequence[Demand], on_gpu: bool) -> tuple[Item, ...]:
    items = []
    for choice in recipe.encoder_choices:
        card = _card(choice.name)
        precision = precision_of(recipe.precision, card, on_gpu)
        grid = GridGeometry(recipe.tile_px, card.patch, recipe.grid)
        for demand in asked:
            cost = cost_of(recipe, demand, card)
            items.append(Item(demand.name, places.encoder_key(choice), card, grid, precision, cost))
    return tuple(items)


def _card(name: str) -> Card:
    if not name.startswith(TIMM):
        return read_card(name)
    from fmcache.encoders.load import card_of  # gets the shapes of the model from timm

    return card_of(name)
