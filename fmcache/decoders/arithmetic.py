"""How many operations and parameters a decoder needs, and how large its grids are. Integers only; no torch."""

from __future__ import annotations

from fmcache.cache.encoding import store_of
from fmcache.decoders.layers import Shape, every
from fmcache.decoders.registry import KINDS
from fmcache.grid import GridGeometry
from fmcache.manifest import Splits
from fmcache.specs import DecoderKind, Recipe


def multiply_adds(shape: Shape, kind: DecoderKind = "paper") -> int:
    """Return the multiply-adds of one image forward through the decoder's convolutions, in their direct form.

    For the paper's decoder these are d*D at h x h, then 9*D*D at the doubled size of every block, then D*C at the last
    size. The fast form of the same decoder needs fewer.

    References
    ----------
    Vitoria et al., A Benchmark of Foundation Model Encoders for Histopathological Image Segmentation, eqs. 4 and 5.
    """
    return sum(layer.multiply_adds for layer in every(KINDS[kind].layers(shape)))


def parameters(shape: Shape, kind: DecoderKind = "paper") -> int:
    """Return the number of parameters of a decoder."""
    return sum(layer.parameters for layer in every(KINDS[kind].layers(shape)))


def views_in_fit(recipe: Recipe, splits: Splits) -> int:
    """Return the number of views whose grids stage two holds: all except the unchanged views of training tiles."""
    return len(splits.train) * recipe.views.count + len(splits.val) + len(splits.test)


def grids_bytes(recipe: Recipe, splits: Splits, width: int, grid: GridGeometry) -> int:
    """Return the bytes of the grids (`width` channels, as stored) and masks that stage two holds at the same time."""
    a_view = width * grid.side**2 * store_of(recipe.store).itemsize + recipe.tile_px**2
    return views_in_fit(recipe, splits) * a_view
