"""Time, memory and size of the report of a large study: 15 encoders, 3 controls, 10 seeds, 2 datasets, 100 test tiles.

    python pipelines/bench/report.py             # a minute or two, and 1 GB of disk in a temporary folder
    python pipelines/bench/report.py --quick     # 3 encoders, 3 controls, 2 seeds, 10 test tiles

Results are drawn from a seed and written as `fit` writes them, with predictions and pictures; then `fmcache report`
runs in a process of its own. Weights (of real size) and the predictions of an encoder are one file each, linked
into its runs: reading costs what it costs for real, and the disk holds them once. Peak memory is the largest of the
process and of what it starts.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from PIL import Image

from fmcache.encoders.cards import Card, read_card, study_encoders
from fmcache.manifest import TileEntry
from fmcache.scores.calibration import BINS, write_calibration
from fmcache.scores.kept_pictures import write_tile_pictures, write_token_pictures
from fmcache.scores.predictions import Predictions, write_predictions
from fmcache.scores.records import COUNTS_SCHEMA, EncoderInfo, Extraction, RunRecord, RunResults
from fmcache.scores.run_files import CALIBRATION, PREDICTIONS, WEIGHTS, find_runs, run_folder, whole_folder, write_run
from fmcache.specs import Recipe
from fmcache.strict import builtins
from fmcache.tiles.demo import draw_tile

STUDY = "large"
CONTROLS = ("raw-pixels", "colour-texture", "random-vits16")
LABELS = (("tumour", "#d55e00"), ("stroma", "#009e73"), ("other", "#0072b2"))
DATASETS = ("alpha", "beta")
EPOCHS, VALIDATED_EVERY = 50, 10
TILE_PX = 512
WEIGHTS_BYTES = 10_494_000
"""A decoder of 2.6 million parameters."""
TARGET_S, TARGET_MB = 60, 1000


class Picture(NamedTuple):
    """A test tile: its JPEG, its truth (y, x) uint8, and tokens as colours, (row, col, 3) uint8."""

    jpeg: bytes
    truth: np.ndarray
    tokens: np.ndarray


class Size(NamedTuple):
    """The size of a study: numbers of encoders (without the controls), seeds, and test tiles per dataset."""

    encoders: int
    seeds: int
    tiles: int


def main() -> None:
    """Draw the results, run the report, and print its time, peak memory and files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small study")
    size = Size(3, 2, 10) if parser.parse_args().quick else Size(15, 10, 100)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        began = time.perf_counter()
        runs = write_results(work / "results", size)
        print(f"{runs} runs written in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "fmcache", "report", "--work", str(work)], check=True, stdout=subprocess.DEVNULL
        )
        wall_s = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"fmcache report: {wall_s:.1f} s (target < {TARGET_S}), {used.ru_utime + used.ru_stime:.1f} s of a core")
        print(f"peak memory: {used.ru_maxrss / 1000:.0f} MB (target < {TARGET_MB})")
        print_files(work / "report")


def print_files(report: Path) -> None:
    """Print number and bytes of the files of a report by ending, and the largest files."""
    files = [path for path in report.rglob("*") if path.is_file()]
    number, total = Counter(path.suffix for path in files), Counter[str]()
    for path in files:
        total[path.suffix] += path.stat().st_size
    for ending, size in total.most_common():
        print(f"{ending or 'other'}: {number[ending]} files, {size / 1000:.0f} kB")
    for path in sorted(files, key=lambda path: -path.stat().st_size)[:5]:
        print(f"{path.relative_to(report)}: {path.stat().st_size / 1000:.0f} kB")


def write_results(results: Path, size: Size) -> int:
    """Write the results of all runs; return their number."""
    results.mkdir(parents=True)
    weights = results.parent / WEIGHTS
    weights.write_bytes(np.random.default_rng(0).bytes(WEIGHTS_BYTES))
    pictures = drawn_pictures(size)
    for dataset in DATASETS:
        write_tile_pictures(results / STUDY / dataset, {tile: picture.jpeg for tile, picture in pictures.items()})
    for dataset, encoder, runs in by_encoder(drawn_runs(size)):
        kept = results.parent / f"{dataset}-{encoder}"
        kept.mkdir()
        write_predictions(kept, predicted(pictures, encoder))
        write_calibration(kept, tuple(pictures), np.full((len(pictures), BINS, 3), 1_000))
        for run in runs:
            with whole_folder(run_folder(results, STUDY, dataset, encoder, run.record.seed)) as folder:
                os.link(weights, folder / WEIGHTS)
                for name in (PREDICTIONS, CALIBRATION):
                    os.link(kept / name, folder / name)
                write_run(folder, run)
        grids = {tile: picture.tokens for tile, picture in pictures.items()}
        write_token_pictures(run_folder(results, STUDY, dataset, encoder, 0).parent, grids)
    return len(find_runs(results, STUDY))


def by_encoder(runs: Iterator[RunResults]) -> Iterator[tuple[str, str, Iterator[RunResults]]]:
    """Yield dataset, encoder and its runs."""
    for (dataset, encoder), of_encoder in groupby(runs, lambda run: (run.record.dataset, run.record.encoder.name)):
        yield dataset, encoder, of_encoder


def drawn_pictures(size: Size) -> dict[str, Picture]:
    """Return the pictures of the test tiles: a few drawn tiles, each shifted several times."""
    drawn = [draw_tile(0, TileEntry(f"d{i}"), TILE_PX) for i in range(8)]
    pictures = {}
    for i in range(size.tiles):
        image, mask = (np.roll(of, 32 * (i // len(drawn)), axis=0) for of in drawn[i % len(drawn)])
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        pictures[f"t{i:03d}"] = Picture(file.getvalue(), mask, np.ascontiguousarray(image[::16, ::16]))
    return pictures


def predicted(pictures: Mapping[str, Picture], encoder: str) -> Predictions:
    """Return the predictions of an encoder: the truth, shifted by a number of pixels that depends on its name."""
    truth = np.stack([picture.truth for picture in pictures.values()])
    return Predictions(tuple(pictures), np.roll(truth, 2 + len(encoder), axis=2), truth)


def drawn_runs(size: Size) -> Iterator[RunResults]:
    """Yield all runs: Dice depends on label, tile, encoder and seed; controls are worse than encoders."""
    rng = np.random.default_rng(1)
    names = (*study_encoders()[: size.encoders], *CONTROLS)
    for dataset in DATASETS:
        tile = rng.normal(0, 0.35, (size.tiles, len(LABELS)))
        pixels = rng.integers(8_000, 90_000, (size.tiles, len(LABELS)))
        for i, name in enumerate(names):
            quality = (2.0 - 0.06 * i) if name not in CONTROLS else 0.2
            own = quality + tile + rng.normal(0, 0.25, tile.shape)
            for seed in range(size.seeds):
                logit = own + rng.normal(0, 0.08, len(LABELS)) + rng.normal(0, 0.1, tile.shape)
                hit = np.rint(pixels / (1 + np.exp(-logit))).astype(np.int64)
                yield RunResults(_record(dataset, name, seed, size), _counts(hit, pixels), _curve(rng, quality))


def _record(dataset: str, name: str, seed: int, size: Size) -> RunRecord:
    card = read_card(name)
    random, params = card.random_weights, card.params or 0
    encoder = EncoderInfo(
        card.name, card.title, params, card.width, card.patch, card.control, random, "" if card.control else "ab" * 32,
        card.licence, card.citation, "" if card.control else f"{card.name}.safetensors",
    )  # fmt: skip
    views = 50 * 15 + size.tiles + 5
    tests = [f"t{i:03d}" for i in range(size.tiles)]
    return RunRecord(
        study=STUDY, dataset=dataset, dataset_title=dataset.title(), encoder=encoder, seed=seed,
        identity={"seed": seed, "tokens": _tokens(card), "splits": {"test": tests}},
        recipe=builtins(Recipe(name=STUDY, datasets=DATASETS)), labels=LABELS, mpp=0.5,
        tiles={"train": 15, "val": 5, "test": size.tiles}, label_pixels={"train": (500_000, 900_000, 700_000)},
        groups={tile: f"patient {i // 2}" for i, tile in enumerate(tests)}, decoder_params=2_623_491, best_epoch=40,
        extraction=Extraction(views * (0.01 + params / 4e9), views, views * 700_000, views, "cpu"), val_dice=0.8,
        collapsed=(), still_falling=False, device="cpu", threads=2, versions={"fmcache": "0.1.0"}, wall_s=20.0,
    )  # fmt: skip


def _tokens(card: Card) -> dict[str, object]:
    fields = ("name", "architecture", "patch", "width", "prefix_tokens", "mean", "std")
    known = {field: builtins(card)[field] for field in fields}
    return {"encoder": known, "tap": "last", "grid": "fit", "store": "float16", "precision": "float32"}


def _counts(hit: np.ndarray, pixels: np.ndarray) -> pl.DataFrame:
    missed = pixels - hit
    rows = [
        ("test", f"t{tile:03d}", label, hit[tile, i], missed[tile, i], missed[tile, i])
        for tile in range(len(hit))
        for i, (label, _) in enumerate(LABELS)
    ]
    rows += [("val", f"v{tile}", label, 900, 50, 50) for tile in range(5) for label, _ in LABELS]
    return pl.DataFrame(rows, schema=COUNTS_SCHEMA, orient="row")


def _curve(rng: np.random.Generator, quality: float) -> pl.DataFrame:
    epochs = np.arange(1, EPOCHS + 1)
    learnt = 1 - np.exp(-epochs / 6)
    loss = 1.6 - (0.8 + 0.15 * quality) * learnt + rng.normal(0, 0.02, EPOCHS)
    dice = learnt / (1 + np.exp(-quality))
    losses = dict.fromkeys(("learning_rate", "loss", "cross_entropy", "dice_loss"), loss)
    validated = [float(of) if epoch % VALIDATED_EVERY == 0 else None for epoch, of in zip(epochs, dice, strict=True)]
    return pl.DataFrame({"epoch": epochs, **losses, "val_dice": validated})


if __name__ == "__main__":
    main()
