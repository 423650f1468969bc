"""How much arithmetic the decoder is, in its direct form. Integers only; no torch."""

from __future__ import annotations

from fmcache.grid import Grid


def multiply_adds(grid: Grid, channels: int, width: int, labels: int) -> int:
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
