import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcache.decoders.batches import epoch_steps, steps_per_epoch
from fmcache.decoders.train import collapsed, learning_rate, mean_dice, still_falling
from fmcache.specs import FitSpec

TILES = tuple(f"t{i}" for i in range(15))


def walk(seed, n_views, spec, epochs, tiles=TILES):
    return [epoch_steps(tiles, n_views, spec, seed, epoch) for epoch in range(epochs)]


def test_fifteen_tiles_in_batches_of_eight_are_eight_and_seven():
    spec = FitSpec()
    assert [len(step) for step in epoch_steps(TILES, 50, spec, 0, 0)] == [8, 7]
    assert steps_per_epoch(15, spec) == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 3))
def test_each_lap_shows_every_view_of_every_tile_once(seed, n_views, passes):
    spec = FitSpec(passes_per_epoch=passes, batch=4)
    epochs = n_views  # n_views * passes uses of each tile: `passes` laps
    items = [tuple(item) for steps in walk(seed, n_views, spec, epochs) for step in steps for item in step.tolist()]
    wanted = list(itertools.product(range(len(TILES)), range(n_views))) * passes
    assert sorted(items) == sorted(wanted)


def test_seeds_walk_in_orders_of_their_own_and_a_seed_always_in_the_same():
    one, again, other = (np.concatenate(list(itertools.chain(*walk(s, 10, FitSpec(), 3)))) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_tile_sees_the_same_views_whatever_other_tiles_there_are():
    def views_of(tiles):
        at = tiles.index("t3")
        steps = itertools.chain(*walk(0, 10, FitSpec(), 10, tiles))
        return [view for step in steps for tile, view in step.tolist() if tile == at]

    assert views_of(TILES) == views_of(("t9", "t3"))


def test_the_learning_rate_falls_along_a_cosine_and_restarts_every_ten_epochs():
    spec = FitSpec(learning_rate=1.0)
    assert learning_rate(spec, 0) == learning_rate(spec, 10) == learning_rate(spec, 40) == 1.0
    assert learning_rate(spec, 5) == pytest.approx(0.5)
    assert learning_rate(spec, 7.5) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert learning_rate(spec, 9.999) < 1e-6


def test_a_label_never_predicted_is_called_collapsed_only_where_the_truth_holds_it():
    counts = np.array([[[10, 3, 0], [0, 0, 3], [0, 0, 0]]])
    assert collapsed(counts, ["a", "b", "c"]) == ("b",)
    assert mean_dice(counts, "pooled") == pytest.approx((20 / 23 + 0) / 2)


def test_still_falling_compares_equal_phases_of_the_restart_cycle():
    cycle = [3.0, 2.0, 1.0]
    assert not still_falling(cycle + cycle + cycle, 3)
    assert still_falling([*cycle, *cycle, 2.9, 1.9, 0.9], 3)
    assert still_falling([1.0], 10)
    assert not still_falling([1.0, 1.0], 10)


def test_noise_of_a_flat_loss_is_no_fall_and_a_fall_shows_through_noise():
    noise = np.random.default_rng(0).normal(size=(200, 40))
    flat = [still_falling(1 + 0.1 * losses, 20) for losses in noise]
    falling = [still_falling(1 - np.linspace(0, 0.4, 40) + 0.1 * losses, 20) for losses in noise]
    assert sum(flat) < 0.06 * 200 < 0.99 * 200 < sum(falling)


def test_a_smooth_fall_is_no_noise_however_uneven():
    assert still_falling(1 + 2 * np.exp(-np.arange(20) / 4), 10)
