import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcache.datasets.balance import balanced_split, deviations, nested_subsets, rotating_folds
from fmcache.errors import SpecError


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


def drawn(seed):
    """Tiles of four labels, one of them in 1 to 4 tiles, with patients of 1 to 4 tiles in every other draw."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([12, 32, 45]))
    pixels = (rng.dirichlet(np.full(4, 0.5), n) * 10**5).astype(np.int64)
    pixels[rng.permutation(n)[rng.integers(1, 5) :], 0] = 0
    owners = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 5, n))[:n])
    return [f"t{i:02d}" for i in range(n)], [f"p{g}" if seed % 2 else "" for g in owners], pixels


def merit(members, pixels):
    """Return labels lacking in test, in train, in val, then the largest deviation; the less the better."""
    present = pixels.sum(axis=0) > 0
    train, val, test = ((pixels[list(part)].sum(axis=0)[present] == 0).sum() for part in members)
    return test, train, val, np.abs(deviations(members, pixels)).max()


def best_of_random(groups, pixels, sizes, draws, seed):
    """Return the merit of the best of random choices of whole groups that fill each split in turn."""
    rng, best = np.random.default_rng(seed), None
    teams: dict = {}
    for i, group in enumerate(groups):
        teams.setdefault(group or i, []).append(i)
    teams = list(teams.values())
    for _ in range(draws):
        parts = ([], [], [])
        for at in rng.permutation(len(teams)):
            part = next((p for p, n in zip(parts, sizes, strict=True) if len(p) + len(teams[at]) <= n), [])
            part += teams[at]
        if [len(part) for part in parts] == list(sizes):
            found = merit(parts, pixels)
            best = found if best is None or found < best else best
    return best


@pytest.mark.parametrize("seed", range(8))
def test_no_split_is_worse_than_the_best_of_2000_random_ones(seed):
    ids, groups, pixels = drawn(seed)
    sizes = (6, 2, 4) if len(ids) == 12 else (15, 5, 10)
    split = balanced_split(ids, groups, pixels, sizes, seed)
    by_luck = best_of_random(groups, pixels, sizes, 2000, seed)
    assert by_luck is None or merit(split.members, pixels) <= by_luck
    assert split.off == merit(split.members, pixels)[3] <= 1


def test_one_rare_label_leaves_the_others_as_balanced_as_they_can_be():
    rng = np.random.default_rng(3)
    pixels = (rng.dirichlet(np.full(3, 2), 32) * 10**5).astype(np.int64)
    pixels[:, 2] = 0
    pixels[[7, 21], 2] = 900
    ids = [f"t{i:02d}" for i in range(32)]
    split = balanced_split(ids, [""] * 32, pixels, (15, 5, 10), 0)
    assert merit(split.members, pixels)[:3] == (0, 0, 1)  # two tiles: test has it, train has it, val cannot
    assert split.off < 0.015


def test_test_is_first_to_hold_a_label_of_one_patient():
    ids, groups, _ = toy(30)
    pixels = np.full((30, 2), 50)
    pixels[:, 1] = 0
    pixels[[8, 9], 1] = 5
    for seed in range(3):
        split = balanced_split(ids, groups, pixels, (14, 6, 10), seed)
        assert merit(split.members, pixels)[:3] == (0, 1, 1)


def test_a_rare_label_is_found_among_a_thousand_tiles():
    rng = np.random.default_rng(0)
    pixels = (rng.dirichlet(np.full(4, 1), 1000) * 10**5).astype(np.int64)
    pixels[:, 3] = 0
    pixels[[5, 500, 995], 3] = 9000
    split = balanced_split([f"t{i:03d}" for i in range(1000)], [""] * 1000, pixels, (15, 5, 10), 0)
    assert merit(split.members, pixels)[:3] == (0, 0, 0)


def test_every_fold_tests_a_label_that_has_enough_patients():
    ids, groups, pixels = toy(40)
    pixels[:, 2] = 0
    pixels[[0, 8, 16, 24, 32], 2] = 7
    folds = rotating_folds(ids, groups, pixels, 5, seed=0)
    assert all(merit(fold.members, pixels)[:3] == (0, 0, 0) for fold in folds)
    assert {len(fold.members[2]) for fold in folds} == {8}
    assert max(fold.off for fold in folds) == max(merit(fold.members, pixels)[3] for fold in folds)


def test_subsets_hold_a_rare_label_from_the_smallest_on():
    ids, _, pixels = toy(24)
    pixels[:, 2] = 0
    pixels[[3, 11], 2] = 7
    small, *_ = nested_subsets(ids, range(24), pixels, (4, 8, 16), seed=0)
    assert pixels[list(small), 2].sum() > 0


@settings(max_examples=25, deadline=None)
@given(
    teams=st.lists(st.integers(1, 4), min_size=3, max_size=14),
    part_of=st.lists(st.integers(0, 3), min_size=14, max_size=14),
    labels=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=56, max_size=56),
    shuffle=st.randoms(use_true_random=False),
)
def test_groups_stay_whole_sizes_are_exact_and_the_order_of_listing_changes_nothing(teams, part_of, labels, shuffle):
    part_of = [0, 1, 2, *part_of]
    sizes = [sum(n for n, part in zip(teams, part_of, strict=False) if part == i) for i in range(3)]
    groups = [f"g{i}" for i, n in enumerate(teams) for _ in range(n)]
    ids, pixels = [f"t{i:02d}" for i in range(len(groups))], np.array(labels[: len(groups)])
    split = balanced_split(ids, groups, pixels, sizes, 3)  # there is such a split: it is how the sizes came about
    assert [len(part) for part in split.members] == sizes
    owners = [{groups[i] for i in part} for part in split.members]
    assert sum(map(len, owners)) == len(set().union(*owners))
    order = list(range(len(ids)))
    shuffle.shuffle(order)
    again = balanced_split([ids[i] for i in order], [groups[i] for i in order], pixels[order], sizes, 3)
    assert [[order[i] for i in part] for part in again.members] == [list(part) for part in split.members]


@pytest.mark.parametrize(
    ("teams", "sizes"),
    [([2] * 8, (15, 5, 10)), ([6, 6, 5, 5, 5, 4, 1], (15, 5, 10)), ([40, 30, 30], (15, 5, 10)), ([3] * 20, (10, 5, 10)),
     ([1] * 22, (15, 5, 10)), ([2] * 200, (201, 67, 131))],
)  # fmt: skip
def test_the_way_out_that_a_refusal_names_works(teams, sizes):
    groups = [f"g{i}" for i, n in enumerate(teams) for _ in range(n)]
    ids, pixels = [f"t{i:03d}" for i in range(len(groups))], np.ones((len(groups), 2), int)
    with pytest.raises(SpecError, match=r"whole groups|needs \d+ tiles") as caught:
        balanced_split(ids, groups, pixels, sizes, 0)
    flag, _, other = caught.value.next_step.rpartition(" ")
    assert flag == "pass --split"
    other = [int(n) for n in other.split("/")]
    assert [len(part) for part in balanced_split(ids, groups, pixels, other, 0).members] == other


@pytest.mark.parametrize(
    ("teams", "expected"),
    [([1] * 22, (11, 4, 7)), ([1] * 3, (1, 1, 1)), ([1] * 31, (15, 5, 10)), ([10] * 4, (20, 10, 10)),
     ([5] * 6, (15, 5, 10)), ([2, 9, 4], (9, 2, 4))],
)  # fmt: skip
def test_without_sizes_the_usual_ones_are_scaled_to_what_there_is(teams, expected):
    groups = [f"g{i}" for i, n in enumerate(teams) for _ in range(n)]
    ids = [f"t{i:02d}" for i in range(len(groups))]
    split = balanced_split(ids, groups, np.ones((len(ids), 2), int), None, 0)
    assert tuple(len(part) for part in split.members) == expected


def test_fewer_than_three_tiles_or_groups_are_refused_in_plain_words():
    for sizes in (None, (15, 5, 10)):
        with pytest.raises(SpecError, match=r"needs 3 tiles or more(.|\n)*found: 2 tiles"):
            balanced_split(["a", "b"], ["", ""], np.ones((2, 2), int), sizes, 0)
        with pytest.raises(
            SpecError, match=r"split of whole patients or slides needs 3(.|\n)*found: 2 of them, with 4, 2 tiles"
        ):
            balanced_split(list("abcdef"), list("xxxxyy"), np.ones((6, 2), int), sizes, 0)
