import itertools

import numpy as np
import pytest

from fmcache.datasets.split_sizes import exact_deals, nearest_sizes, scaled, split_sizes
from fmcache.errors import SpecError


@pytest.mark.parametrize(
    ("total", "expected"),
    [(30, [15, 5, 10]), (22, [11, 4, 7]), (29, [14, 5, 10]), (6, [3, 1, 2]), (4, [2, 1, 1]), (3, [1, 1, 1])],
)
def test_sizes_are_scaled_by_largest_remainder_with_a_tile_for_each(total, expected):
    assert scaled((15, 5, 10), total) == expected
    assert scaled((10**6, 1, 1), total)[1:] == [1, 1]


def test_sizes_are_read_as_they_are_typed():
    assert split_sizes("15/5/10") == [15, 5, 10]
    assert split_sizes("") is None
    for text in ("15/5", "15/5/0", "15/5/x", "1/2/3/4", "-1/2/3", "²/1/1", "9" * 5000 + "/1/1"):
        with pytest.raises(SpecError, match="three numbers"):
            split_sizes(text)


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_sizes_are_those_that_a_look_at_every_deal_finds(seed):
    rng = np.random.default_rng(seed)
    tiles, wanted = rng.integers(1, 9, 6), rng.integers(1, 9, 3).tolist()
    deals = np.array(list(itertools.product(range(4), repeat=6)))
    sums = np.stack([(deals == part) @ tiles for part in range(3)], axis=1)
    least = np.abs(sums[(sums > 0).all(axis=1)] - wanted).sum(axis=1).min()
    nearest = nearest_sizes(tiles, wanted)
    assert np.abs(np.array(nearest) - wanted).sum() == least
    assert (sums == nearest).all(axis=1).any()
    assert nearest_sizes(tiles, nearest) == nearest


def test_sizes_that_only_one_choice_in_a_million_gives_are_found():
    # test and val take one group each, and of the others train leaves out the only one of 6 tiles
    tiles = np.array([100, 50, 6, *[10] * 12])
    for deal in exact_deals(tiles, (120, 50, 100), 3, np.random.default_rng(0)):
        assert [int(tiles[deal == part].sum()) for part in range(4)] == [120, 50, 100, 6]
    assert len(exact_deals(tiles, (120, 50, 100), 3, np.random.default_rng(0))) == 3
    assert len(exact_deals(tiles, (121, 50, 100), 3, np.random.default_rng(0))) == 0


def test_more_sums_than_can_be_looked_at_are_not_looked_at(monkeypatch):
    monkeypatch.setattr("fmcache.datasets.split_sizes.WORK", 10**4)
    tiles = np.random.default_rng(0).integers(50, 99, 60)
    assert nearest_sizes(tiles, (1000, 500, 900)) is None
