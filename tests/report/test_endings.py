import json
import math

import numpy as np
import pytest

from fmcache.report.endings import Ending, ending, trained_to
from fmcache.report.findings import find
from fmcache.report.frames import csv_text
from fmcache.report.notes import marks, notes

RISING, LEARNT, ENDED, UNKNOWN = Ending.RISING, Ending.LEARNT, Ending.ENDED, Ending.UNKNOWN


@pytest.mark.parametrize(
    ("validations", "how"),
    [
        ((0.3, 0.4, 0.5, 0.6, 0.7), RISING),
        ((0.30, 0.50, 0.60, 0.65, 0.67), RISING),
        ((0.60, 0.66, 0.64, 0.70, 0.69), RISING),  # noisy, and rising all the same
        ((0.4, 0.6, 0.7, 0.7, 0.7), LEARNT),  # rose early, flat since
        ((0.70, 0.72, 0.69, 0.71, 0.72), LEARNT),  # noisy and flat, though the last is the best
        ((0.5, 0.7, 0.72, 0.68, 0.6), LEARNT),  # falling
        ((0.5, 0.5, 0.5, 0.5, 0.5), LEARNT),
        ((0.5, 0.6, 0.6 + 0.011), RISING),
        ((0.5, 0.6, 0.6 + 0.009), LEARNT),
        ((0.5, 0.7, 0.7, 0.7), LEARNT),
        ((0.3, 0.6), UNKNOWN),
        ((0.3,), UNKNOWN),
        ((), UNKNOWN),
        ((0.0, 0.0, 0.0, 0.0, 0.0), UNKNOWN),  # no label in the validation tiles, or nothing learnt
    ],
)
def test_of_a_falling_loss_the_validations_tell_whether_more_training_helps(validations, how):
    assert trained_to(True, 50, validations) is how


def test_many_noisy_validations_are_judged_by_their_course():
    noise = 0.02 * np.random.default_rng(0).normal(size=50)
    course = np.arange(50) / 50
    assert trained_to(True, 50, (0.3 + 0.4 * course + noise).tolist()) is RISING
    assert trained_to(True, 50, (0.6 + noise).tolist()) is LEARNT
    assert trained_to(True, 50, (0.7 - 0.2 * course + noise).tolist()) is LEARNT


def test_a_flat_loss_is_the_end_whatever_validation_does():
    assert trained_to(False, 50, (0.3, 0.4, 0.5, 0.6, 0.7)) is ENDED
    assert trained_to(False, 50, ()) is ENDED


def test_few_epochs_give_no_verdict():
    assert trained_to(True, 3, (0.3, 0.4, 0.5)) is UNKNOWN
    assert trained_to(False, 3, (0.3, 0.4, 0.5)) is UNKNOWN
    assert trained_to(True, 4, (0.3, 0.4, 0.5)) is RISING


@pytest.mark.parametrize(
    ("counts", "fields", "how"),
    [
        ((0, 0, 100), {}, Ending.COLLAPSED),
        ((2, 0, 98), {}, Ending.COLLAPSED),  # Dice 4 %
        ((3, 0, 97), {}, UNKNOWN),  # Dice 6 %: something was learnt
        ((0, 50, 0), {}, UNKNOWN),  # not in the test tiles
        ((0, 0, 100), {"label_pixels": {"train": (9, 0)}}, UNKNOWN),  # not in the training tiles either
        ((0, 0, 100), {"label_pixels": {"train": (9, 0)}, "collapsed": ("b",)}, UNKNOWN),
        ((0, 0, 100), {"label_pixels": {"train": (9, 9)}}, Ending.COLLAPSED),
        ((50, 0, 50), {"collapsed": ("b",)}, Ending.COLLAPSED),  # an old result knows
    ],
)
def test_a_run_that_misses_a_label_it_could_have_learnt_has_collapsed(part, counts, fields, how):
    assert ending(part("x", 0, (8, 2, 2), counts, **fields)) is how


def test_collapse_comes_before_what_the_curves_tell(part):
    rising = {"curve": (0.1, 0.2, 0.3, 0.4), "still_falling": True}
    assert ending(part("x", 0, (8, 2, 2), (8, 2, 2), **rising)) is RISING
    assert ending(part("x", 0, (8, 2, 2), (0, 0, 9), **rising)) is Ending.COLLAPSED


@pytest.fixture(scope="session")
def every_ending(part):
    good, sparse = ((8, 2, 2), (6, 4, 4)), (None, 0.3, None, 0.4, None, 0.5)
    return find(
        [
            part("x", 0, (8, 2, 2), (0, 0, 9), title="X"),
            part("x", 1, *good, title="X", curve=sparse, still_falling=True),
            part("x", 2, *good, title="X", curve=(0.5, 0.5, 0.5, 0.5), still_falling=True),
            part("x", 3, *good, title="X", curve=(0.5, 0.5, 0.5, 0.5)),
            part("x", 4, *good, title="X", curve=(0.5,), still_falling=True),
            part("y", 0, *good, title="Y", curve=sparse, still_falling=True),
        ]
    )


def test_each_way_to_end_has_a_line_with_its_runs_and_what_to_do(every_ending):
    lines = notes(every_ending)
    for begins, runs, advice in [
        ("† collapsed", "X: 1 of 5 seeds (0), on b (1 of 5)", "standardise: channel"),
        ("‡ loss still falling and validation Dice still rising", "Y: 1 of 1 seeds; X: 1 of 5 seeds (1)", "will help"),
        ("§ loss still falling, but validation Dice flat", "X: 1 of 5 seeds (2)", "unlikely to help"),
        ("Loss flat: training has ended", "X: 1 of 5 seeds (3)", "will not help"),
        ("Unknown whether more training helps", "X: 1 of 5 seeds (4)", "lower validate_epochs"),
    ]:
        (line,) = (line for line in lines if line.startswith(begins))
        assert runs in line
        assert advice in line
    assert sum("overfitting" in line for line in lines) == 1


def test_each_run_is_in_one_class_and_the_table_carries_the_marks(every_ending):
    x, y = sorted(every_ending.summary.rows, key=lambda row: row.encoder.name)
    assert sum(len(x.ended(how)) for how in Ending) == 5
    assert (marks(x), marks(y)) == ("†‡§", "‡")
    head, line, *_ = (
        text.split(",") for text in csv_text(every_ending).splitlines() if ",x," in text or "dice" in text
    )
    counted = dict(zip(head, line, strict=True))
    kinds = ("collapsed", "still_falling", "validation_rising", "training_ended", "ending_unknown")
    assert [counted[f"{kind}_seeds"] for kind in kinds] == ["1", "2", "1", "1", "1"]


def test_endings_of_runs_on_folds_name_fold_and_seed(in_folds):
    found = find([*in_folds(1, 60, seeds=1), *in_folds(60, 60, seeds=1, encoder="y")])
    assert any("X 50%_: 1 of 2 runs (fold 0 seed 0), on a (1 of 2), b (1 of 2)." in line for line in notes(found))


def test_an_old_result_without_pixels_of_labels_is_reported_too(part, write, tmp_path):
    from fmcache.scores.run_files import read_run, run_folder

    write(tmp_path, [part("x", 0, (8, 2, 2), (0, 0, 9))])
    file = run_folder(tmp_path, "toy", "d", "x", 0) / "run.json"
    said = json.loads(file.read_text())
    for later in ("label_pixels", "files", "sha256"):
        del said[later]
    file.write_text(json.dumps(said | {"format": 1}))
    old = read_run(file.parent)
    assert old.record.label_pixels == {}
    assert ending(old) is Ending.COLLAPSED
    assert not any("training tiles: no decoder" in line for line in notes(find([old])))
    assert not math.isnan(find([old]).summary.rows[0].mean[-1])
