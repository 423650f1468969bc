"""The linear probe: one 1x1 convolution on the token grid, resized to the tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmcache.decoders.layers import Convolution, Kind, Layers, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from fmcache.decoders.decoder import Decoder


class Linear(Kind):
    """1x1 convolution from tokens to labels; logits are resized bilinearly to the tile.

    It has d*C + C parameters for d channels and C labels, and no `width`. Nothing at the size of the tile has more
    channels than there are labels.

    References
    ----------
    Oquab et al. 2023, DINOv2, section 7.4, for linear probes of dense tasks.
    """

    has_width = False

    def layers(self, shape: Shape) -> Layers:
        """Return the layer ``classify``."""
        (channels,) = shape.channels
        return {"classify": Convolution(channels, shape.labels, 1, shape.grid.side)}

    def logits(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """Return logits of the size of the token grid."""
        logits: Tensor = decoder.layer("classify")(tokens)
        return logits

    def words(self, shape: Shape) -> str:
        """Return the layers in words."""
        return (
            "a linear probe, which is a 1 x 1 convolution to the labels; its logits are interpolated bilinearly to the "
            "size of the tile"
        )
