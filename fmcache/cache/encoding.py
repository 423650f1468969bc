"""What `store` in a recipe means on disk: the type, how many mantissa bits are kept, how it is compressed.

``float16`` and ``float32`` lose only what the type itself loses. ``TYPE-roundN`` keeps N mantissa bits. Values are
rounded before they are written, so any Zarr v3 reader can read them. The bits that become zero compress well.
CODECS.md beside this file has the measurements behind these choices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numcodecs.bitround import BitRound

COMPACT = "float16-round5"
"""The compact mode that CODECS.md recommends: errors of at most 1/64 of a value."""


class Compressor(NamedTuple):
    """Settings of Blosc (always with bitshuffle)."""

    name: str
    level: int


FAST = Compressor("lz4", 5)
SMALL = Compressor("zstd", 1)
"""On rounded values zstd saves a twentieth more than lz4; decoding runs at a third of the speed."""


class Store(NamedTuple):
    """How tokens are stored on disk: numpy name of the type, mantissa bits kept (0: all), compressor."""

    dtype: str
    keep_bits: int
    compressor: Compressor

    @property
    def itemsize(self) -> int:
        """Bytes of a value, on disk before compression and in the memory of stage two."""
        return np.dtype(self.dtype).itemsize

    def rounded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values (any shape, of type `dtype`) in which all other mantissa bits are zero.

        Rounds to nearest, ties to even: the error is at most 2**-(keep_bits + 1) of a value. A value that rounds beyond
        the range of the type becomes inf, which the writer refuses. inf and NaN do not change.

        References
        ----------
        Klöwer et al. 2021, Compressing atmospheric data into its real information content, Nat. Comput. Sci. 1.
        """
        if not self.keep_bits:
            return values
        kept: npt.NDArray[Any] = BitRound(self.keep_bits).encode(values).view(values.dtype)
        # rounding is integer arithmetic on the bits: it would turn a NaN of all ones (CUDA's) into -0
        return kept if all_finite(values) else np.where(np.isfinite(values), kept, values)

    def expected_ratio(self) -> float:
        """Return the expected size on disk as a share of the tokens in float32, measured on a ViT-S/14 (CODECS.md).

        This is an estimate: other encoders compress better or worse. Every kept bit costs 1/32, because the kept bits
        are almost random.
        """
        if not self.keep_bits:
            return {"float16": 0.447, "float32": 0.858}[self.dtype]
        return min(0.277 + (self.keep_bits - 5) / 32, self.itemsize / 4)


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Return whether no value (float16 or float32, first axis: view) is inf or NaN."""
    return _largest(values) < _infinity(values.dtype)


def _largest(values: npt.NDArray[Any]) -> int:
    """Return the bits of the largest magnitude. In IEEE 754 they are ordered like integers; inf and NaN come last.

    This is ten times as fast as numpy's tests of float16, which took a third of the time of reading a cache.
    """
    bits = np.dtype(f"u{values.dtype.itemsize}")
    magnitude = bits.type(np.iinfo(bits).max >> 1)
    return max((int((view.view(bits) & magnitude).max()) for view in values), default=0)


def _infinity(dtype: np.dtype[Any]) -> int:
    return int(np.array(np.inf, dtype).view(f"u{dtype.itemsize}"))


def store_of(name: str) -> Store:
    """Return what a recipe's `store` (checked there) means."""
    dtype, _, rounding = name.partition("-round")
    return Store(dtype, int(rounding), SMALL) if rounding else Store(dtype, 0, FAST)
