r"""CPU seconds of one training epoch of the decoder from stored token grids: fmcache beside its nearest peers.

    python -m venv eva
    eva/bin/pip install torch==2.14.1 torchvision "kaiko-eva[vision]==0.4.5" "jsonargparse<4.52"
    python -m venv soma
    soma/bin/pip install torch==2.14.1 torchvision
    soma/bin/pip install --no-deps soma-pathology==2.2.0 slide2vec==7.1.4 hs2p==6.1.0
    soma/bin/pip install "transformers<5" "pyarrow<26" pandas rich h5py safetensors scikit-learn scikit-image \
        scikit-survival matplotlib timm psutil croma omegaconf opencv-python-headless wandb einops einops-exts
    python pipelines/bench/peers.py --soma soma/bin/python --eva eva/bin/python

Every side stores random tokens of 384 channels and masks of 3 labels for 15 tiles in its own format, and trains with
its own loop, batches of 8, one thread, no validation after epochs. The time of an epoch is the difference between a
long and a short run, divided by the difference of their epochs; both follow a run as warm-up in the same process. So
start-up, reading a cache into memory (fmcache) and validation after the last epoch drop out. Sides take turns, each in
a fresh process of its environment. Nothing is downloaded. (With all its dependencies, soma did not install: pip tried
an old package that needs pkg_resources.)

fmcache, fmcache-norm: `fmcache.decoders.train.train`, decoders ``paper`` and ``paper-norm``.
soma: `soma.fit` with `LightweightConvDecoder`, which is the paper's with GroupNorm, and GroupNorm and ReLU after the
projection; soma-plain: without these. eva: `eva.core.Trainer` and `SemanticSegmentationModule` with `Decoder2D` around
the paper's layers; eva-ms: `ConvDecoderMS` as in its own segmentation recipes, another decoder: two convolutions, at
twice and four times the side of the token grid.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # the environments of the peers have no fmcache
    from fmcache.cache.header import Kind
    from fmcache.cache.reader import Cache
    from fmcache.specs import DecoderKind

CHANNELS, PATCH, WIDTH, LABELS, TILES, BATCH, BLOCKS = 384, 16, 32, 3, 15, 8, 4
EPOCHS = {224: (1, 8), 512: (1, 4)}
"""Tile size: epochs of the short and the long run."""
TARGET = 3.0


class Side(NamedTuple):
    """One side, ready to train: its decoder's parameters, and a function that trains for so many epochs."""

    parameters: int
    fit: Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fmcache", default=sys.executable, help="python of the environment, as for the peers")
    parser.add_argument("--soma")
    parser.add_argument("--eva")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--tile-px", type=int, nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.tile_px[0])))
        return
    pythons = {name: getattr(args, name.partition("-")[0]) for name in args.sides}
    for px in args.tile_px:
        compare(px, {name: python for name, python in pythons.items() if python}, args.rounds)


def compare(px: int, pythons: dict[str, str], rounds: int) -> None:
    """Print seconds of every side at one tile size, and the ratios to fmcache within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in pythons}
    found: dict[str, dict[str, Any]] = {}
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PYTHONPATH": str(Path(__file__).parents[2])}
    loads = []
    for number in range(1, rounds + 1):
        for name, python in pythons.items():
            loads.append(os.getloadavg()[0])
            command = [python, __file__, "--one", name, "--tile-px", str(px)]
            ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(ran.stdout.splitlines()[-1])
            seconds[name].append(found[name]["seconds"])
            print(f"{px} px, round {number}, {name}: {seconds[name][-1]:.3f} s", flush=True)
    print(f"{px} px, {rounds} rounds, load {min(loads):.1f} to {max(loads):.1f}")
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds.get("fmcache", taken), strict=True)]
        print(
            f"  {name}: {spread(taken)} s, {spread(ratios)} x fmcache (target >= {TARGET:.0f}), "
            f"{found[name]['parameters']} parameters, {found[name]['versions']}"
        )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def measure(name: str, px: int) -> dict[str, Any]:
    """Return CPU seconds of one epoch of a side in this process, its children included."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    side = px // PATCH
    tokens = rng.normal(size=(TILES, CHANNELS, side, side)).astype(np.float16)
    blocks = rng.integers(0, LABELS, (TILES, px // 32, px // 32), np.uint8)
    masks = blocks.repeat(32, axis=1).repeat(32, axis=2)
    short, long = EPOCHS[px]
    with tempfile.TemporaryDirectory() as folder:
        made = SIDES[name](Path(folder), tokens, masks)
        made.fit(1)
        times = [cpu_seconds()]
        for epochs in (short, long):
            made.fit(epochs)
            times.append(cpu_seconds())
    seconds = (times[2] - 2 * times[1] + times[0]) / (long - short)
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    return {"seconds": seconds, "parameters": made.parameters, "versions": versions}


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def fmcache(folder: Path, tokens: np.ndarray, masks: np.ndarray, kind: DecoderKind) -> Side:
    """Token grids as float16 and masks as uint8 in two sealed Zarr caches, read into memory when a run starts."""
    import torch

    from fmcache.cache.reader import open_cache
    from fmcache.cache.writer import open_writer, write_shard
    from fmcache.decoders.batches import load_token_grids
    from fmcache.decoders.decoder import Decoder, form_for
    from fmcache.decoders.layers import Shape
    from fmcache.decoders.train import Training, train
    from fmcache.grid import GridGeometry
    from fmcache.specs import FitSpec

    tiles, cpu = [f"t{i}" for i in range(TILES)], torch.device("cpu")
    identity = {"tiles": dict.fromkeys(tiles, "")}

    def stored(what: Kind, values: np.ndarray) -> Cache:
        path, demand = folder / "encoder" / f"{what}.zarr", dict.fromkeys(tiles, 1)
        with open_writer(path, what, identity, values.shape[1:], str(values.dtype), demand, {}) as writer:
            writer.begin()
            for shard in writer.missing():
                write_shard(path, what, shard, values[shard.tile][None])
            writer.seal()
        return open_cache(path, what, identity)

    token_cache, mask_cache = stored("tokens", tokens), stored("view_bank", masks)
    decoder = Decoder(Shape((CHANNELS,), WIDTH, LABELS, GridGeometry(masks.shape[-1], PATCH)), kind, form_for(cpu))

    def fit(epochs: int) -> object:
        spec = FitSpec(epochs=epochs, validate_epochs=epochs, batch=BATCH)
        grids, rest = (
            load_token_grids(token_cache, mask_cache, some, range(1), cpu, folder) for some in (tiles, tiles[:1])
        )
        return train(Training(decoder, grids, rest, rest, spec, "pooled", cpu), 0)

    return Side(sum(p.numel() for p in decoder.parameters()), fit)


def soma(folder: Path, tokens: np.ndarray, masks: np.ndarray, *, plain: bool) -> Side:
    """One .pt file (float16) and one PNG mask a tile, read at each use."""
    import soma
    import torch
    from PIL import Image
    from soma.data import CachedGridSource, LabelMapEntry, LabelMapSource
    from soma.data.geometry import compute_dense_geometry
    from soma.extract.dense.store import dense_grid_metadata, write_dense_grid
    from soma.learn.grid import grid_loaders
    from soma.models.decoders import LightweightConvDecoder
    from soma.models.heads.segmentation import SegmentationHead
    from soma.models.model import DenseModel

    px = masks.shape[-1]
    about = dense_grid_metadata(
        compute_dense_geometry(target_size=px, patch_size=PATCH), feature_dim=CHANNELS, pad_mode="reflect"
    )
    entries = []
    for i, (grid, mask) in enumerate(zip(tokens, masks, strict=True)):
        write_dense_grid(folder / "grids", f"t{i}", torch.from_numpy(grid.copy()), about)
        Image.fromarray(mask).save(folder / f"t{i}.png")
        entries.append(LabelMapEntry(f"t{i}", folder / f"t{i}.png"))
    source, targets = CachedGridSource(folder / "grids"), LabelMapSource(entries, size=(px, px))
    head = SegmentationHead(num_classes=LABELS, geometry=source.geometry("t0"))
    decoder = LightweightConvDecoder(
        input_dim=CHANNELS, num_classes=LABELS, hidden_dim=WIDTH, num_upsample_blocks=BLOCKS
    )
    if plain:
        decoder.proj = decoder.proj[0]
        decoder.blocks = torch.nn.Sequential(*(m for m in decoder.blocks if not isinstance(m, torch.nn.GroupNorm)))
    loaders = grid_loaders(
        source, head=head, train=source.sample_ids, tune=None, tests={}, batch_size=BATCH, targets=targets
    )

    def fit(epochs: int) -> object:
        return soma.fit(
            DenseModel(decoder, head), loaders.train, patience=None, progress=False, max_epochs=epochs, device="cpu"
        )

    return Side(sum(p.numel() for p in decoder.parameters()), fit)


def eva(folder: Path, tokens: np.ndarray, masks: np.ndarray, *, own: bool) -> Side:
    """One .pt file of tokens (float32) and one of the mask (int64) a tile, read at each use, in this process."""
    import eva.core
    import torch
    from eva.core.trainers.functional import run_evaluation
    from eva.vision.data.datasets import EmbeddingsSegmentationDataset
    from eva.vision.losses import DiceCELoss
    from eva.vision.models.modules import SemanticSegmentationModule
    from eva.vision.models.networks.decoders.segmentation import ConvDecoderMS, Decoder2D
    from torch import nn

    rows = ["origin,embeddings,target,split"]
    for i, (grid, mask) in enumerate(zip(tokens, masks, strict=True)):
        torch.save([torch.from_numpy(grid).float()], folder / f"t{i}.pt")
        torch.save(torch.from_numpy(mask).long(), folder / f"t{i}-mask.pt")
        rows.append(f"t{i}.png,t{i}.pt,t{i}-mask.pt,train")
    (folder / "manifest.csv").write_text("\n".join(rows))
    layers: list[nn.Module] = [nn.Conv2d(CHANNELS, WIDTH, 1)]
    for _ in range(BLOCKS):
        upsampling = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        layers += [upsampling, nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(WIDTH, LABELS, 1))
    decoder = ConvDecoderMS(CHANNELS, LABELS) if own else Decoder2D(nn.Sequential(*layers))
    model = SemanticSegmentationModule(decoder, DiceCELoss(softmax=True, batch=True))
    loader = eva.core.DataLoader(BATCH, shuffle=True, num_workers=0, persistent_workers=False, prefetch_factor=None)
    data = eva.core.DataModule(
        eva.core.DatasetsSchema(train=EmbeddingsSegmentationDataset(str(folder), "manifest.csv", "train")),
        eva.core.DataloadersSchema(train=loader),
    )

    def fit(epochs: int) -> object:
        trainer = eva.core.Trainer(
            max_epochs=epochs, accelerator="cpu", limit_val_batches=0, enable_checkpointing=False, logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder / "logs"),
        )  # fmt: skip
        return run_evaluation(trainer, model, data, stages=["fit"])

    return Side(sum(p.numel() for p in decoder.parameters()), fit)


SIDES: dict[str, Callable[[Path, np.ndarray, np.ndarray], Side]] = {
    "fmcache": functools.partial(fmcache, kind="paper"),
    "soma-plain": functools.partial(soma, plain=True),
    "eva": functools.partial(eva, own=False),
    "soma": functools.partial(soma, plain=False),
    "fmcache-norm": functools.partial(fmcache, kind="paper-norm"),
    "eva-ms": functools.partial(eva, own=True),
}


if __name__ == "__main__":
    main()
