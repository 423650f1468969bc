"""Read masks from NumPy arrays in .npy files."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmcache.errors import TileError
from fmcache.manifest import MASK_MAX
from fmcache.tiles.containers import DAMAGED, LARGEST_PX, check_size

NEXT_STEP = "save label ids as a 2-D array of whole numbers: numpy.save(path, mask.astype('uint8'))"

PLANES = "if the array has one plane per class, save numpy.argmax over that axis; if it has colours, save it as PNG"


def read_array(path: Path, most_px: int = LARGEST_PX) -> npt.NDArray[np.int32]:
    """Return the values of a .npy file, (y, x) int32; a third axis of length 1 is dropped. No code in it is executed.

    Raises
    ------
    TileError
        When the file is damaged, or is not a 2-D array of whole numbers from 0 to 2147483647.
    """
    try:
        # memory-mapped, so that a wrong size in the header is refused before memory is allocated
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*DAMAGED, tokenize.TokenError) as reason:
        raise TileError(
            f"{path} cannot be read as a NumPy array",
            found=str(reason)[:200],
            next_step=NEXT_STEP if "object" in str(reason).lower() else "save or download it again",
        ) from None
    found = f"shape {values.shape}, {values.dtype}"
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[..., 0] if values.shape[2] == 1 else values[0]
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise TileError(
            f"{path} is not a mask: not a 2-D array of numbers",
            expected="axes (y, x), whole numbers",
            found=found,
            next_step=PLANES if values.ndim == 3 else NEXT_STEP,
        )
    check_size(path, (values.shape[1], values.shape[0]), most_px)
    return whole_numbers(path, values, found, NEXT_STEP)


def whole_numbers(path: Path, values: npt.NDArray[Any], found: str, next_step: str) -> npt.NDArray[np.int32]:
    """Return numbers of any type as int32.

    Raises
    ------
    TileError
        When a number is not whole, or is not from 0 to 2147483647.
    """
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise TileError(f"{path}: mask values that are not whole numbers", found=found, next_step=next_step)
    if values.size and (values.min() < 0 or values.max() > MASK_MAX):
        raise TileError(
            f"{path}: mask values below 0 or above {MASK_MAX} (they range from {values.min()} to {values.max()})",
            next_step="export values of 0 or more, such as 255 for pixels that are not annotated",
        )
    return np.array(values, dtype=np.int32)  # a copy, so that the file is closed
