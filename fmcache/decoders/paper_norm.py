"""The paper's decoder with group normalisation in each upsampling block."""

from __future__ import annotations

from fmcache.decoders.layers import Shape
from fmcache.decoders.paper import Paper


class PaperNorm(Paper):
    """As `Paper`, with group normalisation after each 3x3 convolution, before ReLU.

    It has 2*s*D more parameters than the paper's decoder, for D `width` and s blocks. On a CPU the convolutions run in
    the fast form. But a normalisation needs the sums over the whole image before its first pixel, so the result of the
    last block exists as a whole, which the fast form of the paper's decoder avoids.

    References
    ----------
    Wu & He 2018, Group Normalization.
    """

    normalised = True

    def words(self, shape: Shape) -> str:
        """Return the layers in words."""
        return super().words(shape).replace("convolution and ReLU", "convolution, group normalisation and ReLU")
