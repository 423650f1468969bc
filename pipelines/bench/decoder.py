"""One training step of the decoder in fast and in direct form: are they equal, how fast are they, how much memory?

    python pipelines/bench/decoder.py            the paper's size: 512 px, width 256, batch 8
    python pipelines/bench/decoder.py --quick    small, within 50 s on two cores

The direct form is interpolate + conv3x3 + ReLU in channels-last order. Steps of both forms alternate, after one step of
each as warm-up. Memory is the peak of one step minus the memory before it; on a CPU each form has a fresh process.
If the forms disagree, the script exits with code 1 before it measures times. A missed target is printed; it is not an
error.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from fmcache.decoders.decoder import Decoder, Form, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.losses import segmentation_loss
from fmcache.decoders.train import reproducible
from fmcache.grid import GridGeometry
from fmcache.specs import FitSpec

LABELS = 3
FORMS: tuple[Form, ...] = ("direct", "fast")
CHANNELS = {16: 1024, 14: 1536, 8: 384}
SPEED, MEMORY = 2.0, 0.5


def main() -> int:
    args = _arguments()
    if args.memory_of:
        print(_peak_bytes(args, args.patch[0], args.memory_of))
        return 0
    print(
        f"python {platform.python_version()} · torch {torch.__version__} · {device_name(args)} · "
        f"{args.tile_px} px, width {args.width}, batch {args.batch}, {args.precision}, {args.repeats} repeats"
    )
    for patch in args.patch:
        if not agree(args, patch):
            return 1
    lines = []
    for patch in args.patch:
        lines += [time_ratio(args, patch), memory_ratio(args, patch)]
    print(*lines, sep="\n")
    return 0


def agree(args: argparse.Namespace, patch: int) -> bool:
    """Print and return whether logits and gradients agree, on one item with a quarter of the tile's side.

    In float32 rounding can make a sum near zero positive in one form and negative in the other. Then only one of them
    passes ReLU, and gradients differ by more than rounding. Therefore the strict test of gradients uses float64. Tensor
    cores would round the inputs of float32 convolutions to 10 bits (TF32); here they may not.
    """
    small = argparse.Namespace(**{**vars(args), "tile_px": args.tile_px // 4, "batch": 1})
    equal = True
    for dtype, tolerances in ((torch.float64, (1e-10, 1e-10)), (torch.float32, (1e-5, 5e-3))):
        values = []
        for form in FORMS:
            decoder, tokens, truth = _inputs(small, patch, form, dtype)
            with reproducible(torch.device(args.device), "float32-ieee"):
                logits = decoder(tokens)
                of_step = logits.detach().clone()
                logits.backward(segmentation_loss(logits, truth, FitSpec()).gradient)
            values.append([of_step, *(p.grad for p in decoder.parameters())])
        first, *others = (((a - b).norm() / a.norm()).item() for a, b in zip(*values, strict=True))
        print(
            f"patch {patch}, {dtype}: relative difference of logits {first:.1e}, of gradients up to {max(others):.1e}"
        )
        equal = equal and first <= tolerances[0] and max(others) <= tolerances[1]
    print(f"patch {patch}: the forms {'agree' if equal else 'DISAGREE'}")
    return equal


def time_ratio(args: argparse.Namespace, patch: int) -> str:
    """Return the line with the ratio direct time / fast time."""
    steps = {form: _step(args, patch, form) for form in FORMS}
    seconds: dict[Form, list[float]] = {form: [] for form in FORMS}
    for repeat in range(args.repeats + 1):
        for form, step in steps.items():
            _wait(args)
            start = time.perf_counter()
            step()
            _wait(args)
            if repeat:
                seconds[form].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["direct"], seconds["fast"], strict=True)]
    direct, fast = (statistics.median(seconds[form]) for form in FORMS)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"patch {patch}: direct {direct:.3f} s, fast {fast:.3f} s; ratios of pairs {spread}")
    return f"decoder_step_speed_p{patch} ratio={direct / fast:.2f} target=>={SPEED:.2f} device={device_name(args)}"


def memory_ratio(args: argparse.Namespace, patch: int) -> str:
    """Return the line with the ratio fast memory / direct memory."""
    if args.device == "cuda":
        peaks = {form: _peak_bytes(args, patch, form) for form in FORMS}
    else:
        given = [
            f"--{key.replace('_', '-')}={getattr(args, key)}" for key in ("tile_px", "width", "batch", "precision")
        ]
        command = [sys.executable, __file__, *given, f"--threads={args.threads}", f"--patch={patch}"]
        peaks = {
            form: int(subprocess.run([*command, f"--memory-of={form}"], check=True, capture_output=True).stdout)
            for form in FORMS
        }
    direct, fast = peaks["direct"], peaks["fast"]
    print(f"patch {patch}: peak of a step: direct {direct / 2**20:.0f} MiB, fast {fast / 2**20:.0f} MiB")
    return f"decoder_step_memory_p{patch} ratio={fast / direct:.2f} target=<={MEMORY:.2f} device={device_name(args)}"


def device_name(args: argparse.Namespace) -> str:
    if args.device == "cuda":
        return torch.cuda.get_device_name().replace(" ", "-")
    return f"cpu-{torch.backends.cpu.get_cpu_capability()}-{args.threads}-threads"


def _inputs(
    args: argparse.Namespace, patch: int, form: Form, dtype: torch.dtype = torch.float32
) -> tuple[Decoder, torch.Tensor, torch.Tensor]:
    grid = GridGeometry(args.tile_px, patch)
    decoder = Decoder(Shape((CHANNELS.get(patch, 1024),), args.width, LABELS, grid), form=form)
    initialise(decoder, 0)
    decoder.to(args.device, dtype, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(args.batch, CHANNELS.get(patch, 1024), grid.side, grid.side, generator=generator)
    truth = torch.randint(0, LABELS, (args.batch, grid.covered_px, grid.covered_px), generator=generator)
    tokens = tokens.to(args.device, dtype, memory_format=torch.channels_last)
    return decoder, tokens, truth.to(args.device, torch.uint8)


def _step(args: argparse.Namespace, patch: int, form: Form) -> Callable[[], None]:
    decoder, tokens, truth = _inputs(args, patch, form)
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=1e-4)
    decoder.precision = args.precision

    def step() -> None:
        with reproducible(torch.device(args.device), args.precision):  # as fit does: on a GPU some kernels are slower
            logits = decoder(tokens)
            loss = segmentation_loss(logits, truth, FitSpec())
            optimiser.zero_grad()
            logits.backward(loss.gradient)
            optimiser.step()

    return step


def _peak_bytes(args: argparse.Namespace, patch: int, form: Form) -> int:
    """Return the peak memory of one step minus the memory before it; on a CPU this needs a fresh process."""
    step = _step(args, patch, form)
    if args.device == "cuda":
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    step()
    return _peak_rss() - before


def _peak_rss() -> int:
    """Return the peak memory of this process; getrusage would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _wait(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="192 px, batch 2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tile-px", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--patch", type=int, nargs="+", default=[16, 14])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tile_px = args.tile_px or (192 if args.quick else 512)
    args.batch = args.batch or (2 if args.quick else 8)
    torch.set_num_threads(args.threads)
    return args


if __name__ == "__main__":
    sys.exit(main())
