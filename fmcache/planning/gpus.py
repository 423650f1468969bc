"""The cost of a recipe on a number of GPUs, from published peak numbers and an assumed efficiency.

Peaks are those of the makers' data sheets, dense (without sparsity). `SHARE_ENCODER` and `LOGIT_BYTES` are assumptions;
`SHARE_DECODER` was measured on one GPU. A forecast from them is right within a factor of two or three, and says which
stage and which resource will be the limit.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from fmcache.errors import SpecError
from fmcache.planning.costs import Cost
from fmcache.specs import Precision

SHARE_ENCODER = 0.4
"""Assumed: the share of the peak that a vision transformer reaches in inference, at the peak of its precision."""
SHARE_DECODER = 0.16
"""Measured on one H100 (512 px, width 256, batch 8), assumed for the others: the share of the TF32 peak that training a
decoder reaches, convolutions in direct form, with reproducible kernels. torch runs float32 convolutions in TF32 on
these GPUs, unless it is told otherwise; matrix products of float32 encoders stay in float32."""
LOGIT_BYTES = 240
"""Assumed: bytes of GPU memory that the loss moves for a logit and training step: some sixty passes over float32."""
BUNDLES_EACH, MOST_SHARDS = 8, 64
"""As in `fmcache.stages.shards`, which loads torch."""


class Gpu(NamedTuple):
    """A GPU: dense peaks in operations per second (16 bit, TF32, float32), bytes and bytes per second of its memory."""

    title: str
    half: float
    tf32: float
    single: float
    memory_bytes: float
    bandwidth: float
    source: str


GPUS = {
    "l4": Gpu("NVIDIA L4", 121e12, 60e12, 30.3e12, 24e9, 300e9, "nvidia.com/en-us/data-center/l4"),
    "a10": Gpu("NVIDIA A10", 125e12, 62.5e12, 31.2e12, 24e9, 600e9, "nvidia.com/en-us/data-center/products/a10-gpu"),
    "l40s": Gpu("NVIDIA L40S", 362e12, 183e12, 91.6e12, 48e9, 864e9, "nvidia.com/en-us/data-center/l40s"),
    "a100": Gpu("NVIDIA A100 80 GB SXM", 312e12, 156e12, 19.5e12, 80e9, 2039e9, "nvidia.com/en-us/data-center/a100"),
    "h100": Gpu("NVIDIA H100 SXM", 989e12, 494e12, 67e12, 80e9, 3350e9, "nvidia.com/en-us/data-center/h100"),
    "h200": Gpu("NVIDIA H200 SXM", 989e12, 494e12, 67e12, 141e9, 4800e9, "nvidia.com/en-us/data-center/h200"),
}  # fmt: skip


class Fleet(NamedTuple):
    """A number of equal GPUs."""

    gpu: Gpu
    number: int

    def encoder_s(self, cost: Cost, precision: Precision) -> float:
        """Return the seconds of the forward passes of a cost on all GPUs; shards are shared out evenly."""
        peak = self.gpu.single if precision == "float32" else self.gpu.half
        return cost.encoder_flop / (peak * SHARE_ENCODER * self.number)

    def one_run_s(self, cost: Cost) -> float:
        """Return the seconds of one run of a cost on one GPU: the mean over its folds and variants."""
        seconds = cost.decoder_flop / (self.gpu.tf32 * SHARE_DECODER)
        return (seconds + cost.logits * LOGIT_BYTES / self.gpu.bandwidth) / max(cost.runs, 1)

    def fit_s(self, costs: Sequence[Cost]) -> float:
        """Return the seconds of all runs: each is on one GPU, and a free GPU gets the longest run that is left."""
        free = [0.0] * self.number
        runs = sorted(((self.one_run_s(cost), cost.runs) for cost in costs), reverse=True)
        for seconds, count in runs:
            for _ in range(count):
                heapq.heapreplace(free, free[0] + seconds)
        return max(free)

    def tasks(self, cost: Cost) -> int:
        """Return how many tasks the scheduler hands out in extract: bundles of shards."""
        size = min(max(cost.objects // (BUNDLES_EACH * self.number), 1), MOST_SHARDS)
        return -(-cost.objects // size)


def fleet_of(name: str, number: int) -> Fleet:
    """Return `number` GPUs of the kind `name`.

    Raises
    ------
    SpecError
        When the kind is not in the table.
    """
    if name not in GPUS:
        raise SpecError(f"no published numbers are listed for GPU {name!r}", expected=" or ".join(GPUS))
    return Fleet(GPUS[name], number)
