"""From counts to the content of tables and figures: Dice per label and seed, means, deviations, flags.

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
from fmcache.scores.dice import Reduction, mean_of_defined
from fmcache.scores.missed import missed
from fmcache.scores.records import EncoderInfo, RunRecord, RunResults
from fmcache.scores.results import results_table
from fmcache.statistics.evidence import Evidence, Score, evidence_of, parts_of, score_of
from fmcache.statistics.leave_out import seed_scores

MEAN = "mean"
SHOWN_AS_ZERO = 0.00005
"""A smaller value is shown as 0.00 (percent with two digits)."""


class Row(NamedTuple):
    """One encoder. Columns are the labels, then their mean; values are shares of 1, NaN where a label has no Dice.

    `dice` is (seed, column), for the `seeds` that tested every tile; with folds, the tiles of all folds of a seed are
    scored together. `runs` are (fold, seed), with fold None for the fixed split; `run_dice` is (run, column).
    `endings` states how each run ended, `missed` which labels it never or almost never predicted.
    """

    encoder: EncoderInfo
    seeds: tuple[int, ...]
    dice: npt.NDArray[np.float64]
    runs: tuple[tuple[int | None, int], ...]
    run_dice: npt.NDArray[np.float64]
    endings: tuple[Ending, ...]
    missed: tuple[tuple[str, ...], ...]
    curves: tuple[pl.DataFrame, ...]

    def ended(self, how: Ending) -> tuple[int, ...]:
        """Return the positions of the runs that ended in a given way."""
        return tuple(i for i, one in enumerate(self.endings) if one is how)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean over seeds of each column: the estimate of `fmcache.statistics`."""
        return mean_of_defined(self.dice, axis=0)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation over seeds (n - 1) of each column; NaN with fewer than two seeds."""
        return deviation(self.dice)

    @property
    def std_of_folds(self) -> float:
        """Standard deviation (n - 1) over folds of the mean Dice of each fold's seeds; NaN with fewer than two."""
        return float(deviation(np.array([of.mean() for of in self._by_fold()])))

    @property
    def std_of_seeds(self) -> float:
        """Standard deviation of the mean Dice over seeds within a fold, pooled over folds; NaN with one seed each."""
        within = [of - of.mean() for of in self._by_fold()]
        freedom = len(self.runs) - len(within)
        return float(np.sqrt(np.square(np.concatenate(within)).sum() / freedom)) if freedom else float("nan")

    def _by_fold(self) -> list[npt.NDArray[np.float64]]:
        """Return the mean Dice of the runs of each fold."""
        folds = [fold for fold, _ in self.runs]
        return [self.run_dice[[at == fold for at in folds], -1] for fold in sorted(set(folds), key=str)]

    @property
    def is_control(self) -> bool:
        """Whether the row is listed separately and never ranked: controls, and encoders with random weights."""
        return self.encoder.control or self.encoder.random_weights


class Summary(NamedTuple):
    """One dataset of one study. `columns` are the labels and, last, `mean`; encoders come first, controls last.

    `lacking` names the labels without a pixel in the tiles of a (fold, split). It has no entry for a split whose pixels
    are unknown. `evidence` has the sums behind all scores.
    """

    record: RunRecord
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    reduction: Reduction
    lacking: Mapping[tuple[int | None, Split], tuple[str, ...]]
    evidence: Evidence

    @property
    def folds(self) -> tuple[int, ...]:
        """All folds of the rows; empty for a fixed split."""
        return tuple(sorted({fold for row in self.rows for fold, _ in row.runs if fold is not None}))

    @property
    def absent(self) -> tuple[str, ...]:
        """The labels that no test tile of any fold has."""
        of_folds = [set(names) for (_, split), names in self.lacking.items() if split == "test"]
        return tuple(label for label in self.columns[:-1] if all(label in names for names in of_folds))

    @property
    def compares(self) -> bool:
        """Whether the test tiles hold more than one label."""
        return len(self.columns) - 1 - len(self.absent) > 1

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

    def worst(self, row: Row) -> tuple[str, float] | None:
        """Return the label with the lowest mean Dice of a row, and that Dice; None when no label has a Dice.

        Labels that no training tile has count too: they are in the mean.
        """
        of_labels = row.mean[:-1]
        if np.isnan(of_labels).all():
            return None
        at = int(np.nanargmin(of_labels))
        return self.columns[at], float(of_labels[at])


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
    of_encoders = [list(group) for _, group in groupby(ordered, key=lambda run: run.record.encoder.name)]
    for of_encoder in of_encoders:
        for run in of_encoder:
            _check_alike(of_encoder[0].record, run.record, encoder=True)
    groups = {tile: group for run in runs for tile, group in run.record.groups.items()}
    lacking = _lacking(runs, labels)
    untrained = [label for label in labels if all(label in lacking.get((fold, "train"), ()) for fold in first_of_fold)]
    evidence = evidence_of(results_table(runs), reduction, groups, labels, untrained)
    rows = [_row(of_encoder, labels, evidence) for of_encoder in of_encoders]
    rows.sort(key=lambda row: (row.is_control, -np.nan_to_num(row.mean[-1]), row.encoder.name))
    return Summary(first, (*labels, MEAN), tuple(rows), reduction, lacking, evidence)


def _row(runs: list[RunResults], labels: tuple[str, ...], evidence: Evidence) -> Row:
    at = evidence.encoders.index(runs[0].record.encoder.name)
    return Row(
        runs[0].record.encoder,
        evidence.seeds[at],
        seed_scores(evidence, at),
        tuple((run.record.fold, run.record.seed) for run in runs),
        np.array([run_scores(run, labels, evidence.score) for run in runs]),
        tuple(ending(run) for run in runs),
        tuple(missed(run) for run in runs),
        tuple(run.curve for run in runs),
    )


def run_scores(run: RunResults, labels: Sequence[str], score: Score) -> npt.NDArray[np.float64]:
    """Return a score of one run, (column,): per label and their mean; NaN for labels that its test tiles lack."""
    counts = _counts(run.counts, labels)
    held = np.asarray((counts[..., 0] + counts[..., 2]).any(axis=0))
    per_label = score_of(parts_of(counts).sum(axis=0), score, held)
    return np.append(per_label, mean_of_defined(per_label, axis=0))


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


def deviation(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the standard deviation (n - 1) along the first axis; NaN with fewer than two values."""
    return np.asarray(np.std(values, axis=0, ddof=1)) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def _counts(table: pl.DataFrame, labels: Sequence[str]) -> npt.NDArray[np.int64]:
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
