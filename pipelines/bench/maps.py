"""What does writing a label map cost: time, memory, sizes of files, and how exact are the polygons?

    python pipelines/bench/maps.py              5,000, 10,000 and 20,000 px square, each in its own process
    python pipelines/bench/maps.py --sides 20000 --blur-px 40 --speckle 0.01
    python pipelines/bench/maps.py --quick

The map is drawn in bands: six labels, each the largest of smooth random fields, with glass around round pieces of
tissue. Times are those of the writer alone, on the clock and of cores; the peak of memory includes the drawing of a
band (reported as `before`). Then the polygons are rasterised back, band by band, and compared with the map.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import shapely
from rasterio.features import rasterize

from fmcache.manifest import Label
from fmcache.maps.contract import GLASS, Band, MapGeometry, MapOptions
from fmcache.maps.writing import writing

COLOURS = ("#c80000", "#00a000", "#0000c8", "#c8c800", "#c800c8", "#808080")
LABELS = tuple(Label(name, colour) for name, colour in zip("abcdef", COLOURS, strict=True))
COARSE = 8
BAND_PX = 128


class Drawing:
    """A map that is computed from coarse random fields, row by row, so that it needs little memory."""

    def __init__(self, side: int, blur_px: float, speckle: float) -> None:
        self.side, self._speckle = side, speckle
        self._fields = [self._field(i, blur_px) for i in range(len(LABELS))]
        self._tissue = self._field(len(LABELS), 500)

    def bands(self) -> Iterator[Band]:
        """Yield the bands of the map, with all parts."""
        for top in range(0, self.side, BAND_PX):
            rows = min(BAND_PX, self.side - top)
            fields = np.stack([self._rows(field, top, rows) for field in self._fields])
            labels = fields.argmax(0).astype(np.uint8)
            raised = np.exp(4 * (fields - fields.max(0)))
            probability = (255 * raised / raised.sum(0)).astype(np.uint8)
            rng = np.random.default_rng([1, top])
            odd = rng.random(labels.shape, np.float32) < self._speckle
            labels[odd] = rng.integers(0, len(LABELS), int(odd.sum()))
            glass = self._rows(self._tissue, top, rows) < -0.5
            labels[glass] = GLASS
            probability[:, glass] = 0
            picture = np.repeat(255 - probability.max(0)[..., None], 3, axis=2)
            yield Band(top, labels, probability, 255 - probability.max(0), picture)

    def _field(self, seed: int, blur_px: float) -> np.ndarray:
        size = self.side // COARSE + 2
        noise = np.random.default_rng([0, seed]).standard_normal((size, size), np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), blur_px / COARSE)
        return smooth / smooth.std()

    def _rows(self, field: np.ndarray, top: int, rows: int) -> np.ndarray:
        onto = np.array([[1 / COARSE, 0, 0], [0, 1 / COARSE, top / COARSE]])
        return cv2.warpAffine(field, onto, (self.side, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def measure(side: int, blur_px: float, speckle: float, folder: Path, gzipped: bool) -> None:
    """Write one map and print what it cost."""
    drawing = Drawing(side, blur_px, speckle)
    geometry = MapGeometry("map", side, side, 0.5, 1.83, LABELS)
    next(drawing.bands())
    before = peak_mb()
    wall, cores = 0.0, 0.0
    with writing(geometry, folder, MapOptions(ome_tiff=True, gzip=gzipped)) as maps:
        for band in drawing.bands():
            started = time.perf_counter(), time.process_time()
            maps.add(band)
            wall, cores = wall + time.perf_counter() - started[0], cores + time.process_time() - started[1]
        started = time.perf_counter(), time.process_time()
    wall_of_end, cores_of_end = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"{side} px, blur {blur_px:g} px, speckle {speckle:g}")
    print(f"  bands {wall:.0f} s ({cores:.0f} s of a core), end {wall_of_end:.0f} s ({cores_of_end:.0f})")
    print(f"  peak {peak_mb():.0f} MB, {before:.0f} MB before")
    sizes = {path.name: megabytes(path) for path in maps.totals.files}
    print("  MB: " + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))
    specks = maps.totals.specks
    print(f"  {maps.totals.regions} polygons; specks {sum(s.number for s in specks)} ({sum(s.px for s in specks)} px)")
    compare(drawing, maps.totals.files, geometry.scale)


def compare(drawing: Drawing, files: tuple[Path, ...], scale: float) -> None:
    """Rasterise the polygons and print how the area of each label differs from the map."""
    path = next(path for path in files if ".geojson" in path.name)
    text = path.read_bytes()
    features = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text)["features"]
    names = [label.name for label in LABELS]
    ids = np.array([names.index(one["properties"]["classification"]["name"]) for one in features])
    polygons = np.array([shapely.geometry.shape(one["geometry"]) for one in features])
    largest = max(shapely.get_num_coordinates(polygons))
    print(f"  {shapely.get_num_coordinates(polygons).sum()} vertices, {largest} in one polygon; all valid: "
          f"{shapely.is_valid(polygons).all()}")  # fmt: skip
    polygons = shapely.transform(polygons, lambda xy: xy / scale)
    tree = shapely.STRtree(polygons)
    counts, written, wrong = np.zeros(256), np.zeros(256), 0
    for band in drawing.bands():
        rows = len(band.labels)
        near = tree.query(shapely.box(0, band.top, drawing.side, band.top + rows))
        shown = [(polygons[i], int(ids[i])) for i in near]
        to_map = (1, 0, 0, 0, 1, band.top)
        back = rasterize(shown, band.labels.shape, GLASS, dtype="uint8", transform=to_map)
        counts += np.bincount(band.labels.ravel(), minlength=256)
        written += np.bincount(back.ravel(), minlength=256)
        wrong += int((back != band.labels).sum())
    error = [f"{name} {100 * (written[i] / counts[i] - 1):+.3f}" for i, name in enumerate(names)]
    print(f"  area error %: {', '.join(error)}; px that differ: {100 * wrong / drawing.side**2:.2f} %", flush=True)


def peak_mb() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files) / 1e6


def main() -> None:
    """Measure each size in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10_000, 20_000])
    parser.add_argument("--blur-px", type=float, default=80.0)
    parser.add_argument("--speckle", type=float, default=0.0, help="share of px that get a random label")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--quick", action="store_true", help="1,500 px only")
    args = parser.parse_args()
    sides = [1500] if args.quick else args.sides
    if len(sides) == 1:
        with tempfile.TemporaryDirectory() as folder:
            measure(sides[0], args.blur_px, args.speckle, Path(folder), args.gzip)
        return
    for side in sides:
        again = ["--blur-px", str(args.blur_px), "--speckle", str(args.speckle), *["--gzip"] * args.gzip]
        subprocess.run([sys.executable, __file__, "--sides", str(side), *again], check=True)


if __name__ == "__main__":
    main()
