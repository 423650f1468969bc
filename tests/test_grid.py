import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.errors import SpecError
from fmcache.grid import GridGeometry

policies = st.sampled_from(["fit", "pad", "crop"])
grids = st.builds(GridGeometry, st.integers(8, 2048), st.integers(1, 64), policies).filter(
    lambda grid: grid.policy != "crop" or grid.tile_px >= grid.patch
)


@pytest.mark.parametrize(
    ("tile_px", "patch", "policy", "side", "input_px", "logits_px", "covered_px", "blocks"),
    [
        (512, 14, "fit", 37, 518, 512, 512, 4),
        (512, 14, "pad", 37, 518, 518, 512, 4),
        (512, 14, "crop", 36, 504, 504, 504, 4),
        (512, 16, "fit", 32, 512, 512, 512, 4),
        (512, 16, "pad", 32, 512, 512, 512, 4),
        (512, 16, "crop", 32, 512, 512, 512, 4),
        (512, 8, "fit", 64, 512, 512, 512, 3),
        (21, 14, "fit", 2, 28, 21, 21, 4),  # the rest is half a patch: rounded up
        (20, 14, "fit", 1, 14, 20, 20, 5),  # the rest is less than half: rounded down
        (3, 14, "fit", 1, 14, 3, 3, 2),  # at least one patch
        (8, 14, "pad", 1, 14, 14, 8, 4),
    ],
)
def test_the_geometry_of_known_cases(tile_px, patch, policy, side, input_px, logits_px, covered_px, blocks):
    grid = GridGeometry(tile_px, patch, policy)
    assert (grid.side, grid.input_px) == (side, input_px)
    assert (grid.logits_px, grid.covered_px) == (logits_px, covered_px)
    assert grid.upsampling_blocks == blocks


def test_a_tile_smaller_than_a_patch_cannot_be_cropped():
    with pytest.raises(SpecError, match=r"13 px holds no whole patch of 14 px"):
        _ = GridGeometry(13, 14, "crop").side


@given(grids)
def test_the_input_is_a_whole_number_of_patches_close_to_the_tile(grid):
    assert grid.input_px == grid.side * grid.patch
    gap = grid.input_px - grid.tile_px
    if grid.policy == "pad":
        assert 0 <= gap < grid.patch
    elif grid.policy == "crop":
        assert -grid.patch < gap <= 0
    else:
        assert -grid.patch < 2 * gap <= grid.patch or grid.side == 1


@given(grids)
def test_no_pixel_outside_the_tile_or_the_logits_is_scored(grid):
    assert 0 < grid.covered_px <= min(grid.tile_px, grid.logits_px)
    assert (grid.covered_px == grid.tile_px) == (grid.policy != "crop" or grid.tile_px % grid.patch == 0)


@given(grids)
def test_upsampling_blocks_are_the_fewest_that_reach_the_logits(grid):
    reached = Fraction(grid.side) * 2**grid.upsampling_blocks
    assert reached >= grid.logits_px
    assert grid.upsampling_blocks == 0 or reached / 2 < grid.logits_px


@given(st.integers(1, 12), st.integers(1, 40))
def test_exact_powers_of_two_need_exactly_that_many_blocks(blocks, side):
    grid = GridGeometry(side * 2**blocks, 2**blocks)
    assert grid.upsampling_blocks == blocks == math.ceil(math.log2(2**blocks))


@given(st.integers(1, 64), st.integers(1, 64))
def test_policies_agree_where_the_patch_divides_the_tile(side, patch):
    facts = {
        (grid.side, grid.input_px, grid.logits_px, grid.covered_px, grid.upsampling_blocks)
        for grid in (GridGeometry(side * patch, patch, policy) for policy in ("fit", "pad", "crop"))
    }
    assert len(facts) == 1
