"""From counts to what tables and figures show: Dice per label and run, means, deviations, flags.

A run is a seed on the fixed split, or a (fold, seed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.errors import ResultsMismatch, ResultsNotFound
from fmcache.identity import differences
from fmcache.manifest import SPLITS, Split
from fmcache.report.endings import Ending, ending
from fmcache.scores.dice import Reduction, dice_per_label, mean_of_defined
from fmcache.scores.missed import missed
from fmcache.scores.records import EncoderInfo, RunRecord, RunResults

MEAN = "mean"
SHOWN_AS_ZERO = 0.00005
"""In percent with two digits, less is 0.00."""


class Row(NamedTuple):
    """One encoder. `dice` is (run, column): the labels, then their mean; shares of 1, NaN where a label has no Dice.

    `folds` (None: the fixed split) and `seeds` name the runs, `endings` tells how each ended, and `missed` which labels
    it never predicted, or as good as never.
    """

    encoder: EncoderInfo
    folds: tuple[int | None, ...]
    seeds: tuple[int, ...]
    dice: npt.NDArray[np.float64]
    endings: tuple[Ending, ...]
    missed: tuple[tuple[str, ...], ...]
    curves: tuple[pl.DataFrame, ...]

    @property
    def runs(self) -> tuple[tuple[int | None, int], ...]:
        """(fold, seed) of each run."""
        return tuple(zip(self.folds, self.seeds, strict=True))

    def ended(self, how: Ending) -> tuple[int, ...]:
        """Return which runs (their positions) ended in a way."""
        return tuple(i for i, one in enumerate(self.endings) if one is how)

    @property
    def labels_in_mean(self) -> npt.NDArray[np.int64]:
        """Over how many labels the mean of each run goes, (run,)."""
        return np.asarray((~np.isnan(self.dice[:, :-1])).sum(axis=1))

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean over runs of each column."""
        return mean_of_defined(self.dice, axis=0)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation over runs (n - 1) of each column; NaN with fewer than two runs."""
        return _std(self.dice)

    @property
    def std_of_folds(self) -> float:
        """Standard deviation (n - 1) over folds of the mean Dice of each fold's seeds; NaN with fewer than two."""
        return float(_std(np.array([self._of(fold).mean() for fold in sorted(set(self.folds), key=str)])))

    @property
    def std_of_seeds(self) -> float:
        """Standard deviation of the mean Dice over seeds within a fold, pooled over folds; NaN with one seed each."""
        within = [self._of(fold) - self._of(fold).mean() for fold in set(self.folds)]
        freedom = len(self.seeds) - len(within)
        return float(np.sqrt(np.square(np.concatenate(within)).sum() / freedom)) if freedom else float("nan")

    def _of(self, fold: int | None) -> npt.NDArray[np.float64]:
        return self.dice[[at == fold for at in self.folds], -1]

    @property
    def is_control(self) -> bool:
        """Whether the row stands apart and is never ranked: controls, and anything with random weights."""
        return self.encoder.control or self.encoder.random_weights


class Summary(NamedTuple):
    """One dataset of one study. `columns` are the labels and, last, `mean`; encoders come first, controls last.

    `lacking` names the labels that have no pixel in the tiles of a (fold, split); a split of which nothing is known is
    not in it.
    """

    record: RunRecord
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    reduction: Reduction
    lacking: Mapping[tuple[int | None, Split], tuple[str, ...]]

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that any row was run on; empty for a fixed split."""
        return tuple(sorted({fold for row in self.rows for fold in row.folds if fold is not None}))

    @property
    def compares(self) -> bool:
        """Whether the test tiles of some fold (or of the fixed split) hold more than one label."""
        n_labels = len(self.columns) - 1
        return any(n_labels - len(names) > 1 for (_, split), names in self.lacking.items() if split == "test")

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows that compete."""
        return tuple(row for row in self.rows if not row.is_control)

    def place(self, row: Row, column: int) -> int:
        """Return the place of a row in a column (1 is best; equals share it).

        It is 0, no place, for controls and lone encoders, for a Dice that is undefined or shown as 0, and everywhere
        when the test tiles hold a single label, whose Dice says nothing.
        """
        value = row.mean[column]
        if row.is_control or len(self.ranked) < 2 or not self.compares or np.isnan(value) or value < SHOWN_AS_ZERO:
            return 0
        return 1 + sum(bool(other.mean[column] > value) for other in self.ranked)


def summarise(parts: Sequence[RunResults]) -> Summary:
    """Return the summary of all parts of one study and dataset.

    Raises
    ------
    ResultsNotFound
        When there are no parts.
    ResultsMismatch
        When runs differ in more than encoder, fold and seed, naming the fields.
    """
    if not parts:
        raise ResultsNotFound("there are no runs to summarise", next_step="fmcache fit")
    first = parts[0].record
    first_of_fold: dict[int | None, RunRecord] = {}
    for part in parts:
        _check_alike(first, part.record)
        _check_alike(first_of_fold.setdefault(part.record.fold, part.record), part.record)
    _check_folds(first_of_fold)
    reduction: Reduction = first.recipe["dice"]
    labels = tuple(name for name, _ in first.labels)
    ordered = sorted(parts, key=lambda p: (p.record.encoder.name, p.record.fold or 0, p.record.seed))
    rows = [
        _row(list(group), labels, reduction) for _, group in groupby(ordered, key=lambda part: part.record.encoder.name)
    ]
    rows.sort(key=lambda row: (row.is_control, -np.nan_to_num(row.mean[-1]), row.encoder.name))
    return Summary(first, (*labels, MEAN), tuple(rows), reduction, _lacking(parts, labels))


def _row(parts: list[RunResults], labels: tuple[str, ...], reduction: Reduction) -> Row:
    dice = []
    for part in parts:
        _check_alike(parts[0].record, part.record, encoder=True)
        per_label = dice_per_label(_counts(part.counts, labels), reduction)
        dice.append([*per_label, mean_of_defined(per_label, axis=0)])
    records = [part.record for part in parts]
    return Row(
        records[0].encoder,
        tuple(record.fold for record in records),
        tuple(record.seed for record in records),
        np.array(dice),
        tuple(ending(part) for part in parts),
        tuple(missed(part) for part in parts),
        tuple(part.curve for part in parts),
    )


def _lacking(parts: Sequence[RunResults], labels: tuple[str, ...]) -> dict[tuple[int | None, Split], tuple[str, ...]]:
    """Labels without a pixel by fold and split: of validation and test by the truth that runs saw, of training by
    their record."""
    there: dict[tuple[int | None, Split], set[str]] = {}
    for part in parts:
        fold = part.record.fold
        for split in SPLITS:
            truth = part.counts.filter(pl.col("split") == split)
            if split in part.counts["split"]:
                seen = truth.filter(pl.col("tp") + pl.col("fn") > 0)["label"].unique().to_list()
            elif split in part.record.label_pixels:
                pixels = part.record.label_pixels[split]
                seen = [label for label, n in zip(labels, pixels, strict=True) if n]
            else:
                continue
            there.setdefault((fold, split), set()).update(seen)
    return {key: tuple(label for label in labels if label not in seen) for key, seen in there.items()}


def _std(dice: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviation (n - 1) along the first axis; NaN with fewer than two values."""
    return np.asarray(np.std(dice, axis=0, ddof=1)) if len(dice) > 1 else np.full(dice.shape[1:], np.nan)


def _counts(table: pl.DataFrame, labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Counts of the test split, (tile, label, 3)."""
    test = table.filter(pl.col("split") == "test")
    per_label = [test.filter(pl.col("label") == label).sort("tile").select("tp", "fp", "fn") for label in labels]
    return np.stack([frame.to_numpy() for frame in per_label], axis=1)


def _check_alike(one: RunRecord, other: RunRecord, encoder: bool = False) -> None:
    if (one.fold is None) != (other.fold is None):
        lines = [f"{one.encoder.name} or {other.encoder.name} was run on folds, and on the fixed split too"]
    else:
        fold = one.fold == other.fold
        lines = differences(_comparable(one, encoder, fold), _comparable(other, encoder, fold))
    if lines:
        raise ResultsMismatch(
            f"runs of study {one.study!r} on {one.dataset} do not belong together:\n    " + "\n    ".join(lines[:8]),
            next_step="fit the older ones again (fmcache fit --recompute), or name the recipes differently",
        )


def _check_folds(first_of_fold: dict[int | None, RunRecord]) -> None:
    """Refuse folds that test a tile twice: those of another cut of the dataset, left from an earlier fit."""
    fold_of: dict[str, int | None] = {}
    for fold, record in first_of_fold.items():
        for tile in record.identity.get("splits", {}).get("test", ()):
            if fold_of.setdefault(tile, fold) != fold:
                raise ResultsMismatch(
                    f"runs of study {record.study!r} on {record.dataset} come from two different cuts into folds",
                    found=f"tile {tile!r} is tested in fold {fold_of[tile]} and in fold {fold}",
                    next_step=f"remove results/{record.study}/{record.dataset} in the working folder; fmcache fit",
                )


def _comparable(record: RunRecord, encoder: bool, fold: bool) -> dict[str, object]:
    """What must agree: all but the seed; of runs that share no encoder, less the token cache; no fold, less tiles.

    um/px are in no identity, and stand in the report's table of facts.
    """
    alike = {k: v for k, v in record.identity.items() if k != "seed" and (encoder or k != "tokens")}
    alike["mpp"] = record.mpp
    if fold:
        return alike
    alike.pop("splits", None)
    caches = {k: alike[k] for k in ("tokens", "view_bank") if isinstance(alike.get(k), dict)}
    return alike | {k: {f: v for f, v in cache.items() if f != "tiles"} for k, cache in caches.items()}
