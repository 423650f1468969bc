"""Pictures beside the results read as they were written; what is damaged is left out and never ends the reader."""

import numpy as np
import polars as pl
import pytest

from fmcache.scores.kept_pictures import (
    TILES,
    TOKENS,
    tile_pictures,
    token_pictures,
    write_tile_pictures,
    write_token_pictures,
)

JPEGS = {"b": b"\xff\xd8 one", "a": b"\xff\xd8 two", "ä|$": b""}


def grids():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (2, width, 3)).astype(np.uint8) for name, width in (("a", 3), ("b", 5))}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_pictures_read_as_they_were_written(tmp_path):
    write_tile_pictures(tmp_path, JPEGS)
    write_token_pictures(tmp_path, grids())
    assert tile_pictures(tmp_path) == JPEGS
    assert same(token_pictures(tmp_path), grids())
    assert sorted(path.name for path in tmp_path.iterdir()) == [TILES, TOKENS]


def test_without_a_file_there_are_no_pictures(tmp_path):
    assert tile_pictures(tmp_path) == token_pictures(tmp_path) == {}


def test_no_damage_is_shown_as_a_picture_or_ends_the_reader(tmp_path):
    write_token_pictures(tmp_path, grids())
    whole = (tmp_path / TOKENS).read_bytes()
    rng, left_out = np.random.default_rng(1), 0
    for at in [*range(0, len(whole), 61), *(len(whole) - back for back in (1, 5, 9))]:
        bad = bytearray(whole)
        bad[at] ^= 1 << int(rng.integers(8))
        (tmp_path / TOKENS).write_bytes(bad)
        found = token_pictures(tmp_path)
        assert all(any(np.array_equal(one, good) for good in grids().values()) for one in found.values()), at
        left_out += len(found) < 2
    assert left_out > 3
    for content in (b"", whole[: len(whole) // 2], b"PAR1" * 20):
        (tmp_path / TOKENS).write_bytes(content)
        assert token_pictures(tmp_path) == {}


@pytest.mark.parametrize("change", [
    pl.lit("0" * 64).alias("sha256"),
    pl.lit(7, pl.Int32).alias("rows"),
    pl.lit(-1, pl.Int32).alias("columns"),
    pl.lit(None, pl.Binary).alias("rgb"),
    pl.lit(1.5).alias("rows"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_left_out(tmp_path, change):
    write_token_pictures(tmp_path, grids())
    pl.read_parquet(tmp_path / TOKENS).with_columns(change).write_parquet(tmp_path / TOKENS)
    assert token_pictures(tmp_path) == {}
