"""From counts to the content of tables and figures: Dice per label and run, means, deviations, flags.

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
"""A smaller value is shown as 0.00 (percent with two digits)."""


class Row(NamedTuple):
    """One encoder. `dice` is (run, column): the labels, then their mean; shares of 1, NaN where a label has no Dice.

    `folds` (None: the fixed split) and `seeds` name the runs. `endings` states how each run ended, `missed` which
    labels it never or almost never predicted.
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
        """Return the positions of the runs that ended in a given way."""
        return tuple(i for i, one in enumerate(self.endings) if one is how)

    @property
    def labels_in_mean(self) -> npt.NDArray[np.int64]:
        """Number of labels in the mean of each run, (run,)."""
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
        """Whether the row is listed separately and never ranked: controls, and encoders with random weights."""
        return self.encoder.control or self.encoder.random_weights


class Summary(NamedTuple):
    """One dataset of one study. `columns` are the labels and, last, `mean`; encoders come first, controls last.

    `lacking` names the labels without a pixel in the tiles of a (fold, split). It has no entry for a split whose pixels
    are unknown.
    """

    record: RunRecord
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    reduction: Reduction
    lacking: Mapping[tuple[int | None, Split], tuple[str, ...]]

    @property
    def folds(self) -> tuple[int, ...]:
        """All folds of the rows; empty for a fixed split."""
        return tuple(sorted({fold for row in self.rows for fold in row.folds if fold is not None}))

    @property
    def compares(self) -> bool:
        """Whether the test tiles of some fold (or of the fixed split) hold more than one label."""
        n_labels = len(self.columns) - 1
        return any(n_labels - len(names) > 1 for (_, split), names in self.lacking.items() if split == "test")

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows that are ranked."""
        return tuple(row for row in self.rows if not row.is_control)

    def place(self, row: Row, column: int) -> int:
        """Return the place of a row in a column (1 is best; equal values share a place).

        0 means no place: for controls, for a single encoder, and for a Dice that is undefined or shown as 0. All rows
        have no place when the test tiles hold only one label, because its Dice has no meaning.
        """
        value = row.mean[column]
        if row.is_control or len(self.ranked) < 2 or not self.compares or np.isnan(value) or value < SHOWN_AS_ZERO:
            return 0
        return 1 + sum(bool(other.mean[column] > value) for other in self.ranked)


def summarise(runs: Sequence[RunResults]) -> Summary:
    """Return the summary of all runs of one study and dataset.

    Raises
    ------
    ResultsNotFound
        When there are no runs.
    ResultsMismatch
        When runs differ in more than encoder, fold and seed; the message names the fields.
    """
    if not runs:
        raise ResultsNotFound("there are no runs to summarise", next_step="run fmcache fit")
    first = runs[0].record
    first_of_fold: dict[int | None, RunRecord] = {}
    for run in runs:
        _check_alike(first, run.record)
        _check_alike(first_of_fold.setdefault(run.record.fold, run.record), run.record)
    _check_folds(first_of_fold)
    reduction: Reduction = first.recipe["dice"]
    labels = tuple(name for name, _ in first.labels)
    ordered = sorted(runs, key=lambda run: (run.record.encoder.name, run.record.fold or 0, run.record.seed))
    rows = [
        _row(list(group), labels, reduction) for _, group in groupby(ordered, key=lambda run: run.record.encoder.name)
    ]
    rows.sort(key=lambda row: (row.is_control, -np.nan_to_num(row.mean[-1]), row.encoder.name))
    return Summary(first, (*labels, MEAN), tuple(rows), reduction, _lacking(runs, labels))


def _row(runs: list[RunResults], labels: tuple[str, ...], reduction: Reduction) -> Row:
    dice = []
    for run in runs:
        _check_alike(runs[0].record, run.record, encoder=True)
        per_label = dice_per_label(_counts(run.counts, labels), reduction)
        dice.append([*per_label, mean_of_defined(per_label, axis=0)])
    records = [run.record for run in runs]
    return Row(
        records[0].encoder,
        tuple(record.fold for record in records),
        tuple(record.seed for record in records),
        np.array(dice),
        tuple(ending(run) for run in runs),
        tuple(missed(run) for run in runs),
        tuple(run.curve for run in runs),
    )


def _lacking(runs: Sequence[RunResults], labels: tuple[str, ...]) -> dict[tuple[int | None, Split], tuple[str, ...]]:
    """Return the labels without a pixel by fold and split: for validation and test from the counts of the runs, for
    training from their records."""
    present: dict[tuple[int | None, Split], set[str]] = {}
    for run in runs:
        fold = run.record.fold
        for split in SPLITS:
            truth = run.counts.filter(pl.col("split") == split)
            if split in run.counts["split"]:
                seen = truth.filter(pl.col("tp") + pl.col("fn") > 0)["label"].unique().to_list()
            elif split in run.record.label_pixels:
                pixels = run.record.label_pixels[split]
                seen = [label for label, n in zip(labels, pixels, strict=True) if n]
            else:
                continue
            present.setdefault((fold, split), set()).update(seen)
    return {key: tuple(label for label in labels if label not in seen) for key, seen in present.items()}


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
        lines = [f"{one.encoder.name} or {other.encoder.name} was run both on folds and on the fixed split"]
    else:
        fold = one.fold == other.fold
        lines = differences(_comparable(one, encoder, fold), _comparable(other, encoder, fold))
    if lines:
        raise ResultsMismatch(
            f"runs of study {one.study!r} on {one.dataset} cannot be compared:\n    " + "\n    ".join(lines[:8]),
            next_step="fit the older runs again (fmcache fit --recompute), or give the recipes different names",
        )


def _check_folds(first_of_fold: dict[int | None, RunRecord]) -> None:
    """Refuse folds that test a tile twice: they come from two different divisions of the dataset into folds."""
    fold_of: dict[str, int | None] = {}
    for fold, record in first_of_fold.items():
        for tile in record.identity.get("splits", {}).get("test", ()):
            if fold_of.setdefault(tile, fold) != fold:
                raise ResultsMismatch(
                    f"runs of study {record.study!r} on {record.dataset} come from two different divisions into folds",
                    found=f"tile {tile!r} is tested in fold {fold_of[tile]} and in fold {fold}",
                    next_step=f"remove results/{record.study}/{record.dataset} in the working folder, then run "
                    "fmcache fit",
                )


def _comparable(record: RunRecord, encoder: bool, fold: bool) -> dict[str, object]:
    """Return the facts that must be equal: everything except the seed.

    The token cache is left out for runs of different encoders, the tiles for runs of different folds. um/px is not in
    the identity, but is compared too, because the report's table of facts shows it.
    """
    alike = {k: v for k, v in record.identity.items() if k != "seed" and (encoder or k != "tokens")}
    alike["mpp"] = record.mpp
    if fold:
        return alike
    alike.pop("splits", None)
    caches = {k: alike[k] for k in ("tokens", "view_bank") if isinstance(alike.get(k), dict)}
    return alike | {k: {f: v for f, v in cache.items() if f != "tiles"} for k, cache in caches.items()}
