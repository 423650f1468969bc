"""NAME.ome.tif: the label map as a pyramidal, tiled OME-TIFF, written from the finished arrays of the OME-Zarr."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from fmcache.errors import ExtraMissing
from fmcache.maps.contract import STRIP_PX, MapGeometry, Pixels, one_line
from fmcache.tiles.sheet import rgb

BIG_PX = 2**31
"""Above this the file is a BigTIFF, which has no limit of 4 GB."""


def require_tifffile() -> None:
    """Raise ExtraMissing when tifffile is not installed: before a map is computed, not after."""
    try:
        import tifffile  # noqa: F401
    except ImportError as reason:
        raise ExtraMissing(
            "writing OME-TIFF needs tifffile",
            expected="the package tifffile",
            found=str(reason).splitlines()[0],
            next_step="pip install 'fmcache[wsi]', or leave out --ome-tiff",
        ) from None


def write_ome_tiff(geometry: MapGeometry, levels: Sequence[Any], file: IO[bytes]) -> None:
    """Write levels (y, x) uint8 of label ids plus 1 (0 is glass), the largest first, as one image of OME-TIFF.

    The palette has the colours of labels, with white for glass. OME has no place for names of pixel values: they are in
    the map annotation, by value.
    """
    from tifffile import TiffWriter

    names = {str(i + 1): one_line(label.name) for i, label in enumerate(geometry.labels)}
    colours = np.full((256, 3), 255, np.uint16)
    colours[1 : len(names) + 1] = [rgb(label.colour) for label in geometry.labels]
    described = {
        "axes": "YX",
        "Name": geometry.name,
        "PhysicalSizeX": geometry.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": geometry.mpp,
        "PhysicalSizeYUnit": "µm",
        "MapAnnotation": {"Namespace": "labels", "0": "(not predicted)", **names},
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, repr(geometry))),  # tifffile's own is random
    }
    with TiffWriter(file, bigtiff=geometry.height * geometry.width > BIG_PX, ome=True) as tiff:
        for i, level in enumerate(levels):
            tiff.write(
                _tiles(level),
                shape=level.shape,
                dtype="uint8",
                tile=(STRIP_PX, STRIP_PX),
                compression="zlib",
                photometric="palette",
                colormap=257 * colours.T,  # 255 becomes 65535
                resolution=(1e4 / (geometry.mpp * 2**i),) * 2,
                resolutionunit="CENTIMETER",
                subifds=0 if i else len(levels) - 1,
                subfiletype=min(i, 1),
                metadata=None if i else described,
                software=False,
            )


def _tiles(level: Any) -> Iterator[Pixels]:
    height, width = level.shape
    for top in range(0, height, STRIP_PX):
        rows = level[top : top + STRIP_PX]
        for left in range(0, width, STRIP_PX):
            yield rows[:, left : left + STRIP_PX]
