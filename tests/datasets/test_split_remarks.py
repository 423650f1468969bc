import numpy as np

from fmcache.datasets.balance import BalancedSplit
from fmcache.datasets.split_remarks import labels_rarer_than_folds, lacking_labels, sizes_line, split_line

MEMBERS = ((0, 1, 2), (3,), (4, 5))


def pixels(*holders):
    found = np.ones((7, 2), int)
    found[[i for i in range(7) if i not in holders], 1] = 0
    return found


def lines(holders, groups=("",) * 7):
    return lacking_labels(MEMBERS, pixels(*holders), ["rest", "necrosis"], groups)


def test_what_a_split_lacks_is_reported_with_the_reason():
    assert lines((0, 3, 5)) == []
    assert lines((4, 5), groups="abcdeef") == [
        "label 'necrosis' is in 2 tiles of 1 group: test has it, train and val lack it; no split can avoid this: each "
        "of 3 splits needs a group (patient or slide) that has it"
    ]
    assert lines((0, 4)) == [
        "label 'necrosis' is in 2 tiles: train and test have it, val lacks it; no split can avoid this: each of 3 "
        "splits needs a tile that has it"
    ]
    (line,) = lines((0, 1, 6), groups="abcdefg")
    assert line.startswith("label 'necrosis' is in 3 tiles of 3 groups: train has it, val and test lack it; no split")
    assert lines((6,))[0].startswith("label 'necrosis' is in 1 tile: train, val and test lack it; no split can avoid")
    assert lines(()) == ["label 'necrosis' is in no tile"]


def test_a_label_that_not_every_fold_can_test_is_reported():
    groups, names = "aabcdef", ["rest", "necrosis"]
    assert labels_rarer_than_folds(pixels(0, 1, 2), names, groups, 3) == [
        "label 'necrosis' is in 3 tiles of 2 groups: at most 2 of 3 folds can test it"
    ]
    assert labels_rarer_than_folds(pixels(0, 1, 2), names, [""] * 7, 3) == []
    assert labels_rarer_than_folds(pixels(), names, groups, 3) == []


def test_sizes_are_reported_and_whether_they_were_scaled():
    assert sizes_line(MEMBERS, 6, None) == "split 3/1/2, 15/5/10 scaled"
    assert sizes_line(MEMBERS, 7, [3, 1, 2]) == "split 3/1/2 (1 in no split)"
    assert sizes_line(MEMBERS, 60, None) == "split 3/1/2, 15/5/10 scaled to whole groups (54 in no split)"
    usual = (range(15), range(5), range(10))
    assert sizes_line(usual, 30, None) == "split 15/5/10"
    assert split_line(BalancedSplit(MEMBERS, 0.252), 6, [3, 1, 2]).endswith(
        "differ from those of all tiles by at most 25.2 points"
    )
