"""A decoder that reads several taps of one forward pass: projected, summed, then the paper's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmcache.decoders.layers import Convolution, Layer, Shape
from fmcache.decoders.paper import Paper

if TYPE_CHECKING:
    from torch import Tensor

    from fmcache.decoders.decoder import Decoder


class MultiTap(Paper):
    """As `Paper`, but each tap has its own 1x1 convolution to D channels, and their results are summed.

    It has d1*D + D + ... + dn*D + D parameters before the blocks, for n taps of d1, ..., dn channels, D `width`.

    References
    ----------
    Ranftl et al. 2021, Vision Transformers for Dense Prediction, for decoders of several blocks of a transformer. One
    sum on the token grid instead of their pyramid is ours.
    """

    def projection(self, shape: Shape) -> tuple[Layer, ...]:
        """Return the layers ``project``, one for each tap."""
        return tuple(Convolution(channels, shape.width, 1, shape.grid.side) for channels in shape.channels)

    def logits(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """Return logits of the size that the last block reaches."""
        taps = tokens.split(decoder.shape.channels, dim=1)  # type: ignore[no-untyped-call]
        first, *others = (decoder.layer(f"project.{i}")(tap) for i, tap in enumerate(taps))
        return decoder.blocks_and_classify(sum(others, start=first))

    def words(self, shape: Shape) -> str:
        """Return the layers in words."""
        _, rest = super().words(shape).split("; ", 1)
        return f"for each of {len(shape.channels)} taps a 1 x 1 convolution to {shape.width} channels, summed; {rest}"
