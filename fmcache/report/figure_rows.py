"""What figures show of each encoder: its estimate with limits and ranks, in percent, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from fmcache.report.findings import Findings
from fmcache.statistics.schemas import MEAN


class Standing(Enum):
    """What is known of an encoder; the values are the words of legends."""

    BEST = "may be best"
    OTHER = "another encoder is better"
    CONTROL = "control"


class FigureRow(NamedTuple):
    """One encoder and label. Dice and limits are in percent, NaN where undefined; ranks are None where there are none.

    `spread` is the standard deviation of the runs. `cannot` gives the reason when there is an estimate without limits.
    """

    encoder: str
    display: str
    standing: Standing
    estimate: float
    low: float
    high: float
    spread: float
    ranks: tuple[int, int] | None
    cannot: str


def figure_rows(findings: Findings, label: str = MEAN) -> list[FigureRow]:
    """Return the rows of a label: ranked encoders by estimate, then controls by estimate."""
    summary, intervals = findings.summary, findings.intervals_of()
    column = summary.columns.index(label)
    rows = []
    for row in summary.rows:
        one = intervals[row.encoder.name, label]
        standing = Standing.BEST if one["may_be_best"] else Standing.OTHER
        rows.append(
            FigureRow(
                encoder=row.encoder.name,
                display=row.encoder.display,
                standing=Standing.CONTROL if row.is_control else standing,
                estimate=_percent(one["estimate"]),
                low=_percent(one["low"]),
                high=_percent(one["high"]),
                spread=100 * float(row.std[column]),
                ranks=None if one["rank_low"] is None else (one["rank_low"], one["rank_high"]),
                cannot=one["cannot"] or "",
            )
        )
    return sorted(rows, key=_place)


def places_of(rows: Sequence[FigureRow]) -> list[float]:
    """Return the y of each row, from 0 downwards, with a gap before the controls."""
    n_ranked = sum(row.standing is not Standing.CONTROL for row in rows)
    gap = 0.6 if 0 < n_ranked < len(rows) else 0.0
    return [i + (gap if i >= n_ranked else 0.0) for i in range(len(rows))]


def _place(row: FigureRow) -> tuple[bool, float, str]:
    return row.standing is Standing.CONTROL, -row.estimate if not math.isnan(row.estimate) else 1.0, row.encoder


def _percent(share: float | None) -> float:
    return math.nan if share is None else 100 * share
