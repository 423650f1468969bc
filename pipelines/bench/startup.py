"""Start-up of the commands: processor time of a command with nothing to do, divided by that of its imports alone.

    python pipelines/bench/startup.py              # about two minutes on two cores

Each command runs in a folder with a finished small study, so that hardly any work is left. The lower bound is a fresh
process that imports the modules that the command had loaded when it ended, in the same order. Both are measured in
turn; the ratio is the median over rounds. The table also states which large packages a command loads.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

TARGET = 1.2
RECIPE = """\
name: small
datasets: [tiny]
encoders: [raw-pixels]
tile_px: 32
views: {count: 1}
decoder: {width: 4}
fit: {seeds: 1, epochs: 1}
"""
PREPARE = (
    "data add tiny --images images --masks masks --labels dark=0,light=1 --split 2/1/1 --mpp 0.5", "run small.yaml",
)  # fmt: skip
COMMANDS = (
    "--help", "fit --help", "init", "data list", "data show tiny --into shown", "encoders list", "encoders show uni",
    "cache ls", "plan small.yaml --no-measure", "extract --recipe small.yaml", "fit --recipe small.yaml",
    "screen", "report no-such-study", "predict no-such-slide.svs --study small", "export --study small --to bundle",
)  # fmt: skip
LARGE = ("torch", "timm", "torchvision", "transformers", "zarr", "polars", "matplotlib", "dask", "distributed", "cv2",
         "PIL", "rasterio", "scipy", "boto3", "huggingface_hub")  # fmt: skip
NOTING = """\
import atexit, os, sys
modules = sys.modules
atexit.register(lambda: open(os.environ["LOADED"], "w").write(" ".join(modules)))
sys.argv[0] = "fmcache"
from fmcache.cli import main
main()
"""
IMPORTING = """\
import importlib, sys
for name in open(sys.argv[1]).read().split():
    try:
        importlib.import_module(name)
    except Exception:  # a part of a module that cannot be imported by its name
        pass
"""


def main() -> None:
    """Measure all commands, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "small.yaml").write_text(RECIPE)
        draw(Path(folder))
        for command in PREPARE:
            subprocess.run([sys.executable, "-m", "fmcache", *command.split()], cwd=folder, check=True)
        print("| command | processor s | its imports alone | ratio | large packages |\n|---|---|---|---|---|")
        ratios = [measured(command, Path(folder), rounds) for command in COMMANDS]
    worst = max(ratios)
    print(f"startup ratio={worst:.3f} target=<={TARGET:.2f} device=cpu load={os.getloadavg()[0]:.1f}")


def draw(folder: Path) -> None:
    """Write four tiles of random pixels and their masks: the label of a pixel is whether it is light."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8)
    for kind, values in (("images", pixels), ("masks", pixels // 128)):
        (folder / kind).mkdir()
        for i, tile in enumerate(values):
            Image.fromarray(tile).convert("RGB" if kind == "images" else "L").save(folder / kind / f"t{i}.png")


def measured(command: str, folder: Path, rounds: int) -> float:
    """Print the row of a command; return its ratio."""
    loaded = folder / "loaded.txt"
    whole = [sys.executable, "-c", NOTING, *command.split()]
    alone = [sys.executable, "-c", IMPORTING, str(loaded)]
    seconds(whole, folder, loaded)  # writes compiled files, and the list of modules
    modules = loaded.read_text().split()
    pairs = [(seconds(whole, folder, loaded), seconds(alone, folder, loaded)) for _ in range(rounds)]
    ratio = statistics.median(one / other for one, other in pairs)
    of_command, of_imports = (statistics.median(column) for column in zip(*pairs, strict=True))
    large = ", ".join(name for name in LARGE if name in modules)
    print(f"| `{command}` | {of_command:.2f} | {of_imports:.2f} | {ratio:.2f} | {large} |", flush=True)
    return ratio


def seconds(command: list[str], folder: Path, loaded: Path) -> float:
    """Return the processor seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"LOADED": str(loaded), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
