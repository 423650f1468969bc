"""What decoders are made of: the shape they are built for, and the sizes of their layers. Integers only; no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fmcache.grid import GridGeometry

if TYPE_CHECKING:
    from torch import Tensor

    from fmcache.decoders.decoder import Decoder


GROUP = 8
"""Channels that group normalisation normalises together."""


class Shape(NamedTuple):
    """What a decoder is built for.

    `channels` are those of each tap whose grids it reads, `width` is D in the protocol, `labels` the number of labels.
    """

    channels: tuple[int, ...]
    width: int
    labels: int
    grid: GridGeometry


class Convolution(NamedTuple):
    """A convolution with a bias and zero padding; its result has `side` rows and columns."""

    inputs: int
    outputs: int
    kernel: int
    side: int

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.kernel**2 * self.inputs * self.outputs + self.outputs

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image."""
        return self.kernel**2 * self.inputs * self.outputs * self.side**2


class UpsamplingBlock(NamedTuple):
    """Bilinear x2 upsampling, 3x3 convolution, ReLU; its result has `side` rows and columns.

    If it is `normalised`, group normalisation follows the convolution, with groups of 8 channels (as 32 groups of 256
    channels); if 8 does not divide `width`, of as many as divide both.
    """

    width: int
    side: int
    normalised: bool = False

    @property
    def groups(self) -> int:
        """Number of groups of channels that are normalised together."""
        return self.width // math.gcd(self.width, GROUP)

    @property
    def parameters(self) -> int:
        """Number of weights and biases, and of scales and shifts of the normalisation."""
        return self._convolution.parameters + 2 * self.width * self.normalised

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the convolution for one image, in the direct form; the fast form needs fewer.

        Upsampling, normalisation and ReLU are not counted: they need a few operations for each value.
        """
        return self._convolution.multiply_adds

    @property
    def _convolution(self) -> Convolution:
        return Convolution(self.width, self.width, 3, self.side)


Layer = Convolution | UpsamplingBlock
Layers = Mapping[str, Layer | tuple[Layer, ...]]
"""Layers by name. The names of parameters start with it; layers of a tuple are numbered: ``blocks.0``."""


class Kind(ABC):
    """A kind of decoder: the layers that it has, and the way from tokens through them to logits.

    Sizes, arithmetic, torch modules and initial values all follow from the list of layers, so they cannot disagree. A
    kind imports no torch: ``fmcache plan`` counts operations without it.
    """

    has_width = True
    """Whether the recipe's `width` changes this decoder."""

    @abstractmethod
    def layers(self, shape: Shape) -> Layers:
        """Return the layers for a shape."""

    @abstractmethod
    def logits(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """Return logits (view, label, row, col) of any size from tokens (view, channel, row, col).

        The channels of several taps follow each other on the channel axis. `decoder` has the layers; it resizes the
        logits to the tile.
        """

    @abstractmethod
    def words(self, shape: Shape) -> str:
        """Return what the decoder does, as the part of a sentence that follows "a decoder was trained:"."""


def every(layers: Layers) -> Iterator[Layer]:
    """Yield all layers, also those of tuples."""
    for layer in layers.values():
        if isinstance(layer, (Convolution, UpsamplingBlock)):
            yield layer
        else:
            yield from layer
