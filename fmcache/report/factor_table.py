"""Where the variance of a sweep comes from: encoders, settings, interactions, seeds, test tiles. Table and Parquet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from fmcache.report.report_table import UNKNOWN, Cell, ReportTable, TableRow
from fmcache.report.sweep import SweptDataset
from fmcache.settings import Setting
from fmcache.specs import short_field
from fmcache.statistics.factors import SEEDS, UNITS, UNITS_BY_SETTING, Variances, mean_pseudo_values, variances

FACTORS = {
    "dataset": pl.String,
    "source": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "share": pl.Float64,
}
"""The columns of ``factors.parquet``."""
AGREEMENT, KENDALL_W = "agreement", "kendall_w"
"""The sources of two rows of ``factors.parquet`` that are not variances."""
SOURCES = {
    SEEDS: "seeds (one run)",
    UNITS: "test tiles (the score over all of them)",
    UNITS_BY_SETTING: "test tiles x encoder or setting",
}


class Factors(NamedTuple):
    """The variances of a sweep on one dataset; None where they cannot be computed, and `why` says why not."""

    dataset: str
    variances: Variances | None
    encoders: int
    why: str = ""


def factors_of(swept: SweptDataset) -> Factors:
    """Return the variances of a sweep's mean Dice over labels, among the encoders that were run under all settings."""
    dataset = swept.first.summary.record.dataset
    levels = [list(dict.fromkeys(dict(setting)[field] for setting in swept.findings)) for field in swept.fields]
    settings: list[Setting] = [tuple(zip(swept.fields, values, strict=True)) for values in product(*levels)]
    names = [one.name for one in swept.encoders if not swept.is_control(one.name) and len(swept.of(one.name))]
    whole = [name for name in names if all((name, setting) in swept.points for setting in settings)]
    if len(settings) > len(swept.findings) or len(whole) < 2:
        return Factors(dataset, None, len(whole), "fewer than two encoders were run under all combinations of settings")
    evidence = [swept.findings[setting].evidence for setting in settings]
    if any(one.units != evidence[0].units for one in evidence):
        return Factors(dataset, None, len(whole), "the settings have different test tiles")
    cells = [[mean_pseudo_values(one, name) for one in evidence] for name in whole]
    n_seeds = min(len(cell) for row in cells for cell in row)
    if n_seeds < 2 or len(evidence[0].units) < 2:
        return Factors(dataset, None, len(whole), "there are fewer than two seeds or fewer than two test units")
    values = np.array([[cell[:n_seeds] for cell in row] for row in cells])
    if np.isnan(values).any():
        return Factors(dataset, None, len(whole), "a score is undefined without one of the test units")
    used = [i for i, of in enumerate(levels) if len(of) > 1]
    shape = (len(whole), *(len(levels[i]) for i in used), n_seeds, len(evidence[0].units))
    found = variances(values.reshape(shape), ["encoder", *(short_field(swept.fields[i]) for i in used)])
    return Factors(dataset, found, len(whole))


def factors_table(of: Factors) -> ReportTable:
    """Return the table of the sources of variance, largest share first."""
    title, head = "Where differences come from", ("source", "share of variance (%)", "standard deviation (points)")
    if of.variances is None:
        return ReportTable("factors", title, head, (), (f"The variance cannot be divided: {of.why}.",))
    rows = sorted(zip(*of.variances[:4], of.variances.shares, strict=True), key=lambda row: -row[4])
    shown = tuple(
        TableRow((Cell(SOURCES.get(source, source)), _share(share), _deviation(variance, low, high)))
        for source, variance, low, high, share in rows
    )
    notes = (
        f"Mean Dice of {of.encoders} encoders under all settings, without controls. In brackets: 95 % limits by test "
        "tiles and seeds. A part that is estimated below 0 is shown as 0.",
        "Encoder: what distinguishes encoders under all settings alike. Encoder x setting: what depends on it.",
        *factor_sentences(of),
    )
    return ReportTable("factors", title, head, shown, notes)


def factor_sentences(of: Factors) -> list[str]:
    """Return how far the settings agree on the encoders, in words."""
    if of.variances is None:
        return []
    lines = []
    agreement, low, high = (100 * one for one in of.variances.agreement)
    if not math.isnan(agreement):
        limits = "" if math.isnan(low) else f" (95 % limits {low:.0f} to {high:.0f} %)"
        lines.append(f"{agreement:.0f} % of what distinguishes the encoders is the same under all settings{limits}.")
    w, low, high = of.variances.kendall_w
    if not math.isnan(w):
        limits = "" if math.isnan(low) else f" (95 % limits {low:.2f} to {high:.2f})"
        lines.append(
            f"Kendall's W of the ranks under the settings is {w:.2f}{limits}; 1 is the same order everywhere. It is "
            "too low where encoders are nearly equal."
        )
    return lines


def factors_frame(found: Sequence[Factors]) -> pl.DataFrame:
    """Return one row per dataset and source; ``TABLES.md`` describes the columns."""
    frame = pl.DataFrame([row for of in found for row in _rows(of)], schema=FACTORS, orient="row")
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def _rows(of: Factors) -> Iterator[tuple[Any, ...]]:
    if of.variances is None:
        return
    for source, *values, share in zip(*of.variances[:4], of.variances.shares, strict=True):
        yield (of.dataset, source, *map(float, values), float(share))
    yield (of.dataset, AGREEMENT, *of.variances.agreement, None)
    yield (of.dataset, KENDALL_W, *of.variances.kendall_w, None)


def _share(share: float) -> Cell:
    return Cell(UNKNOWN) if math.isnan(share) else Cell(f"{100 * share:.1f}", 100 * float(share))


def _deviation(variance: float, low: float, high: float) -> Cell:
    """Return the square root of a variance and of its limits, in points of Dice."""
    value, *limits = (
        100 * math.sqrt(max(one, 0.0)) if not math.isnan(one) else math.nan for one in (variance, low, high)
    )
    text = f"{value:.2f}" + ("" if math.isnan(limits[0]) else f" [{limits[0]:.2f}, {limits[1]:.2f}]")
    return Cell(text, value)
