"""NAME.ome.zarr: the map as OME-Zarr 0.4 pyramids, written while it arrives.

The image (axes c, y, x) has the mean probability of each label and the disagreement, where the bands have them. Below
it, ``labels/map`` (y, x) has the label ids plus 1: viewers show 0 as transparent, and here 0 is glass. Without
probability and disagreement, the image is the label map itself. Version 0.4 with Zarr format 2, because QuPath 0.6
reads no later one (https://ngff.openmicroscopy.org/0.4/).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from fmcache.identity import remove_folder
from fmcache.maps.contract import STRIP_PX, Band, MapGeometry, MapOutput, Pixels
from fmcache.tiles.sheet import rgb

CHUNK_X = 2 * STRIP_PX
FLUSHING = 16
SMALLEST_PX = 1024
"""The last level has at most this many rows and columns."""

LABELS = "labels/map"
Reduce = Callable[[Pixels], Pixels]


class LabelPyramid(MapOutput):
    """Writes the pyramids. Each level keeps at most one strip, so memory grows with the width of the map only."""

    def __init__(self, geometry: MapGeometry, folder: Path) -> None:
        self._geometry = geometry
        self._root = zarr.create_group(folder, zarr_format=2, overwrite=True)
        self._labels = _Levels(self._root.create_group(LABELS), (geometry.height, geometry.width), nearest)
        self._image: _Levels | None = None
        self._channels: list[dict[str, Any]] = []

    def add(self, strip: Band) -> None:
        self._labels.add(strip.labels + np.uint8(1))  # 255 becomes 0
        layers = [strip.probability] if strip.probability is not None else []
        layers += [strip.disagreement[None]] if strip.disagreement is not None else []
        if not layers:
            return
        if self._image is None:
            self._channels = _channels(self._geometry, strip)
            shape = (len(self._channels), self._geometry.height, self._geometry.width)
            self._image = _Levels(self._root, shape, mean)
        self._image.add(np.concatenate(layers))

    def finish(self) -> None:
        name, mpp = self._geometry.name, self._geometry.mpp
        self._labels.finish()
        self._root["labels"].attrs["labels"] = [LABELS.removeprefix("labels/")]
        self._root[LABELS].attrs["multiscales"] = [self._labels.described(f"{name} labels", mpp)]
        self._root[LABELS].attrs["image-label"] = _image_label(self._geometry)
        if self._image is None:
            self._root.attrs["multiscales"] = [self._labels.described(name, mpp, f"{LABELS}/")]
        else:
            self._image.finish()
            self._root.attrs["multiscales"] = [self._image.described(name, mpp)]
            self._root.attrs["omero"] = {"name": name, "channels": self._channels, "rdefs": {"model": "color"}}

    @property
    def levels(self) -> list[Any]:
        """The arrays (y, x) of label ids plus 1, the largest first, after `finish`."""
        return self._labels.arrays


class _Levels:
    """The arrays of one pyramid; `reduce` halves rows and columns (the last two axes) from level to level."""

    def __init__(self, group: Any, shape: tuple[int, ...], reduce: Reduce) -> None:
        self._reduce = reduce
        self.arrays = [_array(group, str(i), level) for i, level in enumerate(shapes(shape))]
        self._kept: list[list[Pixels]] = [[] for _ in self.arrays]
        self._written = [0] * len(self.arrays)

    def add(self, rows: Pixels, level: int = 0) -> None:
        """Take rows of a level: of level 0 whole strips, except for the last."""
        self._kept[level].append(rows)
        if sum(kept.shape[-2] for kept in self._kept[level]) >= STRIP_PX:
            self._write(level)

    def finish(self) -> None:
        for level, kept in enumerate(self._kept):
            if kept:
                self._write(level)

    def described(self, name: str, mpp: float, prefix: str = "") -> dict[str, Any]:
        """Return the metadata `multiscales` of the pyramid."""
        channel = [{"name": "c", "type": "channel"}] if self.arrays[0].ndim == 3 else []
        space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
        return {
            "version": "0.4",
            "name": name,
            "axes": channel + space,
            "datasets": [
                {"path": f"{prefix}{i}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
                for i, scale in enumerate([1.0] * len(channel) + [mpp * 2**i] * 2 for i in range(len(self.arrays)))
            ],
            "type": self._reduce.__name__,
        }

    def _write(self, level: int) -> None:
        kept, self._kept[level] = self._kept[level], []
        rows = kept[0] if len(kept) == 1 else np.concatenate(kept, axis=-2)
        top = self._written[level]
        self._written[level] += rows.shape[-2]
        self.arrays[level][..., top : self._written[level], :] = rows
        if level + 1 < len(self.arrays):
            self.add(self._reduce(rows), level + 1)


def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of all levels; each has half the rows and columns of the one before, rounded up."""
    levels = [shape]
    while max(levels[-1][-2:]) > SMALLEST_PX:
        *first, height, width = levels[-1]
        levels.append((*first, -(-height // 2), -(-width // 2)))
    return levels


def nearest(rows: Pixels) -> Pixels:
    """Return every second row and column."""
    return np.ascontiguousarray(rows[..., ::2, ::2])


def mean(rows: Pixels) -> Pixels:
    """Return the mean of 2 x 2 px, halves rounded up; an odd last row or column is paired with itself."""
    odd = [(0, 0)] * (rows.ndim - 2) + [(0, rows.shape[-2] % 2), (0, rows.shape[-1] % 2)]
    even = np.pad(rows, odd, mode="edge")
    total = np.uint16(2) + even[..., ::2, ::2]
    for y, x in ((0, 1), (1, 0), (1, 1)):
        total += even[..., y::2, x::2]
    return (total >> 2).astype(np.uint8)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success, flush its files to disk and rename it to `path`.

    After an exception the temporary folder is removed, and an older folder at `path` is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        with ThreadPoolExecutor(FLUSHING) as pool:  # thousands of files: the disk takes concurrent flushes together
            list(pool.map(_flush, [*partial.rglob("*"), partial]))
        remove_folder(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _array(group: Any, name: str, shape: tuple[int, ...]) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=(*(1 for _ in shape[:-2]), STRIP_PX, CHUNK_X),
        dtype="uint8",
        fill_value=0,
        compressors=Blosc("zstd", clevel=3, shuffle=Blosc.NOSHUFFLE),
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )


def _channels(geometry: MapGeometry, strip: Band) -> list[dict[str, Any]]:
    named = [(label.name, label.colour) for label in geometry.labels] if strip.probability is not None else []
    named += [("disagreement", "#ffffff")] if strip.disagreement is not None else []
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    return [{"label": name, "color": colour[1:], "active": True, "window": window} for name, colour in named]


def _image_label(geometry: MapGeometry) -> dict[str, Any]:
    values = range(1, len(geometry.labels) + 1)
    colours = [[*rgb(label.colour), 255] for label in geometry.labels]
    return {
        "version": "0.4",
        "colors": [{"label-value": v, "rgba": rgba} for v, rgba in zip(values, colours, strict=True)],
        "properties": [
            {"label-value": v, "name": label.name} for v, label in zip(values, geometry.labels, strict=True)
        ],
        "source": {"image": "../../"},
    }
