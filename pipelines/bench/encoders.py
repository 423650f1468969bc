"""Speed and memory of the study's encoders on this device, and the share of time that is spent outside the encoder.

Weights are random, because speed and memory do not depend on their values. Every encoder runs on tiles of 512 px that
are already in memory, at its published precision (float32 on a CPU). Before anything is timed, the shape of its token
grid is checked, and that all its values are finite.

    python pipelines/bench/encoders.py            # all 15; a GPU with 24 GB is enough
    python pipelines/bench/encoders.py --quick    # three small ones at 224 px, within 50 s on two CPU cores

Prints a table and one line per encoder: NAME ratio=… target=… device=…. The ratio is the time from views to token
grids (scaling, fitting to the grid, normalising, forward pass, rows) divided by the time of the forward pass alone on
prepared tensors.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import timm
import torch

from fmcache.encoders.cards import card_names, read_card
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import AUTOCAST, grids_of_views, input_pixels
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice, Precision

QUICK = ("lunit-vits8", "random-vits16", "phikon")
TARGET = {"cpu": 1.10, "cuda": 1.05}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of one call in seconds; waits for the device before and after it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(name: str, device: torch.device, tile_px: int, views: int, repeats: int) -> str:
    """Check one encoder, time it, print its line and return its row of the table."""
    encoder = load_encoder(EncoderChoice(name, random_weights=not read_card(name).random_weights), device)
    card, grid = encoder.card, GridGeometry(tile_px, encoder.card.patch)
    precision: Precision = card.precision if device.type == "cuda" else "float32"
    images = np.random.default_rng(0).integers(0, 256, (views, tile_px, tile_px, 3), dtype=np.uint8)

    def stage() -> list[torch.Tensor]:
        return [at[0] for at in grids_of_views(encoder, iter(images), grid, precision, ("last",))]

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batches = stage()  # also finds the batch size, and is the warm-up
    sizes = [len(batch) for batch in batches]
    on_grid = batches[0].shape[1:] == (card.width, grid.side, grid.side)
    if not on_grid or not all(bool(batch.isfinite().all()) for batch in batches):
        raise SystemExit(
            f"{name}: tokens {tuple(batches[0].shape)} are not finite or not on the grid; nothing was timed"
        )
    pixels = [input_pixels(encoder, part, grid) for part in np.split(images, np.cumsum(sizes)[:-1])]
    dtype = AUTOCAST[precision]

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            for batch in pixels:
                encoder.module.forward_features(batch)

    forward()
    pairs = [(seconds(forward, device), seconds(stage, device)) for _ in range(repeats)]
    alone, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else "–"
    print(f"encoder-{name} ratio={ratio:.3f} target=<={TARGET[device.type]} device={device}", flush=True)
    return (
        f"| {name} | {encoder.params / 1e6:.0f} M | {precision} | {max(sizes)} | {views / whole:.2f} | "
        f"{views / alone:.2f} | {100 * (1 - 1 / ratio):.1f} % | {peak} |"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--views", type=int, default=64)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{what}; torch {torch.__version__}, timm {timm.__version__}, python {platform.python_version()}")
    study = [name for name in card_names() if not read_card(name).control]
    rows = [
        measure(name, device, 224, 4, 3) if arguments.quick else measure(name, device, 512, arguments.views, 5)
        for name in (QUICK if arguments.quick else study)
    ]
    print("\n| encoder | parameters | precision | batch | views/s | forward alone | outside it | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
