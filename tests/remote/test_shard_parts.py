"""Spans of chunks, their union, and partial shards: known answers, and what Zarr makes of them."""

import itertools
import struct

import google_crc32c as crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from fmcache.cache.shardfile import ABSENT
from fmcache.remote.shard_parts import Span, checked_crc, index_bytes, joined, shard_of, spans_of


def chunk(data):
    return data + crc32c.value(data).to_bytes(4, "little")


def test_a_shard_of_two_of_three_chunks_has_these_bytes():
    first, last = chunk(b"aaaa"), chunk(b"bbbbbb")
    index = struct.pack("<6Q", 0, 8, ABSENT, ABSENT, 8, 10)
    assert shard_of({2: last, 0: first}, 3) == first + last + chunk(index)
    assert index_bytes(3) == len(chunk(index))
    assert spans_of(shard_of({2: last, 0: first}, 3), 3) == {0: (0, 8), 2: (8, 18)}
    assert checked_crc(first) == crc32c.value(b"aaaa")


def test_a_damaged_or_short_index_is_refused():
    shard = bytearray(shard_of({0: chunk(b"aaaa")}, 2))
    with pytest.raises(ValueError, match="shorter"):
        spans_of(bytes(shard[-35:]), 2)
    shard[-10] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        spans_of(bytes(shard), 2)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=12))
def test_joined_spans_hold_the_same_bytes_in_as_few_parts_as_possible(parts):
    at, spans = 0, []
    for length, wanted in parts:
        spans += [Span(at, at + length)] if wanted else []
        at += length
    found = joined(reversed(spans))
    assert [i for one in found for i in range(*one)] == [i for one in spans for i in range(*one)]
    assert all(one.stop < other.first for one, other in itertools.pairwise(found))


def test_zarr_reads_the_chunks_of_a_partial_shard_and_fills_the_others(tmp_path):
    array = zarr.create_array(
        tmp_path / "a", shape=(1, 4, 3), chunks=(1, 1, 3), shards=(1, 4, 3), dtype="<f4", fill_value=np.nan
    )
    array[:] = values = np.arange(12, dtype="<f4").reshape(1, 4, 3)
    file = tmp_path / "a" / "c" / "0" / "0" / "0"
    whole, spans = file.read_bytes(), spans_of(file.read_bytes(), 4)
    file.write_bytes(shard_of({i: whole[spans[i].first : spans[i].stop] for i in (1, 3)}, 4))
    found = zarr.open_array(tmp_path / "a", mode="r")[:]
    assert (found[0, [1, 3]] == values[0, [1, 3]]).all()
    assert np.isnan(found[0, [0, 2]]).all()
    file.write_bytes(shard_of({i: whole[span.first : span.stop] for i, span in spans.items()}, 4))
    assert (zarr.open_array(tmp_path / "a", mode="r")[:] == values).all()
