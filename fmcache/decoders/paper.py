"""The decoder of the paper: 1x1 convolution, upsampling blocks, 1x1 convolution to labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmcache.decoders.layers import Convolution, Kind, Layer, Layers, Shape, UpsamplingBlock

if TYPE_CHECKING:
    from torch import Tensor

    from fmcache.decoders.decoder import Decoder


class Paper(Kind):
    """1x1 convolution to D channels, s upsampling blocks, 1x1 convolution to logits.

    It has d*D + D + s*(9*D*D + D) + D*C + C parameters for d channels, D `width`, C labels and s blocks.

    References
    ----------
    Vitoria et al., A Benchmark of Foundation Model Encoders for Histopathological Image Segmentation, eqs. 4 and 5.
    """

    normalised = False
    """Whether blocks normalise what their convolution returns."""

    def layers(self, shape: Shape) -> Layers:
        """Return the layers ``project``, ``blocks`` and ``classify``."""
        width, grid = shape.width, shape.grid
        sides = [grid.side * 2**k for k in range(grid.upsampling_blocks + 1)]
        return {
            "project": self.projection(shape),
            "blocks": tuple(UpsamplingBlock(width, side, self.normalised) for side in sides[1:]),
            "classify": Convolution(width, shape.labels, 1, sides[-1]),
        }

    def projection(self, shape: Shape) -> Layer | tuple[Layer, ...]:
        """Return the layer ``project``."""
        (channels,) = shape.channels
        return Convolution(channels, shape.width, 1, shape.grid.side)

    def logits(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """Return logits of the size that the last block reaches."""
        return decoder.blocks_and_classify(decoder.layer("project")(tokens))

    def words(self, shape: Shape) -> str:
        """Return the layers in words."""
        return (
            f"a 1 x 1 convolution to {shape.width} channels; blocks of bilinear upsampling by 2, a 3 x 3 convolution "
            "and ReLU, as many as reach the size of the tile; a 1 x 1 convolution to the labels; and a bilinear "
            "interpolation where sizes still differ"
        )
