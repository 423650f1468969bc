"""Write all files of a map while it arrives; they appear whole at the end, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from fmcache.identity import whole_file
from fmcache.maps.areas import Areas
from fmcache.maps.contract import Band, MapGeometry, MapOptions, MapOutput, MapTotals
from fmcache.maps.label_pyramid import LabelPyramid, whole_folder
from fmcache.maps.ome_tiff import require_tifffile, write_ome_tiff
from fmcache.maps.overview import Overview
from fmcache.maps.qupath_file import QupathFile
from fmcache.maps.strips import Strips
from fmcache.shortage import naming_shortage

LESS_MEMORY = "predict fewer slides concurrently"


class MapWriter:
    """Takes the bands of a map from top to bottom; `writing` makes it."""

    def __init__(self, geometry: MapGeometry, folder: Path, options: MapOptions, files: ExitStack) -> None:
        self._geometry = geometry
        self._strips = Strips(geometry)
        self._files: list[Path] = []

        def opened(ending: str) -> IO[bytes]:
            self._files.append(folder / f"{geometry.name}.{ending}")
            return files.enter_context(whole_file(self._files[-1]))

        self._areas = Areas(geometry, opened("areas.csv"))
        self._overview = Overview(geometry, opened("overview.png"))
        self._tiff = opened("ome.tif") if options.ome_tiff else None
        self._qupath = QupathFile(geometry, opened("geojson.gz" if options.gzip else "geojson"), options)
        self._files.append(folder / f"{geometry.name}.ome.zarr")
        self._pyramid = LabelPyramid(geometry, files.enter_context(whole_folder(self._files[-1])))

    def add(self, band: Band) -> None:
        """Take the next band; bands have any height, follow without gaps and have the same parts.

        Raises
        ------
        ValueError
            When the band does not fit the map or the band before.
        """
        for strip in self._strips.add(band):
            for output in self._outputs():
                output.add(strip)

    def finish(self) -> None:
        """Write what is left. `writing` calls this.

        Raises
        ------
        ValueError
            When bands are missing.
        """
        self._strips.finish()
        for output in self._outputs():
            output.finish()
        if self._tiff:
            write_ome_tiff(self._geometry, self._pyramid.levels, self._tiff)

    @property
    def totals(self) -> MapTotals:
        """What was written; complete after the block of `writing`."""
        areas, qupath = self._areas, self._qupath
        return MapTotals(areas.px, areas.glass_px, qupath.specks, qupath.regions, tuple(self._files))

    def _outputs(self) -> tuple[MapOutput, ...]:
        return self._areas, self._overview, self._qupath, self._pyramid


@contextmanager
def writing(geometry: MapGeometry, folder: Path, options: MapOptions | None = None) -> Iterator[MapWriter]:
    """Open a writer for the files of a map in `folder`; at the end of the block they are flushed and renamed.

    Files have the name of the map: NAME.geojson (or .geojson.gz), NAME.ome.zarr, NAME.ome.tif if asked for,
    NAME.overview.png, NAME.areas.csv. The areas come last. Older files of these names are replaced. After an exception
    in the block, nothing is left and older files are unchanged.

    Raises
    ------
    ExtraMissing
        When an OME-TIFF is asked for and tifffile is not installed.
    ValueError
        When the bands did not cover the map.
    NoRoom, NoMemory
        When the disk is full, or memory runs out, also by other work in the block.
    OSError
        When the folder cannot be written.
    """
    options = options or MapOptions()
    if options.ome_tiff:
        require_tifffile()
    with naming_shortage(geometry.name, LESS_MEMORY), ExitStack() as files:
        try:
            writer = MapWriter(geometry, folder, options, files)
            yield writer
            writer.finish()
        except OSError as error:
            error.filename = error.filename or str(folder)  # the system's error of a failed write names no file
            raise
