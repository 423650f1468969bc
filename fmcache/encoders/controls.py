"""Encoders without training. A foundation model is useful only if its Dice is higher than with these controls."""

from __future__ import annotations

import math

import cv2
import torch
from torch import nn
from torch.nn import functional

WAVELENGTHS_PX = (3.0, 6.0, 12.0)
ORIENTATIONS = 4
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


class RawPixels(nn.Module):
    """The control without a network: a token is the normalised pixels of its patch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens (view, token, channel); channels are ordered by row and column in the patch, then colour."""
        rows, cols = x.shape[2] // self.patch, x.shape[3] // self.patch
        # -1 instead of the number of views: torch.jit.trace would store the number as a constant
        by_patch = x.reshape(-1, x.shape[1], rows, self.patch, cols, self.patch)
        return by_patch.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * cols, x.shape[1] * self.patch**2)


class ColourTexture(nn.Module):
    """The hand-crafted control: a token is the colour and texture of its patch.

    It has 30 channels in this order: mean of each colour; standard deviation of each colour; mean of each Gabor
    magnitude of the luminance (4 orientations at each of 3 wavelengths); standard deviation of each Gabor magnitude.
    Outside its edges the image is reflected.

    References
    ----------
    Jain & Farrokhnia 1991, Unsupervised texture segmentation using Gabor filters, Pattern Recognition 24.
    """

    kernels: torch.Tensor
    luminance: torch.Tensor

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("kernels", gabor_kernels())
        self.register_buffer("luminance", torch.tensor(LUMINANCE).view(1, 3, 1, 1))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens (view, token, channel) of pixels (view, colour, y, x)."""
        luminance = (x * self.luminance).sum(dim=1, keepdim=True)
        reach = self.kernels.shape[-1] // 2
        index = [_reflected(size, reach, x.device) for size in x.shape[2:]]
        padded = luminance[..., index[0], :][..., index[1]]
        even, odd = functional.conv2d(padded, self.kernels).chunk(2, dim=1)
        magnitude = (even.square() + odd.square()).sqrt()
        maps = (x, magnitude)
        means = [functional.avg_pool2d(one, self.patch) for one in maps]
        squares = [functional.avg_pool2d(one.square(), self.patch) for one in maps]
        stds = [(square - mean.square()).clamp(min=0).sqrt() for square, mean in zip(squares, means, strict=True)]
        return torch.cat([means[0], stds[0], means[1], stds[1]], dim=1).flatten(2).transpose(1, 2)


def gabor_kernels() -> torch.Tensor:
    """Return the filters (2 * 12, 1, y, x): first even, then odd filters, each with mean 0 and absolute sum 1."""
    size = 2 * math.ceil(1.5 * max(WAVELENGTHS_PX)) + 1
    kernels = []
    for phase in (0.0, math.pi / 2):
        for wavelength in WAVELENGTHS_PX:
            for k in range(ORIENTATIONS):
                kernel = cv2.getGaborKernel(
                    (size, size), 0.5 * wavelength, math.pi * k / ORIENTATIONS, wavelength, 1.0, phase, cv2.CV_32F
                )
                kernel = kernel - kernel.mean()  # a flat patch has no texture
                kernels.append(torch.from_numpy(kernel / abs(kernel).sum()))
    return torch.stack(kernels)[:, None]


def _reflected(size: int, reach: int, device: torch.device) -> torch.Tensor:
    index = torch.arange(-reach, size + reach, device=device)
    period = max(1, 2 * (size - 1))
    return torch.minimum(index % period, -index % period)
