"""One rule says which labels a run missed: fit prints it, the report and the statistics count it."""

import numpy as np
import polars as pl

from fmcache.report.endings import Ending, ending
from fmcache.scores.dice import dice
from fmcache.scores.missed import dead, missed
from fmcache.scores.records import COUNTS_SCHEMA, CURVE_SCHEMA, EncoderInfo, RunRecord, RunResults
from fmcache.statistics.evidence import from_counts


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


def test_a_label_is_dead_below_5_percent_dice_if_the_truth_holds_it():
    counts = np.array([(0, 0, 10), (0, 9, 0), (0, 0, 0), (5, 95, 95), (49, 951, 951)])
    assert dead(counts).tolist() == [True, False, False, False, True]  # 10 / 200 is exactly 5 %
    assert dice(counts[3]) == 0.05


def test_the_statistics_count_a_seed_as_lost_exactly_when_its_run_missed_a_label():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (50, 3, 3)) * np.array([1, 20, 20])
    labels = tuple(f"l{i}" for i in range(3))
    (lost,) = from_counts({"e": counts[:, None]}, labels, ["t"]).lost
    found = [missed(run(*map(tuple, one.tolist()))) for one in counts]
    assert [tuple(np.array(labels)[one]) for one in lost] == found
    assert 0 < sum(map(bool, found)) < 50
