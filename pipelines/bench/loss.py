"""How fast is the loss, and how long is a step of the linear probe? Ratios within one run, after a check.

    python pipelines/bench/loss.py               512 px, 3 labels, batch 8, one thread
    python pipelines/bench/loss.py --quick       256 px

`loss_speed`: time of the same loss by torch's functions and autograd, divided by ours. `loss_floor`: the least time of
our loss, divided by ours: the label map is read and written three times, at the speed of a copy, and each value goes
through one exponential. `probe_step`: time of a step of the linear probe (1024 channels, patch 16), divided by that of
its loss. The script also prints how long 15 encoders x 10 seeds x 100 such steps take on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.losses import segmentation_loss
from fmcache.grid import GridGeometry
from fmcache.specs import FitSpec

LABELS, CHANNELS, PATCH = 3, 1024, 16
RUNS, STEPS, CORES = 15 * 10, 100, 2


def plain_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The loss by torch's functions, for truth without ignored pixels; its gradient is autograd's."""
    target = functional.one_hot(truth.long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    p = logits.softmax(1)
    dice = 2 * (p * target).sum((0, 2, 3)) / (p + target).sum((0, 2, 3))
    return functional.cross_entropy(logits, truth.long()) + 1 - dice.mean()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, side = torch.device(args.device), 256 if args.quick else 512
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(args.batch, LABELS, side, side, generator=generator).to(device)
    truth = torch.randint(0, LABELS, (args.batch, side, side), generator=generator).to(device, torch.uint8)

    plain = logits.clone().requires_grad_()
    plain_loss(plain, truth).backward()
    difference = (segmentation_loss(logits.clone(), truth, FitSpec()).gradient - plain.grad).abs().max()
    error = (difference / plain.grad.abs().max()).item()
    print(f"torch {torch.__version__}, {side} px, batch {args.batch}; largest difference of gradients {error:.1e}")
    if error > 1e-5:
        print("the gradients DISAGREE")
        return 1

    copy, step = logits.clone(), probe_step(side, truth)

    def by_autograd() -> None:
        values = copy.requires_grad_()
        values.grad = None
        plain_loss(values, truth).backward()

    scratch = logits.clone()
    actions: dict[str, Callable[[], object]] = {
        "autograd": by_autograd,
        "ours": lambda: segmentation_loss(scratch, truth, FitSpec()),
        "copies": lambda: [scratch.copy_(logits) for _ in range(3)],
        "exponential": lambda: torch.exp(logits, out=scratch),
        "step": step,
    }
    seconds = interleaved(actions, args.repeats, device)
    for name, value in seconds.items():
        print(f"{name}: {value * 1e3:.1f} ms")
    minutes = RUNS * STEPS * seconds["step"] / CORES / 60
    print(f"{RUNS} runs of {STEPS} such steps on {CORES} cores: {minutes:.1f} min, without validation and reading")
    floor = seconds["copies"] + seconds["exponential"]
    for name, ratio, target in (
        ("loss_speed", seconds["autograd"] / seconds["ours"], ">=2"),
        ("loss_floor", floor / seconds["ours"], "(share)"),
        ("probe_step", seconds["step"] / seconds["ours"], "(ratio)"),
    ):
        print(f"{name} ratio={ratio:.2f} target={target} device={args.device}, 1 thread")
    return 0


def probe_step(side: int, truth: torch.Tensor) -> Callable[[], None]:
    """Return one training step of the linear probe."""
    grid = GridGeometry(side, PATCH)
    decoder = Decoder(Shape((CHANNELS,), 1, LABELS, grid), "linear").to(truth.device)
    initialise(decoder, 0)
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=1e-2)
    tokens = torch.randn(len(truth), CHANNELS, grid.side, grid.side, device=truth.device)

    def step() -> None:
        logits = decoder(tokens)
        loss = segmentation_loss(logits, truth, FitSpec())
        optimiser.zero_grad()
        logits.backward(loss.gradient)
        optimiser.step()

    return step


def interleaved(actions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each action; all are called in turn, after one call of each as warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, act in actions.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            act()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
