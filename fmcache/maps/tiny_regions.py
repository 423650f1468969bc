"""Specks: regions that are too small to be polygons. They get the label of the nearest larger region."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from fmcache.maps.contract import GLASS, Pixels, Specks


def without_specks(labels: Pixels, count: int, least_px: float) -> tuple[Pixels, tuple[Specks, ...]]:
    """Return labels (y, x) without the specks that do not touch the first or last row, and what was replaced.

    Regions are 4-connected; a speck has fewer than `least_px` px. Regions at the first and last row may continue in
    other rows: they stay. The specks are listed for the ids 0 to `count` - 1, then for glass.
    """
    small = np.zeros(labels.shape, bool)
    specks = []
    for label in (*range(count), GLASS):
        mask = (labels == label).view(np.uint8)
        _, component, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        is_speck = _is_speck(stats, len(labels), least_px)
        specks.append(Specks(int(is_speck.sum()), int(stats[is_speck, cv2.CC_STAT_AREA].sum())))
        if is_speck.any():
            small |= is_speck[component]
    if not small.any():
        return labels, tuple(specks)
    _, nearest = cv2.distanceTransformWithLabels(small.view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    label_of = np.empty(nearest.max() + 1, np.uint8)
    label_of[nearest[~small]] = labels[~small]
    return label_of[nearest], tuple(specks)


def _is_speck(stats: Any, rows: int, least_px: float) -> Any:
    top, bottom = stats[:, cv2.CC_STAT_TOP], stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT]
    is_speck = (stats[:, cv2.CC_STAT_AREA] < least_px) & (top > 0) & (bottom < rows)
    is_speck[0] = False  # component 0 is everything else
    return is_speck
