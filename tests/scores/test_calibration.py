"""Calibration: counts by hand, sums that do not depend on the order, files, and runs without them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fmcache.decoders.train import confidence
from fmcache.errors import ResultsCorrupt
from fmcache.scores.calibration import (
    BINS,
    MILLION,
    calibration_counts,
    calibration_error,
    read_calibration,
    write_calibration,
)
from fmcache.scores.records import RunResults
from fmcache.scores.run_files import CALIBRATION, find_runs, read_run, whole_folder, write_run

GOLDEN = Path(__file__).parent / "golden"


def counted(confidences, right, truth=None):
    sure = np.array([confidences], np.float32)
    prediction = np.where(np.array([right]), 1, 0).astype(np.uint8)
    return calibration_counts(sure, prediction, np.array([truth or [1] * len(right)], np.uint8))


def test_pixels_are_counted_in_bins_that_hold_their_upper_limit():
    found = counted([0.5, 1 / 3, 0.334, 1.0, 0.99, 0.2], [1, 1, 0, 1, 0, 1])
    by_bin = {at: row.tolist() for at, row in enumerate(found) if row[0]}
    assert by_bin == {
        2: [1, 200_000, 1],  # (2/15, 3/15]: 0.2 is the limit
        4: [1, 333_333, 1],
        5: [1, 334_000, 0],
        7: [1, 500_000, 1],
        14: [2, 1_990_000, 1],
    }


def test_the_error_is_the_mean_gap_between_confidence_and_accuracy_as_worked_out_by_hand():
    # bin 8, (8/15, 9/15]: three pixels of 0.6, one right: |1 - 1.8|; bin 14: two pixels of 1.0, one right: |1 - 2|
    found = counted([0.6, 0.6, 0.6, 1.0, 1.0], [1, 0, 0, 1, 0])
    assert calibration_error(found) == pytest.approx((0.8 + 1.0) / 5)
    assert calibration_error(counted([1.0, 1.0], [1, 1])) == 0
    assert calibration_error(counted([0.75] * 4, [1, 1, 1, 0])) == 0
    assert np.isnan(calibration_error(np.zeros((BINS, 3), np.int64)))


def test_ignored_pixels_do_not_count_and_a_confidence_that_is_no_number_counts_as_0():
    found = counted([0.9, 0.9, np.nan], [1, 1, 0], [1, 255, 1])
    assert found.sum(axis=0).tolist() == [2, 900_000, 1]
    assert found[0].tolist() == [1, 0, 0]


def test_counts_add_up_exactly_over_parts_of_a_tile():
    rng = np.random.default_rng(0)
    sure = rng.uniform(1 / 3, 1, (64, 64)).astype(np.float32)
    prediction, truth = rng.integers(0, 3, (2, 64, 64)).astype(np.uint8)
    whole = calibration_counts(sure, prediction, truth)
    parts = [calibration_counts(sure[at::7], prediction[at::7], truth[at::7]) for at in (6, 2, 0, 1, 5, 3, 4)]
    assert np.array_equal(sum(parts), whole)
    # a slow reference: pixel by pixel
    slow = np.zeros((BINS, 3), np.int64)
    for value, right in zip(sure.ravel().tolist(), (prediction == truth).ravel(), strict=True):
        micro = round(value * MILLION)
        slow[next(i for i in range(BINS) if micro * BINS <= (i + 1) * MILLION)] += (1, micro, right)
    assert np.array_equal(slow, whole)


def test_confidence_is_the_largest_softmax_probability():
    logits = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 30
    torch.testing.assert_close(confidence(logits), logits.softmax(dim=1).amax(dim=1))
    assert confidence(logits + 1e4).max() <= 1


def test_a_run_of_an_earlier_fmcache_has_no_calibration_and_one_that_wrote_it_reads_it(tmp_path):
    (golden,) = find_runs(GOLDEN / "results-v2", "s")
    assert read_calibration(golden) is None
    old, place = read_run(golden), tmp_path / "s" / "d" / "toy" / "seed-000"
    counts = np.stack([counted([0.6, 1.0], [1, 0]), np.zeros((BINS, 3), np.int64), counted([0.2], [1])])
    with whole_folder(place) as unfinished:
        shutil.copy(golden / "decoder.safetensors", unfinished)
        write_calibration(unfinished, ["t1", "t2", "t3"], counts)
        write_run(unfinished, RunResults(old.record, old.counts, old.curve))
    rows = [("t1", 8, 1, 600_000, 1), ("t1", 14, 1, MILLION, 0), ("t3", 2, 1, 200_000, 1)]
    assert read_calibration(place).rows() == rows
    whole = (place / CALIBRATION).read_bytes()
    (place / CALIBRATION).write_bytes(whole[:-1])
    with pytest.raises(ResultsCorrupt, match=r"calibration\.parquet was changed"):
        read_run(place)
