"""What readers of levels share: windows made of fixed blocks, the factor of a level, and a hash of a large file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fmcache.tiles.pixels import Pixels

SAMPLES, SAMPLE_BYTES = 64, 1 << 16


def from_blocks(
    place: tuple[int, int],
    size: tuple[int, int],
    block: tuple[int, int],
    read: Callable[[tuple[int, int]], Pixels],
) -> Pixels:
    """Return a region (y, x, colour) uint8 from blocks of `block` (width, height) px, side by side from the origin.

    `read` returns the block with a corner (x, y); the last blocks of a level may be smaller.
    """
    (left, top), (width, height), (across, down) = place, size, block
    drawn = np.empty((height, width, 3), dtype=np.uint8)
    for y in range(top // down * down, top + height, down):
        for x in range(left // across * across, left + width, across):
            pixels = read((x, y))[max(top - y, 0) :, max(left - x, 0) :]
            part = drawn[max(y - top, 0) :, max(x - left, 0) :][: len(pixels), : pixels.shape[1]]
            part[:] = pixels[: len(part), : part.shape[1]]
    return drawn


def level_factor(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Return the pixels of level 0 per pixel of a level, from the sizes (width, height) of both.

    Levels are nearly always smaller by a whole number, and their size is then rounded. The quotient of the sizes would
    be off by several pixels at the far end of a slide.
    """
    whole = round(full[0] / level[0])
    if all(abs(small - large / whole) < 1 for large, small in zip(full, level, strict=True)):
        return float(whole)
    return (full[0] / level[0] + full[1] / level[1]) / 2


def sampled_hash(path: Path) -> str:
    """Return the sha256 of a file's size and of 64 evenly spaced samples of its bytes: slides have many gigabytes."""
    size = path.stat().st_size
    found = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(i * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()
