import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmcache.cache.layout import Layout, Shard, missing_shards, plan_layout, raw_bytes

demands = st.lists(st.integers(0, 20), min_size=1, max_size=8)


@given(demands, st.integers(1, 7))
def test_every_tile_and_view_asked_for_is_written_exactly_once(demand, block):
    written = [(s.tile, v) for s in missing_shards(demand, [], {}, block) for v in range(s.first, s.stop)]
    assert sorted(written) == [(tile, view) for tile, n in enumerate(demand) for view in range(n)]


@given(demands, st.integers(1, 7), st.randoms(use_true_random=False))
def test_what_was_filled_is_not_written_again(demand, block, random):
    shards = missing_shards(demand, [], {}, block)
    done = [s for s in shards if random.random() < 0.5]
    left = missing_shards(demand, [], {(s.tile, s.block): s.weight for s in done}, block)
    assert sorted([*left, *done]) == sorted(shards)


@given(demands, st.integers(1, 7), st.data())
def test_an_extended_cache_gets_all_new_views_and_rewrites_only_shards_that_grow(demand, block, data):
    stored = [data.draw(st.integers(0, n)) for n in demand]
    shards = missing_shards(demand, stored, {}, block)
    written = {(s.tile, v) for s in shards for v in range(s.first, s.stop)}
    for tile, n in enumerate(demand):
        assert all((tile, view) in written for view in range(stored[tile], n))
    for shard in shards:
        assert stored[shard.tile] < shard.stop


def test_a_sealed_cache_that_holds_more_than_asked_needs_nothing():
    assert missing_shards([1, 5], [6, 6], {}, block=4) == []


def test_a_shard_holds_as_many_views_as_fit_its_bytes_and_at_least_one():
    small = plan_layout(3, 51, (384, 32, 32), "float16", shard_bytes=10 * 384 * 32 * 32 * 2)
    assert (small.view_bytes, small.block) == (384 * 32 * 32 * 2, 10)
    assert plan_layout(3, 51, (384, 32, 32), "float16", shard_bytes=1).block == 1
    assert plan_layout(3, 5, (4, 2, 2), "float32").block == 5


def test_raw_bytes_count_every_view_before_compression():
    layout = Layout(2, 3, (4, 2, 2), "float32", 2)
    assert (
        raw_bytes([Shard(0, 0, 0, 2), Shard(1, 1, 2, 3)], layout.view_bytes) == 3 * 4 * 2 * 2 * np.dtype("f4").itemsize
    )
