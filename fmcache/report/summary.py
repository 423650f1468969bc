"""From counts to what tables and figures show: Dice per label and seed, means, deviations, flags."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.errors import ResultsMismatch, ResultsNotFound
from fmcache.identity import differences
from fmcache.scores.dice import Reduction, dice_per_label, mean_of_defined
from fmcache.scores.table import EncoderInfo, Part, RunRecord

MEAN = "mean"


class Row(NamedTuple):
    """One encoder. `dice` is (seed, column): the labels, then their mean; shares of 1, NaN where a label has no Dice.

    `collapsed` lists the seeds that never predicted a label, `falling` those whose training loss was still falling,
    and `rising` those of the latter whose validation Dice was best at the end: more training may well help these.
    """

    encoder: EncoderInfo
    seeds: tuple[int, ...]
    dice: npt.NDArray[np.float64]
    collapsed: tuple[int, ...]
    falling: tuple[int, ...]
    rising: tuple[int, ...]
    curves: tuple[pl.DataFrame, ...]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean over seeds of each column."""
        return mean_of_defined(self.dice, axis=0)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation over seeds (n - 1) of each column; NaN with fewer than two seeds."""
        if len(self.seeds) < 2:
            return np.full(self.dice.shape[1], np.nan)
        return np.asarray(np.std(self.dice, axis=0, ddof=1))

    @property
    def is_control(self) -> bool:
        """Whether the row stands apart and is never ranked: controls, and anything with random weights."""
        return self.encoder.control or self.encoder.random_weights


class Summary(NamedTuple):
    """One dataset of one study. `columns` are the labels and, last, `mean`; encoders come first, controls last."""

    record: RunRecord
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    reduction: Reduction

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows that compete."""
        return tuple(row for row in self.rows if not row.is_control)

    def place(self, row: Row, column: int) -> int:
        """Return the place of a row in a column (1 is best; equals share it); 0 for controls and lone encoders."""
        value = row.mean[column]
        if row.is_control or len(self.ranked) < 2 or np.isnan(value):
            return 0
        return 1 + sum(bool(other.mean[column] > value) for other in self.ranked)


def summarise(parts: Sequence[Part]) -> Summary:
    """Return the summary of all parts of one study and dataset.

    Raises
    ------
    ResultsNotFound
        When there are no parts.
    ResultsMismatch
        When runs differ in more than encoder and seed, naming the fields.
    """
    if not parts:
        raise ResultsNotFound("there are no runs to summarise", next_step="fmcache fit")
    first = parts[0].record
    for part in parts:
        _check_alike(first, part.record)
    reduction: Reduction = first.recipe["dice"]
    labels = tuple(name for name, _ in first.labels)
    ordered = sorted(parts, key=lambda part: (part.record.encoder.name, part.record.seed))
    rows = [
        _row(list(group), labels, reduction) for _, group in groupby(ordered, key=lambda part: part.record.encoder.name)
    ]
    rows.sort(key=lambda row: (row.is_control, -np.nan_to_num(row.mean[-1]), row.encoder.name))
    return Summary(first, (*labels, MEAN), tuple(rows), reduction)


def _row(parts: list[Part], labels: tuple[str, ...], reduction: Reduction) -> Row:
    dice = []
    for part in parts:
        _check_alike(parts[0].record, part.record, encoder=True)
        per_label = dice_per_label(_counts(part.counts, labels), reduction)
        dice.append([*per_label, mean_of_defined(per_label, axis=0)])
    records = [part.record for part in parts]
    return Row(
        records[0].encoder,
        tuple(record.seed for record in records),
        np.array(dice),
        tuple(record.seed for record in records if record.collapsed),
        tuple(record.seed for record in records if record.still_falling),
        tuple(r.seed for r in records if r.still_falling and r.best_epoch == r.recipe["fit"]["epochs"]),
        tuple(part.curve for part in parts),
    )


def _counts(table: pl.DataFrame, labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Counts of the test split, (tile, label, 3)."""
    test = table.filter(pl.col("split") == "test")
    per_label = [test.filter(pl.col("label") == label).sort("tile").select("tp", "fp", "fn") for label in labels]
    return np.stack([frame.to_numpy() for frame in per_label], axis=1)


def _check_alike(one: RunRecord, other: RunRecord, encoder: bool = False) -> None:
    lines = differences(_comparable(one, encoder), _comparable(other, encoder))
    if lines:
        raise ResultsMismatch(
            f"runs of study {one.study!r} on {one.dataset} do not belong together:\n    " + "\n    ".join(lines[:8]),
            next_step="fit the older ones again (fmcache fit --recompute), or name the recipes differently",
        )


def _comparable(record: RunRecord, encoder: bool) -> dict[str, object]:
    """What must agree: within an encoder all but the seed; between encoders also not the token cache."""
    return {k: v for k, v in record.identity.items() if k != "seed" and (encoder or k != "tokens")}
