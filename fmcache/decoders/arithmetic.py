"""How much arithmetic the decoder is, in its direct form, and how large its grids are. Integers only; no torch."""

from __future__ import annotations

from fmcache.cache.encoding import store_of
from fmcache.grid import GridGeometry
from fmcache.manifest import Splits
from fmcache.specs import Recipe


def multiply_adds(grid: GridGeometry, channels: int, width: int, labels: int) -> int:
    """Return the multiply-adds of one image forward through the decoder's convolutions.

    d*D at h x h, then 9*D*D at every block's doubled size, then D*C at the last. A faster form of the same decoder does
    less.

    References
    ----------
    Vitoria et al., A Benchmark of Foundation Model Encoders for Histopathological Image Segmentation, eqs. 4 and 5.
    """
    pixels = [grid.side**2 * 4**k for k in range(grid.upsampling_blocks + 1)]
    total: int = channels * width * pixels[0] + 9 * width**2 * sum(pixels[1:]) + width * labels * pixels[-1]
    return total


def views_in_fit(recipe: Recipe, splits: Splits) -> int:
    """Return the number of views of which stage two holds grids: all but the untouched ones of training tiles."""
    return len(splits.train) * recipe.views.count + len(splits.val) + len(splits.test)


def grids_bytes(recipe: Recipe, splits: Splits, width: int, grid: GridGeometry) -> int:
    """Return the bytes of the grids (`width` channels, as stored) and masks that stage two holds at once."""
    a_view = width * grid.side**2 * store_of(recipe.store).itemsize + recipe.tile_px**2
    return views_in_fit(recipe, splits) * a_view
