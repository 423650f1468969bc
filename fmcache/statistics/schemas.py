"""The columns of the tables that describe how certain a comparison is."""

from __future__ import annotations

import polars as pl

MEAN = "mean"
INTERVALS = {
    "encoder": pl.String,
    "label": pl.String,
    "score": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "by_tiles": pl.Float64,
    "by_seeds": pl.Float64,
    "rank_low": pl.Int64,
    "rank_high": pl.Int64,
    "may_be_best": pl.Boolean,
    "cannot": pl.String,
    "units": pl.Int64,
    "seeds": pl.Int64,
    "lost": pl.Int64,
    "estimate_without": pl.Float64,
}
"""One row per score, encoder and label, with the label `mean` last.

score: ``dice_pooled``, ``dice_per_tile``, ``dice_puma``, or ``iou``, ``precision``, ``recall`` of pooled counts (a
label of the truth that is never predicted has precision 0). estimate: 0..1, null: undefined. low, high: 95 % limits of
this score alone; with a fixed split they apply to its training tiles only: variation from other training tiles is not
included. by_tiles, by_seeds: shares of the variance, with sum 1 (by_tiles: by test units). rank_low, rank_high,
may_be_best: among the encoders that are not controls, from all pairs of this label and score jointly; null for
controls, for a single encoder and where undefined. cannot: why there is no interval (``no whole run``; ``absent``: no
truth has the label; ``one seed``; ``too few units`` hold it; ``one fold`` holds it; ``nothing varied``), else null.
units: number of test units whose truth has the label; for the mean, the smallest number among its labels; below 10
units, the interval of the label is slightly too narrow (coverage 0.93 instead of 0.95). seeds: number of seeds that
tested all tiles. lost: number of seeds that never predicted a label that is in the truth, or have a Dice below 0.05 for
it; labels that no training tile has do not count. estimate_without: the estimate without the lost seeds.
"""
PAIRS = {
    "a": pl.String,
    "b": pl.String,
    "label": pl.String,
    "score": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "differs": pl.Boolean,
    "p": pl.Float64,
    "low_alone": pl.Float64,
    "high_alone": pl.Float64,
    "could_see": pl.Float64,
    "units_low": pl.Int64,
    "units_high": pl.Int64,
    "more_seeds": pl.Boolean,
}
"""One row per score, pair of encoders (a before b by name, no controls) and label.

difference: a - b. low, high: 95 % limits for all pairs of the label and score jointly; looking at several scores or
labels is not corrected for. differs: whether the two differ, with an error of 5 % for the same pairs jointly (Holm); p:
adjusted in the same way. Holm's method has more power than the limits: `differs` can be true where low..high contains
0. low_alone, high_alone: 95 % limits for this pair alone, for a reader who compares no other pair. could_see: the
smallest difference that this study would have found with probability 0.8, for this pair alone. units_low, units_high:
range of the number of test units needed to find the difference; null: no limit can be given. more_seeds: the variance
by seeds alone hides the difference, so more tiles would not help.
"""
AGAINST_CONTROL = {
    "encoder": pl.String,
    "control": pl.String,
    "label": pl.String,
    "score": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "beats": pl.Boolean,
}
"""One row per score, encoder and label: its difference to the control with the highest estimate, with the 95 % limits
of that pair alone. beats: low is above 0; null where there are no limits."""
