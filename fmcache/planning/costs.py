"""The cost of a recipe before anything runs: views, bytes, operations. Integers only; no torch, no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fmcache.cache.encoding import store_of
from fmcache.cache.layout import plan_layout
from fmcache.decoders.arithmetic import grids_bytes, multiply_adds
from fmcache.decoders.layers import Shape
from fmcache.demand import Demand, demand_of, splits_of
from fmcache.encoders.cards import Card
from fmcache.errors import SpecError
from fmcache.grid import GridGeometry
from fmcache.manifest import Splits
from fmcache.specs import FitSpec, Recipe, cache_recipes, variants

LAST = "last"


class Cost(NamedTuple):
    """The cost of one encoder on one dataset, for all taps and seeds.

    `raw_bytes` is the size of its tokens on disk before compression, `disk_bytes` the expected size after compression.
    `fit_bytes` is the size of the grids and masks that stage two holds in memory at the same time. `*_flop` are
    floating-point operations; a multiply-add counts as two. `logits` counts the logits at the tile's size whose loss is
    computed in training: for small decoders, the loss takes most of the time. `objects` is the number of shard files,
    `runs` that of trained decoders.
    """

    forward_passes: int
    raw_bytes: int
    disk_bytes: int
    fit_bytes: int
    encoder_flop: int
    decoder_flop: int
    logits: int
    objects: int
    runs: int


def cost_of(recipe: Recipe, demand: Demand, card: Card) -> Cost:
    """Return the cost of an encoder on a dataset with a recipe, for all its folds and all variants of its sweep.

    Raises
    ------
    SpecError
        When an encoder that is not a vision transformer cannot run with this recipe (timm gives its shapes), or taps
        of one decoder have grids of different sizes.
    """
    name, dataset = demand.name, demand.dataset
    return total_of([_cost(one, demand_of(one, name, dataset), card) for one in cache_recipes(recipe)])


def total_of(costs: Sequence[Cost]) -> Cost:
    """Return the sums of costs; for the memory in fit the largest, because one encoder is in memory at a time."""
    sums = Cost(*(sum(column) for column in zip(*costs, strict=True)))
    return sums._replace(fit_bytes=max(cost.fit_bytes for cost in costs))


def _cost(recipe: Recipe, demand: Demand, card: Card) -> Cost:
    """Return the cost of one set of caches, and of all variants that are trained from it."""
    grid, store = GridGeometry(recipe.tile_px, card.patch, recipe.grid), store_of(recipe.store)
    taps = _at_taps(recipe, card, grid)
    passes = forward_passes(demand)
    values = sum(width * at.side**2 for at, width in taps)
    fit_bytes = decoder_flop = logits = runs = 0
    for variant in variants(recipe):
        shapes = _shapes(variant, card, taps, len(demand.dataset.labels))
        an_image = sum(2 * multiply_adds(shape, variant.decoder.kind) for shape in shapes)
        for splits in splits_of(variant, demand.name, demand.dataset).values():
            trained, predicted = images_through_decoder(variant.fit, splits)
            runs += variant.fit.seeds * len(shapes)
            decoder_flop += variant.fit.seeds * (3 * trained + predicted) * an_image
            logits += variant.fit.seeds * trained * sum(shape.labels * shape.grid.covered_px**2 for shape in shapes)
            held = [grids_bytes(variant, splits, sum(shape.channels), shape.grid) for shape in shapes]
            fit_bytes = max(fit_bytes, *held)
    return Cost(
        forward_passes=passes,
        raw_bytes=passes * values * store.itemsize,
        disk_bytes=round(passes * values * 4 * store.expected_ratio()),
        fit_bytes=fit_bytes,
        encoder_flop=passes * encoder_flop(card, grid),
        decoder_flop=decoder_flop,
        logits=logits,
        objects=sum(_shards(demand, (width, at.side, at.side), store.dtype) for at, width in taps),
        runs=runs,
    )


def forward_passes(demand: Demand) -> int:
    """Return how many views an encoder processes for one set of caches: those of all folds and variants."""
    return sum(demand.views.values())


def _shards(demand: Demand, item: tuple[int, int, int], dtype: str) -> int:
    """Return the number of shards of a cache whose views have the shape `item`."""
    block = plan_layout(len(demand.views), max(demand.views.values()), item, dtype).block
    return sum(-(-views // block) * tiles for views, tiles in Counter(demand.views.values()).items())


def images_through_decoder(fit: FitSpec, splits: Splits) -> tuple[int, int]:
    """Return how many images one seed trains on (forward and backward: as three forwards), and how many it predicts."""
    validations = -(-fit.epochs // fit.validate_epochs)
    trained = len(splits.train) * fit.passes_per_epoch * fit.epochs
    return trained, validations * len(splits.val) + len(splits.test)


def encoder_flop(card: Card, grid: GridGeometry) -> int:
    """Return the operations of the forward pass of one view through an encoder; 0 for encoders without a network.

    For a vision transformer this is 2*params*T + 4*depth*T*T*d: every parameter is used once for every token, and in
    each block attention compares and mixes all tokens. For any other encoder, torch counts them (`forward_flop`).
    """
    if card.kind != "timm":
        return 0
    if not card.depth:
        from fmcache.encoders.outlines import forward_flop  # timm

        return forward_flop(card, grid.input_px)
    tokens = grid.side**2 + card.prefix_tokens
    # for a card without `params`: blocks of 12 d*d, and the patch embedding
    params = card.params or 12 * card.depth * card.width**2 + 3 * card.patch**2 * card.width
    return 2 * params * tokens + 4 * card.depth * tokens**2 * card.width


def _shapes(recipe: Recipe, card: Card, taps: Sequence[tuple[GridGeometry, int]], labels: int) -> list[Shape]:
    """Return the shapes of an encoder's decoders: one for each tap, or one that joins all taps."""
    width = recipe.decoder.width
    if not recipe.decoder.joins_taps:
        return [Shape((channels,), width, labels, at) for at, channels in taps]
    if len({at.side for at, _ in taps}) > 1:
        raise SpecError(
            f"{card.name!r}: one decoder cannot read taps whose grids have different sizes",
            found=", ".join(f"{tap}: {at.side} x {at.side}" for tap, (at, _) in zip(recipe.taps, taps, strict=True)),
            next_step="choose taps of one size, or another decoder",
        )
    return [Shape(tuple(channels for _, channels in taps), width, labels, taps[0][0])]


def _at_taps(recipe: Recipe, card: Card, grid: GridGeometry) -> list[tuple[GridGeometry, int]]:
    """Return grid and channels at each tap: the same at all taps of a transformer; others have one per stage."""
    if card.kind != "timm" or card.depth or recipe.taps == (LAST,):
        return [(grid, card.width)] * len(recipe.taps)
    from fmcache.encoders.outlines import taps_of  # timm

    stages = taps_of(card)
    found = []
    for tap in recipe.taps:
        stage = 0 if tap == LAST else int(tap.partition("+")[0])
        if stage > len(stages):
            raise SpecError(
                f"{card.name!r} has no block or stage {stage} to tap",
                expected=f"last, or a number from 1 to {len(stages)}" if stages else "last",
                found=f"tap {tap}",
                next_step="choose another tap, or plan this encoder in a recipe of its own",
            )
        patch, width = stages[stage - 1] if stage else (card.patch, card.width)
        found.append((grid._replace(patch=patch), width))
    return found
