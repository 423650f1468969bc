"""One rule says which labels a run missed: fit prints it, the report counts it."""

import numpy as np
import polars as pl

from fmcache.report.endings import Ending, ending
from fmcache.scores.missed import missed
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, EncoderInfo, RunRecord, RunResults


def run(*tested, collapsed=()):
    labels = tuple((f"l{i}", "#000000") for i in range(len(tested)))
    record = RunRecord(
        study="s", dataset="d", dataset_title="d", encoder=EncoderInfo("e", "E", 1, 8, 8, False, False, "w"), seed=0,
        fold=None, identity={}, recipe={}, labels=labels, mpp=None, tiles={}, label_pixels={}, decoder_params=1,
        best_epoch=1, val_dice=0.0, collapsed=collapsed, still_falling=False, device="cpu", threads=1, versions={},
        wall_s=0.0,
    )  # fmt: skip
    rows = [("test", "t", label, *counts) for (label, _), counts in zip(labels, tested, strict=True)]
    counts = pl.DataFrame(rows, schema=COUNTS_SCHEMA, orient="row")
    return RunResults(record, counts, pl.DataFrame(schema=CURVE_SCHEMA))


def test_labels_never_or_hardly_ever_predicted_are_missed_and_the_run_has_collapsed():
    part = run((90, 5, 5), (1, 0, 99), (0, 0, 10), (0, 9, 0))
    assert missed(part) == ("l1", "l2")
    assert ending(part) is Ending.COLLAPSED
    assert missed(run((90, 5, 5))) == ()
    assert np.isclose(2 * 1 / (2 * 1 + 99), 0.02, atol=1e-3)
