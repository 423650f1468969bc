import numpy as np
import pytest

from fmcache.datasets.duplicates import ALIKE, look_hashes, pairs_alike
from fmcache.manifest import TileEntry
from fmcache.tiles.demo import draw_tile


@pytest.fixture(scope="module")
def tiles():
    return [draw_tile(3, TileEntry(f"t{i}", f"g{i}"), 256)[0] for i in range(5)]


WAYS = {
    "itself": lambda x: x,
    "half as large": lambda x: x.reshape(128, 2, 128, 2, 3).mean((1, 3)).astype("uint8"),
    "turned": lambda x: np.rot90(x, 3),
    "mirrored and turned": lambda x: np.rot90(x[:, ::-1]),
    "another stain": lambda x: (x * np.array([0.9, 0.8, 1.0])).astype("uint8"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_looks_alike_and_other_tiles_do_not(tiles, way):
    copy = np.ascontiguousarray(WAYS[way](tiles[2]))
    pairs = list(pairs_alike(np.stack([look_hashes(tile) for tile in [*tiles, copy]])))
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 5)]
    assert pairs[0].bits <= ALIKE


def test_pairs_are_those_a_slow_comparison_finds_also_beyond_one_block():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (300, 8), dtype=np.uint64)
    hashes[290, 5] = hashes[3, 0] ^ np.uint64(0b1011)
    hashes[200, 7] = hashes[140, 0]
    slow = [
        (i, j, bits)
        for i in range(300)
        for j in range(i + 1, 300)
        if (bits := min(bin(int(hashes[i, 0] ^ other)).count("1") for other in hashes[j])) <= 12
    ]
    assert {(3, 290, 3), (140, 200, 0)} <= set(slow)
    assert list(pairs_alike(hashes, 12)) == slow
