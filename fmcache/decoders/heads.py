"""The light decoder of the protocol: token grid -> logits. The same for all encoders."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fmcache.grid import Grid
from fmcache.identity import random_key


class Block(nn.Module):
    """Bilinear x2 upsampling, 3x3 convolution, ReLU (paper, eq. 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (view, width, 2 row, 2 col) of (view, width, row, col)."""
        larger = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return functional.relu(self.conv(larger))


class Decoder(nn.Module):
    """1x1 convolution, s upsampling blocks, 1x1 convolution to logits, one interpolation if sizes differ.

    It has d*D + D + s*(9*D*D + D) + D*C + C parameters for d `channels`, D `width`, C `labels` and s blocks.

    Its values are undefined until `initialise` or a state dict sets them: torch's own way would draw from the global
    generator.

    References
    ----------
    Vitoria et al., A Benchmark of Foundation Model Encoders for Histopathological Image Segmentation, eqs. 4 and 5.
    """

    def __init__(self, channels: int, width: int, labels: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.project = _conv(channels, width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(grid.upsampling_blocks))
        self.classify = _conv(width, labels, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (view, label, y, x) over the tile's covered pixels, of tokens (view, channel, row, col)."""
        x = self.project(tokens)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.classify(x)
        if logits.shape[-1] != self.grid.logits_px:
            size = (self.grid.logits_px, self.grid.logits_px)
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        covered = self.grid.covered_px
        return logits[..., :covered, :covered]


def _conv(channels: int, width: int, kernel: int) -> nn.Conv2d:
    conv: nn.Conv2d = skip_init(nn.Conv2d, channels, width, kernel_size=kernel, padding=kernel // 2)  # type: ignore[no-untyped-call]
    return conv


def initialise(decoder: Decoder, seed: int) -> None:
    """Set all parameters from `seed`, by torch's default rule for convolutions: uniform in +-1/sqrt(fan in).

    Each parameter has its own generator, keyed by (seed, its name): decoders of two encoders start from the same values
    wherever their shapes agree, and the global generator is neither used nor touched.
    """
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for key, parameter in module.named_parameters():
                generator = torch_generator(seed, "init", f"{name}.{key}")
                values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                with torch.no_grad():
                    parameter.copy_(values)


def torch_generator(*names: str | int) -> torch.Generator:
    """Return a CPU generator keyed by names, the same in every process."""
    return torch.Generator().manual_seed(random_key(*names) % 2**63)
