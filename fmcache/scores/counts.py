"""Counts of true positives, false positives and false negatives per label. Every score is computed from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fmcache.manifest import IGNORE


def count(prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], n_labels: int) -> npt.NDArray[np.int64]:
    """Return tp, fp and fn of each label over all pixels that are not ignored in the truth.

    Parameters
    ----------
    prediction
        (y, x), label ids below `n_labels`.
    truth
        (y, x), label ids below `n_labels`, or 255 where there is no truth.

    Returns
    -------
    (label, 3) int64: tp, fp, fn in pixels.

    Raises
    ------
    ValueError
        When the shapes differ, or an id is not a label (255 is allowed in the truth).
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected one prediction per pixel of {truth.shape}, found {prediction.shape}")
    seen = truth != IGNORE
    true, predicted = truth[seen].astype(np.int64), prediction[seen].astype(np.int64)
    if true.size and (true.max() >= n_labels or predicted.max() >= n_labels):
        raise ValueError(f"expected label ids below {n_labels}, found {max(true.max(), predicted.max())}")
    confusion = np.bincount(true * n_labels + predicted, minlength=n_labels**2).reshape(n_labels, n_labels)
    tp = np.diag(confusion)
    return np.stack([tp, confusion.sum(0) - tp, confusion.sum(1) - tp], axis=1)
