import itertools

import numpy as np
import pytest

from fmcache.datasets.cut_choice import choose_even, deal_groups, largest_sizes
from fmcache.errors import SpecError


def test_rare_labels_are_sought_out_and_the_choice_is_nested():
    pixels = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 2)
    one_slide = np.zeros(10, int)
    chosen = choose_even(pixels, one_slide, 4)
    assert pixels[chosen].sum(axis=0).tolist() == [2, 2]
    assert choose_even(pixels, one_slide, 3) == chosen[:3]
    assert len(choose_even(pixels, one_slide, 99)) == 10


def test_each_step_takes_the_tile_that_a_slow_search_finds():
    rng = np.random.default_rng(0)
    pixels = rng.random((12, 3)) ** 3
    chosen = choose_even(pixels, np.zeros(12, int), 6)
    for step in range(6):
        before, rest = chosen[:step], [i for i in range(12) if i not in chosen[:step]]

        def spread(i, before=before):
            total = pixels[[*before, i]].sum(axis=0)
            return ((total / total.sum() - 1 / 3) ** 2).sum()

        assert chosen[step] == min(rest, key=spread)


def test_slides_take_turns_until_one_is_used_up():
    slides = np.array([0] * 6 + [1] * 2)
    chosen = choose_even(np.ones((8, 1)), slides, 6)
    assert np.bincount(slides[chosen]).tolist() == [4, 2]
    assert np.bincount(slides[chosen[:4]]).tolist() == [2, 2]


def test_groups_are_dealt_whole_so_that_every_split_can_hold_every_label():
    # slides 0 and 1 have tumour only, 2 and 3 stroma only, 4 and 5 both: train needs more tiles than one slide has
    labels = {0: (1, 0), 1: (1, 0), 2: (0, 1), 3: (0, 1), 4: (1, 1), 5: (1, 1)}
    groups = np.repeat(np.arange(6), 5)
    pixels = np.array([labels[g] for g in groups.tolist()], float)
    parts = deal_groups(pixels, groups, (10, 3, 4), 0)
    assert sorted(itertools.chain(*parts)) == list(range(6))
    assert all(pixels[np.isin(groups, part)].sum(axis=0).min() > 0 for part in parts)
    assert parts == deal_groups(pixels, groups, (10, 3, 4), 0)


def test_more_groups_than_can_all_be_tried_are_dealt_alike_every_time():
    groups = np.repeat(np.arange(30), 3)
    pixels = np.ones((90, 2))
    parts = deal_groups(pixels, groups, (30, 10, 20), 1)
    assert [len(part) for part in parts] == [15, 5, 10]
    assert parts == deal_groups(pixels, groups, (30, 10, 20), 1)


def test_impossible_deals_say_why():
    with pytest.raises(SpecError, match="--group-by tile"):
        deal_groups(np.ones((40, 1)), np.repeat([0, 1], 20), (15, 5, 10), 0)
    with pytest.raises(SpecError, match="2, 2, 30"):
        deal_groups(np.ones((34, 1)), np.repeat([0, 1, 2], [2, 2, 30]), (15, 5, 10), 0)


def test_a_label_of_one_slide_is_tested_and_the_others_are_dealt_as_if_it_were_not_there():
    # slide 0 alone has necrosis; tumour is in slides 1 and 2, and in 3
    labels = {0: (1, 0, 9), 1: (1, 5, 0), 2: (1, 5, 0), 3: (1, 5, 0), 4: (9, 0, 0), 5: (9, 0, 0)}
    groups = np.repeat(np.arange(6), 5)
    pixels = np.array([labels[g] for g in groups.tolist()], float)
    train, val, test = deal_groups(pixels, groups, (10, 3, 4), 0)
    assert 0 in test
    assert all({1, 2, 3} & set(part) for part in (train, val, test))


def test_two_slides_with_a_label_go_to_test_and_train():
    groups = np.repeat(np.arange(12), 5)
    pixels = np.ones((60, 2))
    pixels[:, 1] = np.isin(groups, (3, 9))
    train, _, test = deal_groups(pixels, groups, (20, 10, 15), 0)
    assert sorted([*{3, 9} & set(train), *{3, 9} & set(test)]) == [3, 9]


@pytest.mark.parametrize("tiles", [(2, 2, 30), (4, 5, 6), (1, 1, 1), tuple(range(1, 13))])
def test_the_way_out_that_a_refusal_names_works(tiles):
    groups = np.repeat(np.arange(len(tiles)), tiles)
    pixels = np.ones((len(groups), 1))
    with pytest.raises(SpecError, match="no choice") as caught:
        deal_groups(pixels, groups, (45, 15, 30), 0)
    other = [int(n) for n in caught.value.next_step.removeprefix("pass --split ").split(",")[0].split("/")]
    assert other == largest_sizes(groups, (45, 15, 30), 0)
    parts = deal_groups(pixels, groups, other, 0)
    assert all(np.isin(groups, part).sum() >= n for part, n in zip(parts, other, strict=True))
