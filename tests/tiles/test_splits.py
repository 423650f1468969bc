import numpy as np
import pytest

from fmcache.errors import SpecError
from fmcache.tiles.splits import balanced_split, deviations, nested_subsets, rotating_folds


def toy(n=24, per_group=2, seed=0):
    rng = np.random.default_rng(seed)
    ids, groups = [f"t{i:02d}" for i in range(n)], [f"g{i // per_group}" for i in range(n)]
    return ids, groups, rng.integers(1, 100, (n, 3))


def named(ids, members):
    return [{ids[i] for i in part} for part in members]


def test_every_tile_is_tested_once_and_validated_once_and_groups_stay_whole():
    ids, groups, pixels = toy()
    folds = rotating_folds(ids, groups, pixels, 4, seed=0)
    for position in (1, 2):
        assert sorted(i for fold in folds for i in fold.members[position]) == list(range(24))
    for fold in folds:
        assert sorted(i for part in fold.members for i in part) == list(range(24))
        owners = [{groups[i] for i in part} for part in fold.members]
        assert not owners[0] & owners[1] | owners[1] & owners[2] | owners[0] & owners[2]
    assert [fold.members[1] for fold in folds] == [folds[(i + 1) % 4].members[2] for i in range(4)]


def test_choices_do_not_depend_on_the_order_of_tiles_and_do_on_the_seed():
    ids, groups, pixels = toy()
    order = np.random.default_rng(1).permutation(24)
    shuffled = [ids[i] for i in order], [groups[i] for i in order], pixels[order]

    def chosen(ids, groups, pixels, seed):
        folds = rotating_folds(ids, groups, pixels, 3, seed)
        split = balanced_split(ids, groups, pixels, (12, 6, 6), seed)
        inner = nested_subsets(ids, split.members[0], pixels, (3, 6), seed)
        return [named(ids, members) for members in (*(fold.members for fold in folds), split.members, inner)]

    assert chosen(ids, groups, pixels, 0) == chosen(*shuffled, 0)
    assert chosen(ids, groups, pixels, 0) != chosen(ids, groups, pixels, 1)


def test_folds_are_as_balanced_as_the_best_way_to_pair_tiles_allows():
    # three pairs that add up to the same shares exist; anything else is off
    ids, groups = list("abcdef"), [""] * 6
    pixels = np.array([[9, 1], [1, 9], [7, 3], [3, 7], [6, 4], [4, 6]])
    folds = rotating_folds(ids, groups, pixels, 3, seed=0)
    assert [fold.off for fold in folds] == pytest.approx([0, 0, 0])


def test_deviations_are_those_worked_out_by_hand():
    pixels = np.array([[10, 0], [0, 10], [5, 5]])
    assert deviations(((0,), (0, 1), (1, 2)), pixels) == pytest.approx(np.array([[0.5, -0.5], [0, 0], [-0.25, 0.25]]))


def test_subsets_are_nested_of_the_sizes_asked_for_and_balanced():
    ids = [f"t{i}" for i in range(12)]
    pixels = np.array([[10, 0]] * 6 + [[0, 10]] * 6)
    train = [0, 1, 2, 6, 7, 8]
    small, middle, whole = nested_subsets(ids, train, pixels, (4, 2, 6), seed=0)
    assert set(small) < set(middle) < set(whole) == set(train)
    assert [len(part) for part in (small, middle, whole)] == [2, 4, 6]
    assert deviations((small, middle), pixels) == pytest.approx(np.zeros((2, 2)))


@pytest.mark.parametrize("sizes", [(0, 2), (7,), (2, 2)])
def test_subsets_that_cannot_be_are_refused(sizes):
    with pytest.raises(SpecError, match="subsets"):
        nested_subsets([f"t{i}" for i in range(6)], range(6), np.ones((6, 2), int), sizes, seed=0)


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_need_three_parts_and_a_group_for_each(folds):
    ids, groups, pixels = toy(8)
    with pytest.raises(SpecError, match="3 to 4 folds"):
        rotating_folds(ids, groups, pixels, folds, seed=0)
