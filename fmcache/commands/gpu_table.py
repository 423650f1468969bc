"""The table of a plan for a number of GPUs: time, files, and what disk and scheduler must bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from fmcache.planning.costs import total_of
from fmcache.planning.gpus import LOGIT_BYTES, SHARE_DECODER, SHARE_ENCODER, Fleet
from fmcache.runtime.sizes import size_text

if TYPE_CHECKING:
    from fmcache.planning.plan import Item


def gpu_table(items: Sequence[Item], fleet: Fleet, names: Sequence[str]) -> list[Table | str]:
    """Return the table of a plan on GPUs, with a row per item named by `names`, and lines on its assumptions."""
    kind = fleet.gpu
    title = f"on {fleet.number} x {kind.title}, by assumption (nothing was measured)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("encoder", no_wrap=True)
    for column in ("precision", "extract", "written", "shard files", "mean shard", "tasks", "fit", "runs"):
        table.add_column(column, justify="right")
    extract_s = 0.0
    for item, name in zip(items, names, strict=True):
        cost = item.cost
        seconds = fleet.encoder_s(cost, item.precision)
        extract_s += seconds
        rate = f"{size_text(round(cost.disk_bytes / seconds))}/s" if seconds else "–"
        shard = size_text(cost.disk_bytes // max(cost.objects, 1))
        table.add_row(
            name, item.precision, time_text(seconds), rate, f"{cost.objects:,}", shard, f"{fleet.tasks(cost):,}",
            time_text(fleet.fit_s([cost])), f"{cost.runs:,}",
        )  # fmt: skip
    costs = [item.cost for item in items]
    total = total_of(costs)
    table.add_section()
    rate = f"{size_text(round(total.disk_bytes / extract_s))}/s" if extract_s else "–"
    mean = size_text(total.disk_bytes // max(total.objects, 1))
    tasks = sum(map(fleet.tasks, costs))
    fit = time_text(fleet.fit_s(costs))
    table.add_row(
        "total", "", time_text(extract_s), rate, f"{total.objects:,}", mean, f"{tasks:,}", fit, f"{total.runs:,}"
    )
    a_second = f"{tasks / extract_s:,.1f}" if extract_s else "–"
    lines = [
        f"ASSUMED, not measured: encoders reach {SHARE_ENCODER:.0%} of the published peak "
        f"({kind.half / 1e12:,.0f} TFLOP/s in 16 bit, {kind.single / 1e12:,.0f} in float32), decoders "
        f"{SHARE_DECODER:.0%} of the TF32 peak, as one H100 did "
        f"({kind.tf32 / 1e12:,.0f} TFLOP/s); the loss moves {LOGIT_BYTES} bytes a logit at "
        f"{kind.bandwidth / 1e9:,.0f} GB/s. Peaks: {kind.source}",
        "times: without reading tiles, rendering views, loading weights and writing files; 'written' is what the disk "
        f"must take from all GPUs; the scheduler hands out {a_second} tasks a second in extract",
        "fit: each run is on one GPU; more GPUs than runs change nothing",
    ]
    if total.fit_bytes > kind.memory_bytes:
        lines.append(
            f"the largest token grids ({size_text(total.fit_bytes)}) do not fit into the memory of one GPU "
            f"({size_text(round(kind.memory_bytes))}): batches come from main memory"
        )
    return [table, "\n".join(lines)]


def time_text(seconds: float) -> str:
    """Return a rough time as text."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
