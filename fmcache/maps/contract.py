"""What a label map consists of, and what its writers have in common. The map arrives from top to bottom in bands."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fmcache.manifest import IGNORE, Label

Pixels = npt.NDArray[np.uint8]
GLASS = IGNORE
"""Label id of pixels that were not predicted."""

STRIP_PX = 512
"""Rows that are processed as one piece, however high the bands are: files do not depend on the height of bands."""

LEAST_UM2 = 100.0
"""Default of `MapOptions.least_um2`: about the area of one or two cells."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")


class MapGeometry(NamedTuple):
    """A map of `height` x `width` px at `mpp` um/px. `scale` is px of level 0 of the slide per px of the map."""

    name: str
    height: int
    width: int
    mpp: float
    scale: float
    labels: tuple[Label, ...]


class Band(NamedTuple):
    """Consecutive rows of a map, at full width.

    Attributes
    ----------
    top
        Row of the map at which the band starts.
    labels
        (y, x) uint8: label ids; 255 where nothing was predicted (glass).
    probability
        (label, y, x) uint8: mean softmax of all seeds; 255 is 1.
    disagreement
        (y, x) uint8: entropy of the mean softmax; 255 is ln(number of labels).
    picture
        (y, x, 3) uint8 RGB: the slide, for the overview.
    """

    top: int
    labels: Pixels
    probability: Pixels | None = None
    disagreement: Pixels | None = None
    picture: Pixels | None = None


class MapOptions(NamedTuple):
    """Which files are written, and how.

    Attributes
    ----------
    ome_tiff
        Also write a pyramidal OME-TIFF.
    least_um2
        Regions below this area in um2 are specks, which are not written as polygons.
    gzip
        Compress the polygons: NAME.geojson.gz.
    """

    ome_tiff: bool = False
    least_um2: float = LEAST_UM2
    gzip: bool = False


class Specks(NamedTuple):
    """Specks of one label: their number, and their area in px of the map."""

    number: int
    px: int


class MapTotals(NamedTuple):
    """What was written.

    Attributes
    ----------
    px
        Pixels by label, in the order of the labels, before specks were dropped.
    glass_px
        Pixels that were not predicted.
    specks
        Specks that are not among the polygons, by label; the last entry is glass (small holes, which were filled).
    regions
        Number of polygons.
    files
        The files and folders.
    """

    px: tuple[int, ...]
    glass_px: int
    specks: tuple[Specks, ...]
    regions: int
    files: tuple[Path, ...]


class MapOutput(ABC):
    """One file or folder of a map. Strips are bands of `STRIP_PX` rows; the last one may be lower."""

    @abstractmethod
    def add(self, strip: Band) -> None:
        """Take the next strip."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is left, after the last strip. The file is flushed and renamed after all outputs are finished."""


def one_line(text: str) -> str:
    """Return a text for formats that allow one line or no control characters: a space in place of each."""
    return _CONTROL.sub(" ", text)


def parts(band: Band) -> dict[str, Pixels]:
    """Return the pictures of a band by name, without those it lacks."""
    named: dict[str, Any] = band._asdict()
    return {name: pixels for name, pixels in named.items() if name != "top" and pixels is not None}
