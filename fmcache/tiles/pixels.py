"""The type of images and masks in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""An image (y, x, 3) in RGB, or a mask (y, x) of label ids, where 255 is no label."""
