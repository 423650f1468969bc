"""Write all files of a map while it arrives; they appear whole at the end, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fmcache.identity import whole_file
from fmcache.maps.areas import Areas
from fmcache.maps.contract import Band, MapGeometry, MapOptions, MapOutput, MapTotals
from fmcache.maps.qupath_file import QupathFile
from fmcache.maps.strips import Strips
from fmcache.shortage import naming_shortage

LESS_MEMORY = "predict fewer slides concurrently"


class MapWriter:
    """Takes the bands of a map from top to bottom; `writing` makes it."""

    def __init__(self, geometry: MapGeometry, folder: Path, options: MapOptions, files: ExitStack) -> None:
        self._title = f"{geometry.name} · maps"
        self._strips = Strips(geometry)
        paths = _paths(geometry, folder, options)
        opened = [files.enter_context(whole_file(path)) for path in paths]
        self._areas = Areas(geometry, opened[0])
        self._qupath = QupathFile(geometry, opened[1], options)
        self._outputs: list[MapOutput] = [self._qupath, self._areas]
        self._files = paths

    def add(self, band: Band) -> None:
        """Take the next band; bands have any height, follow without gaps and have the same parts.

        Raises
        ------
        ValueError
            When the band does not fit the map or the band before.
        NoRoom, NoMemory
            When the disk is full, or memory runs out.
        """
        with naming_shortage(self._title, LESS_MEMORY):
            for strip in self._strips.add(band):
                for output in self._outputs:
                    output.add(strip)

    def finish(self) -> None:
        """Write what is left. `writing` calls this.

        Raises
        ------
        ValueError
            When bands are missing.
        NoRoom, NoMemory
            When the disk is full, or memory runs out.
        """
        self._strips.finish()
        with naming_shortage(self._title, LESS_MEMORY):
            for output in self._outputs:
                output.finish()

    @property
    def totals(self) -> MapTotals:
        """What was written, after the last band."""
        areas, qupath = self._areas, self._qupath
        return MapTotals(areas.px, areas.glass_px, qupath.specks, qupath.regions, self._files)


@contextmanager
def writing(geometry: MapGeometry, folder: Path, options: MapOptions | None = None) -> Iterator[MapWriter]:
    """Open a writer for the files of a map in `folder`; at the end of the block they are flushed and renamed.

    Files have the name of the map: NAME.geojson (or .geojson.gz), NAME.areas.csv. Older files of these names are
    replaced. After an exception in the block, nothing is left and older files are unchanged.

    Raises
    ------
    ValueError
        When the bands did not cover the map.
    NoRoom, NoMemory
        When the disk is full, or memory runs out.
    OSError
        When the folder cannot be written.
    """
    with naming_shortage(f"{geometry.name} · maps", LESS_MEMORY), ExitStack() as files:
        writer = MapWriter(geometry, folder, options or MapOptions(), files)
        yield writer
        writer.finish()


def _paths(geometry: MapGeometry, folder: Path, options: MapOptions) -> tuple[Path, ...]:
    polygons = f"{geometry.name}.geojson{'.gz' if options.gzip else ''}"
    return folder / f"{geometry.name}.areas.csv", folder / polygons
