"""Stage one against its lower bound: the wall time of an extraction divided by that of the forward pass alone.

The lower bound runs the same views through the same encoder, in the same batches and precision; the views are already
decoded, rendered, normalised and on the device. Both are measured in turns; the ratio is the median over rounds. First
it is checked that the cache holds the tokens of the forward pass. Weights are random, so no network is needed. The end
has one line for each encoder.

On a busy machine wall times are unreliable. Therefore a ratio of processor times is printed too: all work, including
rendering and compressing, divided by the work of the forward pass; it also counts work that overlaps the forward pass.

    python pipelines/bench/extract.py --quick                     # ViT-S, CPU, within 50 s on two cores
    python pipelines/bench/extract.py --device cuda               # ViT-L and ViT-g on a GPU
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from fmcache.cache.reader import open_cache
from fmcache.encoders.load import Encoder, load_encoder
from fmcache.encoders.tokens import AUTOCAST, batch_size, input_pixels
from fmcache.grid import GridGeometry
from fmcache.manifest import Manifest
from fmcache.runtime.devices import device_name, versions
from fmcache.specs import EncoderChoice, Recipe, ViewSpec
from fmcache.stages import places
from fmcache.stages.extract import extract
from fmcache.stages.flags import Flags
from fmcache.tiles.images import read_tile, resize_tile
from fmcache.tiles.views import render_view

ENCODERS = {"cpu": ["random-vits16"], "cuda": ["kaiko-vitl14", "h-optimus-0"]}
TARGET = {"cpu": 1.10, "cuda": 1.05}
MANIFEST = Path(__file__).parents[2] / "data_manifest.yaml"


def main() -> None:
    """Measure the encoders that were asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tiles and views, within 50 s on two cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch; 1 leaves the other cores to rendering")
    parser.add_argument("--encoder", action="append", help="cards; without: ViT-S on a CPU, ViT-L and ViT-g on a GPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    tiles, tile_px, views, rounds = (3, 224, 5, 5) if arguments.quick else (8, 512, 50, 3)
    lines = [
        measure(name, device, arguments.threads, tiles, tile_px, views, rounds)
        for name in arguments.encoder or ENCODERS[device.type]
    ]
    print(versions("fmcache", "torch", "timm", "zarr", "opencv-python-headless", "pillow"))
    print(*lines, sep="\n")


def measure(name: str, device: torch.device, threads: int, tiles: int, tile_px: int, views: int, rounds: int) -> str:
    """Return the line of one encoder with the median ratio of wall times; print the details."""
    listed = Manifest(MANIFEST)
    dataset = listed.datasets["demo"]
    train, val, test = dataset.splits.train[:tiles], dataset.splits.val[:1], dataset.splits.test[:1]
    splits = msgspec.structs.replace(dataset.splits, train=train, val=val, test=test, subsets=())
    listed.datasets["demo"] = dataset = msgspec.structs.replace(dataset, splits=splits, folds=())
    recipe = Recipe(
        name="bench", datasets=("demo",), encoders=(EncoderChoice(name, random_weights=device.type == "cuda"),),
        tile_px=tile_px, views=ViewSpec(count=views),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        flags = Flags(Path(folder), device=str(device), threads=threads)
        extract(recipe, listed, flags, lambda _: None)  # from here on, mask cache, drawn tiles and weights exist
        path = places.tokens_path(flags.work, "demo", places.encoder_key(recipe.encoder_choices[0]), recipe, "last")
        encoder = load_encoder(recipe.encoder_choices[0], device, lock=places.weights_lock(flags.work))
        batches = ready_batches(recipe, listed, encoder)
        precision = AUTOCAST[encoder.card.precision if device.type == "cuda" else "float32"]
        check(path, batches, encoder, precision, recipe)
        times = []
        for _ in range(rounds):
            shutil.rmtree(path)
            floor = timed(lambda: forward(encoder, batches, precision), device)
            times.append((*timed(lambda: extract(recipe, listed, flags, lambda _: None), device), *floor))
    ratio = statistics.median(whole / floor for whole, _, floor, _ in times)
    work = statistics.median(whole / floor for _, whole, _, floor in times)
    whole, _, floor, _ = (statistics.median(column) for column in zip(*times, strict=True))
    n = sum(len(batch) for _, batch in batches)
    print(f"{name}: {n} views of {tile_px} px, {threads} threads; extraction {n / whole:.2f} views/s, ", end="")
    print(f"forward pass alone {n / floor:.2f} views/s; ratios {[round(t[0] / t[2], 3) for t in times]}; ", end="")
    print(f"processor time {work:.3f} x")
    return f"extract-{name} ratio={ratio:.3f} target=<={TARGET[device.type]:.2f} device={device_name(device)}"


def ready_batches(recipe: Recipe, listed: Manifest, encoder: Encoder) -> list[tuple[str, torch.Tensor]]:
    """Return (tile id, input tensor on the device) of each batch of the extraction."""
    dataset = listed.datasets["demo"]
    grid = GridGeometry(recipe.tile_px, encoder.card.patch, recipe.grid)
    batches = []
    for entry in dataset.tiles:
        if not any(entry.id in dataset.splits.of(split) for split in ("train", "val", "test")):
            continue
        image = resize_tile(read_tile(dataset, entry, listed.folder), recipe.tile_px).image
        count = recipe.views.count + 1 if entry.id in dataset.splits.train else 1
        views = [render_view(recipe.views, "demo", entry.id, view, image) for view in range(count)]
        size = batch_size(encoder.device)
        for at in range(0, count, size):
            stacked = torch.stack([torch.as_tensor(view) for view in views[at : at + size]])
            batches.append((entry.id, input_pixels(encoder, stacked, grid)))
    return batches


def forward(encoder: Encoder, batches: list[tuple[str, torch.Tensor]], precision: torch.dtype | None) -> None:
    """Run every batch through the encoder and keep nothing."""
    for _, pixels in batches:
        tokens(encoder, pixels, precision)


def tokens(encoder: Encoder, pixels: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
    """Return the output of the encoder's module (view, token, channel)."""
    kind = pixels.device.type
    with torch.inference_mode(), torch.autocast(kind, dtype=precision, enabled=precision is not None):
        return encoder.module.forward_features(pixels)


def check(
    path: Path,
    batches: list[tuple[str, torch.Tensor]],
    encoder: Encoder,
    precision: torch.dtype | None,
    recipe: Recipe,
) -> None:
    """Stop unless the cache holds the tokens of the first batch."""
    tile, pixels = batches[0]
    grids = tokens(encoder, pixels, precision)[:, encoder.card.prefix_tokens :].float().transpose(1, 2)
    cached = torch.from_numpy(open_cache(path, "tokens", {}).read(tile, 0, len(pixels))).float()
    off = (grids.reshape(cached.shape).cpu() - cached).abs().max().item()
    if off > 2e-3 * cached.abs().max().item():
        raise SystemExit(f"the cache does not hold the tokens of the forward pass: they differ by {off}")


def timed(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the wall time (including the device) and the processor time of a call, in seconds."""
    start, worked = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - worked


if __name__ == "__main__":
    main()
