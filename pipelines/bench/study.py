"""Time of a whole study with the encoder in the loop, divided by the time of the same study from the cache.

    python pipelines/bench/study.py --quick                       # ViT-S, CPU, within 50 s on two cores
    python pipelines/bench/study.py --device cuda                 # ViT-L and ViT-g on a GPU, at the paper's size

Cached: `extract` and `fit` as a user runs them, with all seeds and all work (masks, loading, writing, reading). In the
loop: a reasonable training loop. It renders views ahead in threads, encodes each batch in the card's precision
(autocast), and trains the same decoder in its direct form; the time to encode validation and test tiles is not counted.
The loop runs `--loop-seeds` seeds, and its time is scaled to all seeds, because every seed costs the same there. It is
checked that both begin with the same losses. Weights are random, so no network is needed.

`study-NAME-bound` is (E + D) / (E / S + D'): the ratio if only the steps took time. E, D and D' are the seconds per
image of encoder, direct decoder step and cached decoder step, and S is the number of seeds; all are measured in the
same run. The table applies the measured times to other numbers of seeds and of passes over the views.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fmcache.cache.reader import open_cache
from fmcache.datasets.add import add
from fmcache.decoders.batches import Step, TokenGrids, epoch_steps, load_token_grids, steps_per_epoch
from fmcache.decoders.decoder import Decoder, form_for
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import Training, train
from fmcache.encoders.load import Encoder, load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.grid import GridGeometry
from fmcache.manifest import Manifest, TileEntry
from fmcache.runtime.devices import device_name, pick_device, thread_count, versions
from fmcache.runtime.prefetch import prefetch
from fmcache.scores.run_files import read_run, run_folder
from fmcache.specs import DecoderSpec, EncoderChoice, FitSpec, Precision, Recipe, ViewSpec
from fmcache.stages import places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.tiles.demo import draw_tile
from fmcache.tiles.images import Tile, read_tile, resize_tile
from fmcache.tiles.pixels import Pixels
from fmcache.tiles.views import render_mask, render_view

DATASET = "drawn"
ENCODERS = {"cpu": ["random-vits16"], "cuda": ["kaiko-vitl14", "h-optimus-0"]}
TARGETS = {"random-vits16": ">=2", "kaiko-vitl14": ">=4", "h-optimus-0": ">=6"}
LOSS_TOLERANCE = 1e-3
"""Largest accepted difference of the losses of the first epoch. The cache holds float16; such rounding errors grow with
the steps, so later losses may differ more. Their largest difference is printed."""


class Seconds(NamedTuple):
    """Measured seconds: the two stages of the cached study; encoding and training of one seed in the loop."""

    extract: float
    fit: float
    encode: float
    train: float


class InTheLoop:
    """The source of a seed's batches without a cache: views are rendered ahead in threads, and encoded when used."""

    def __init__(
        self,
        recipe: Recipe,
        tiles: dict[str, Tile],
        names: tuple[str, ...],
        encoder: Encoder,
        grid: GridGeometry,
        seed: int,
    ) -> None:
        self.tiles, self.views = names, range(1, recipe.views.count + 1)
        self.seconds = 0.0
        self._recipe, self._held, self._encoder, self._grid = recipe, tiles, encoder, grid
        self._precision: Precision = encoder.card.precision if encoder.device.type == "cuda" else "float32"
        self._pool = ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) - 1)))
        self._batches = prefetch(self._pool, self._render, self._steps(seed), 4)

    def _steps(self, seed: int) -> Iterator[Step]:
        for epoch in range(self._recipe.fit.epochs):
            yield from epoch_steps(self.tiles, len(self.views), self._recipe.fit, seed, epoch)

    def _render(self, step: Step) -> tuple[Pixels, Pixels]:
        images, masks = [], []
        for tile, view in step.tolist():
            held, index = self._held[self.tiles[tile]], self.views[view]
            images.append(render_view(self._recipe.views, DATASET, held.id, index, held.image))
            masks.append(render_mask(self._recipe.views, DATASET, held.id, index, held.mask))
        return np.stack(images), np.stack(masks)

    def close(self) -> None:
        """End the rendering threads."""
        self._pool.shutdown()

    def fetch(self, step: Step, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = next(self._batches)
        wait(device)
        start = time.perf_counter()
        tokens = token_grids(self._encoder, images, self._grid, self._precision)
        wait(device)
        self.seconds += time.perf_counter() - start
        return tokens, torch.from_numpy(masks).to(device)


def main() -> None:
    """Measure the encoders that were asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few small tiles and views, within 50 s on two cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all")
    parser.add_argument("--encoder", action="append", help="cards; without: ViT-S on a CPU, ViT-L and ViT-g on a GPU")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--loop-seeds", type=int, default=1, help="seeds with the encoder in the loop; scaled to --seeds"
    )
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--tiles", type=int, default=15, help="training tiles")
    parser.add_argument("--views", type=int, default=50, help="also the number of epochs: every view is used once")
    parser.add_argument("--width", type=int, default=256, help="of the decoder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tile_px, arguments.tiles, arguments.views, arguments.width = 224, 4, 4, 32
    device, threads = pick_device(arguments.device), thread_count(arguments.threads)
    torch.set_num_threads(threads)
    print(versions("fmcache", "torch", "timm", "zarr"), f"{threads} threads; load {os.getloadavg()[0]:.1f}")
    for name in arguments.encoder or ENCODERS[device.type]:
        measure(name, arguments, device, threads)


def measure(name: str, arguments: Any, device: torch.device, threads: int) -> None:
    """Run the study in both ways, and print the results."""
    recipe = Recipe(
        name="bench", datasets=(DATASET,), encoders=(EncoderChoice(name, random_weights=name != "random-vits16"),),
        tile_px=arguments.tile_px, views=ViewSpec(count=arguments.views), decoder=DecoderSpec(width=arguments.width),
        fit=FitSpec(seeds=arguments.seeds, epochs=arguments.views, learning_rate=1e-3),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        manifest = drawn(Path(folder), arguments.tiles, arguments.tile_px)
        flags = Flags(Path(folder) / "work", device=str(device), threads=threads)
        start = time.perf_counter()
        raise_first(extract(recipe, manifest, flags, quiet))
        extracted = time.perf_counter()
        raise_first(fit(recipe, manifest, flags, quiet))
        fitted = time.perf_counter()
        encode, rest = in_the_loop(recipe, manifest, flags, device, threads, arguments.loop_seeds)
        print_results(name, recipe, arguments, Seconds(extracted - start, fitted - extracted, encode, rest), device)


def in_the_loop(
    recipe: Recipe, manifest: Manifest, flags: Flags, device: torch.device, threads: int, seeds: int
) -> tuple[float, float]:
    """Return the loop's seconds per seed for encoding and for the rest; stop if losses differ from the cached run."""
    choice, dataset = recipe.encoder_choices[0], manifest.dataset(DATASET)
    encode, rest = [], []
    encoder = load_encoder(choice, device)
    grid = GridGeometry(recipe.tile_px, encoder.card.patch, recipe.grid)
    val, test = (stored(recipe, manifest, flags, split, device) for split in ("val", "test"))
    tiles = {
        entry.id: resize_tile(read_tile(dataset, entry, manifest.folder), recipe.tile_px)
        for entry in dataset.tiles
        if entry.id in dataset.splits.train
    }
    decoder = Decoder(Shape((encoder.card.width,), recipe.decoder.width, len(dataset.labels), grid), form="direct")
    decoder.to(memory_format=torch.channels_last)
    for seed in range(seeds):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        source = InTheLoop(recipe, tiles, dataset.splits.train, encoder, grid, seed)
        fitted = train(Training(decoder, source, val, test, recipe.fit, recipe.dice, device), seed)
        wait(device)
        source.close()
        encode.append(source.seconds)
        rest.append(time.perf_counter() - start - source.seconds)
        key = places.encoder_key(choice)
        cached = read_run(run_folder(places.results(flags.work), recipe.name, DATASET, key, seed))
        off = [abs(ours.loss - theirs) for ours, theirs in zip(fitted.curve, cached.curve["loss"], strict=True)]
        if off[0] > LOSS_TOLERANCE:
            sys.exit(f"seed {seed}: losses of the first epoch differ by {off[0]:.3g}, more than {LOSS_TOLERANCE}")
        print(f"seed {seed}: losses of both ways agree within {off[0]:.1e} in the first epoch, {max(off):.1e} in all")
    return statistics.mean(encode), statistics.mean(rest)


def stored(recipe: Recipe, manifest: Manifest, flags: Flags, split: str, device: torch.device) -> TokenGrids:
    """Return the grids of the untouched views of a split, from the cache."""
    key = places.encoder_key(recipe.encoder_choices[0])
    tokens = open_cache(places.tokens_path(flags.work, DATASET, key, recipe, "last"), "tokens", {})
    mask_cache = open_cache(places.mask_cache_path(flags.work, DATASET, recipe), "view_bank", {})
    return load_token_grids(
        tokens, mask_cache, manifest.dataset(DATASET).splits.of(split), range(1), device, flags.work
    )


def print_results(name: str, recipe: Recipe, arguments: Any, seconds: Seconds, device: torch.device) -> None:
    """Print the measurements of an encoder, and the ratio for other numbers of seeds and passes."""
    seeds, used = recipe.fit.seeds, arguments.tiles * recipe.fit.epochs * recipe.fit.passes_per_epoch
    per_seed = seconds.fit / seeds
    steps = steps_per_epoch(arguments.tiles, recipe.fit) * recipe.fit.epochs
    print(
        f"{name}: {arguments.tiles} tiles of {recipe.tile_px} px x {recipe.views.count} views, decoder width "
        f"{recipe.decoder.width} ({form_for(device)} form), {steps} steps per seed"
    )
    print(
        f"  cached: extract {seconds.extract:.1f} s, fit {seconds.fit:.1f} s for {seeds} seeds; "
        f"in the loop: {seconds.encode:.1f} s encoding + {seconds.train:.1f} s training per seed"
    )
    encode, direct, cached = (value / used for value in (seconds.encode, seconds.train, per_seed))
    where = device_name(device)

    def ratio(n_seeds: int, passes: int = 1) -> float:
        loop = n_seeds * passes * (seconds.encode + seconds.train)
        return loop / (seconds.extract + n_seeds * passes * per_seed)

    bound = (encode + direct) / (encode / seeds + cached)
    print("  | times slower in the loop | " + " | ".join(f"{n} seeds" for n in (1, 2, 5, 10, 30)) + " |")
    print("  |---|" + "---|" * 5)
    for passes in (1, 5, 10):
        row = " | ".join(f"{ratio(n, passes):.1f}" for n in (1, 2, 5, 10, 30))
        print(f"  | each seed uses every view {passes} x | {row} |")
    print("  The number of encoders does not change the ratio; only the masks, drawn once, are shared by all encoders.")
    print(f"study-{name} ratio={ratio(seeds):.2f} target={TARGETS.get(name, '(none)')} device={where}")
    print(f"study-{name}-bound ratio={bound:.2f} target=(floor) device={where}", flush=True)


def drawn(folder: Path, tiles: int, tile_px: int) -> Manifest:
    """Draw tiles, write them as image files, and list them in a manifest."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(tiles + 4):
        image, mask = draw_tile(0, TileEntry(id=f"t{i:02d}", group=f"g{i:02d}"), tile_px)
        Image.fromarray(image).save(folder / "images" / f"t{i:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"t{i:02d}.png")
    path = folder / "data_manifest.yaml"
    add(
        path,
        DATASET,
        folder / "images",
        folder / "masks",
        labels="tumour=0,stroma=1,other=2",
        ignore="255",
        mpp=None,
        groups="",
        split=f"{tiles}/2/2",
        seed=0,
        replace=False,
    )
    return Manifest(path)


def raise_first(failures: list[Any]) -> None:
    if failures:
        raise failures[0].error


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
