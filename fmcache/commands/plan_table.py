"""A plan for the terminal: what is kept, what is computed, other variants, and what the numbers assume."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich import box
from rich.console import Group
from rich.table import Table

from fmcache.commands.gpu_table import gpu_table, time_text
from fmcache.demand import demand_of
from fmcache.planning.costs import Cost, cost_of, forward_passes, total_of
from fmcache.planning.plan import Item, Plan, cheaper
from fmcache.runtime.sizes import size_text
from fmcache.specs import Recipe, cache_recipes

if TYPE_CHECKING:
    from fmcache.planning.speed import Speed  # torch

SMALLEST_RATIO = 0.001


def shown(plan: Plan, work: Path) -> Group:
    """Return a plan for the terminal: a row per encoder, the sums, and other variants."""
    recipe, total = plan.recipe, total_of([item.cost for item in plan.items])
    parts: list[Table | str] = [_encoders_table(plan, total), _work_table(plan, total)]
    if plan.fleet:
        parts += gpu_table(plan.items, plan.fleet, [_name(plan, item) for item in plan.items])
    cached = cache_recipes(recipe)
    views = {
        name: [forward_passes(demand_of(one, name, dataset)) for one in cached]
        for name, dataset in plan.datasets.items()
    }
    free, memory = shutil.disk_usage(_existing(work)).free, psutil.virtual_memory().available
    counted = ", ".join(f"{name} {sum(each)}" for name, each in views.items())
    masks = size_text(sum(n * one.tile_px**2 for each in views.values() for one, n in zip(cached, each, strict=True)))
    parts += [plan.sweep] if plan.sweep else []
    parts += [
        f"views: {counted}; masks of all views: at most {masks} more; {size_text(free)} free on disk",
        f"largest token grids in memory during fit: {size_text(max(item.cost.fit_bytes for item in plan.items))}; "
        f"{size_text(memory)} free",
    ]
    if total.raw_bytes > free:
        parts.append("NO ROOM: the tokens may not fit on this disk; choose another working folder with --work")
    if variants := cheaper(recipe):
        parts.append(_cheaper_table(plan, variants))
    if plan.against_collapse:
        parts.append(_collapse_table(plan, total))
    parts.append(_assumptions(plan))
    return Group(*parts)


def _encoders_table(plan: Plan, total: Cost) -> Table:
    """Return the table of what is kept: on disk and, in stage two, in memory."""
    title = f"{plan.recipe.name}: {len(plan.items)} encoders x {plan.recipe.fit.seeds} seeds, store {plan.recipe.store}"
    table = _table(title, "encoder", "grid", "forward passes", "raw", "on disk", "memory in fit")
    for item in plan.items:
        grid = f"{item.card.width}x{item.grid.side}x{item.grid.side}"  # no blanks, so that it is not broken into lines
        table.add_row(_name(plan, item), grid, *_kept(item.cost))
    table.add_section()
    table.add_row("total", "", *_kept(total))
    return table


def _work_table(plan: Plan, total: Cost) -> Table:
    """Return the table of what is computed, and how long it takes."""
    table = _table("", "encoder", "forward TFLOP", "time", "decoders TFLOP", "time")
    for item in plan.items:
        table.add_row(_name(plan, item), *_work(item.cost, [item], plan.speed))
    table.add_section()
    table.add_row("total", *_work(total, plan.items, plan.speed))
    return table


def _cheaper_table(plan: Plan, variants: dict[str, Recipe]) -> Table:
    what = "time" if plan.speed else "TFLOP"
    table = _table("", "cheaper variant", "passes", "on disk", "in memory", f"encoder {what}", f"decoder {what}")
    for change, recipe in {"(unchanged)": plan.recipe, **variants}.items():
        items = _items_of(plan, recipe)
        cost = total_of([item.cost for item in items])
        passes, _, disk, memory = _kept(cost)
        flop, seconds, decoder_flop, decoder_seconds = _work(cost, items, plan.speed)
        work = (seconds, decoder_seconds) if plan.speed else (flop, decoder_flop)
        table.add_row(change, passes, disk, memory, *work)
    return table


def _collapse_table(plan: Plan, total: Cost) -> Table:
    """Return what each change costs that helped when labels were never predicted."""
    what = "time" if plan.speed else "TFLOP"
    table = _table("", "if labels are never predicted", f"decoder {what}", "compared with this recipe")
    before = _decoder_work(total, plan.speed)
    table.add_row("(unchanged)", _decoder_text(total, plan.speed), "")
    for line, (recipe, speed) in plan.against_collapse.items():
        cost = total_of([item.cost for item in _items_of(plan, recipe)])
        ratio = _decoder_work(cost, speed) / before
        table.add_row(line, _decoder_text(cost, speed), _ratio_text(ratio))
    return table


def _ratio_text(ratio: float) -> str:
    if ratio == 1:
        return "the same"
    return f"{ratio:.2g} x" if ratio >= SMALLEST_RATIO else f"below {SMALLEST_RATIO} x"


def _items_of(plan: Plan, recipe: Recipe) -> list[Item]:
    """Return the items of a plan with their costs under another recipe for the same encoders and datasets."""
    return [
        item._replace(cost=cost_of(recipe, demand_of(recipe, item.dataset, plan.datasets[item.dataset]), item.card))
        for item in plan.items
    ]


def _decoder_work(cost: Cost, speed: Speed | None) -> float:
    """Return the seconds of all decoders or, when nothing was measured, their operations."""
    return speed.decoder_s(cost) if speed else cost.decoder_flop


def _decoder_text(cost: Cost, speed: Speed | None) -> str:
    return time_text(speed.decoder_s(cost)) if speed else f"{cost.decoder_flop / 1e12:,.1f}"


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _name(plan: Plan, item: Item) -> str:
    return f"{item.dataset} · {item.encoder}" if len(plan.datasets) > 1 else item.encoder


def _kept(cost: Cost) -> tuple[str, str, str, str]:
    return f"{cost.forward_passes:,}", size_text(cost.raw_bytes), size_text(cost.disk_bytes), size_text(cost.fit_bytes)


def _work(cost: Cost, items: Sequence[Item], speed: Speed | None) -> tuple[str, str, str, str]:
    encoder, decoder = f"{cost.encoder_flop / 1e12:,.1f}", _decoder_text(cost, None)
    if speed is None:
        return encoder, "–", decoder, "–"
    seconds = sum(item.cost.encoder_flop / speed.encoder[item.precision] for item in items)
    return encoder, time_text(seconds), decoder, _decoder_text(cost, speed)


def _assumptions(plan: Plan) -> str:
    lines = [
        "on disk: an estimate from the ratio seen on a small ViT (fmcache/cache/CODECS.md)",
        "TFLOP: 10^12 operations, convolutions in direct form; a control without a network counts as 0",
        "existing caches and results are not subtracted",
        "fewer views or seeds, or a narrower decoder, also change what the study can show, not only its cost",
    ]
    if plan.against_collapse:
        lines.append(
            "changes against collapsed labels helped in our studies, and need no other caches"
            + ("" if plan.speed else "; operations leave out the loss, which takes most of the time of a linear probe")
        )
    if others := sorted({item.encoder for item in plan.items if item.card.kind == "timm" and not item.card.depth}):
        lines.append(
            f"{', '.join(others)}: operations are counted from the shapes of layers; times assume the speed of a "
            "transformer, and small convolutions are slower"
        )
    if plan.speed:
        rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in plan.speed.encoder.items())
        lines.append(
            f"times: rough (within a factor of two), measured for a few seconds on {plan.speed.device} under its "
            f"present load: encoders {rates}, decoder {plan.speed.decoder / 1e9:,.0f} GFLOP/s; without the time "
            "to read tiles, render views and write files"
        )
    return "\n".join(lines)


def _existing(folder: Path) -> Path:
    return next((one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir()), Path("/"))
