"""The tables that say how sure a comparison is, column by column."""

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
"""One row an encoder and label, the label `mean` last.

score: `dice_` and the reduction. estimate: 0..1, null: undefined. low, high: 95 %, of this score alone; with a fixed
split, given its training tiles: what others would do is not in it. by_tiles, by_seeds: shares of the variance, sum 1
(by_tiles: by test units). rank_low, rank_high, may_be_best: among the encoders that are no controls, from all pairs of
this label at once; null for controls, for a lone encoder and where undefined. cannot: why there is no interval (``no
whole run``; ``absent``: no truth has the label; ``one seed``; ``too few units`` hold it; ``one fold`` holds it;
``nothing varied``), else null. units: test units whose truth holds the label; of the mean, the fewest of its labels;
below 10 the label's interval is a little optimistic (0.93 for 0.95). seeds: seeds that tested all tiles. lost: seeds
that never predicted a label that is there, or have a Dice below 0.05 for it. estimate_without: the estimate without
those seeds.
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
"""One row a pair of encoders (a before b by name, no controls) and label.

difference: a - b. low, high: 95 % for all pairs of the label at once. differs: told apart, with an error of 5 % for all
pairs at once (Holm); p: so adjusted. Holm is the sharper of the two: it can tell apart where low..high holds 0.
low_alone, high_alone: 95 % for this pair alone, for who asked of no other. could_see: the smallest difference that this
study would have found with probability 0.8, this pair alone. units_low, units_high: test units that would tell the two
apart, a range; null: no limit can be given. more_seeds: seeds alone hide the difference, so more tiles would not do.
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
"""One row an encoder and label: its difference to the control of the highest estimate, with the 95 % limits of that
pair alone. beats: low is above 0; null where there are no limits."""
