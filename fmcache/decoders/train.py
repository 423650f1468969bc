"""One run: train a decoder on cached grids with one seed, choose its weights on validation, test them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fmcache.decoders.batches import Grids, Step, epoch_steps, in_order
from fmcache.decoders.heads import Decoder, initialise
from fmcache.decoders.losses import segmentation_loss
from fmcache.scores.counts import count
from fmcache.scores.dice import Reduction, dice_per_label, mean_of_defined
from fmcache.specs import FitSpec

Counts = npt.NDArray[np.int64]
STILL_FALLING = 0.02
"""A run's loss counts as still falling when the mean of its last restart cycle is this share below the one before."""


class Source(Protocol):
    """Where batches come from: the cache (`Grids`), or, to prove the cache right, an encoder in the loop."""

    @property
    def tiles(self) -> tuple[str, ...]: ...
    @property
    def views(self) -> range: ...
    def fetch(self, step: Step, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]: ...


class Epoch(NamedTuple):
    """One row of the training curve; means over the epoch's batches. `val_dice` is None between validations."""

    epoch: int
    learning_rate: float
    loss: float
    cross_entropy: float
    dice_loss: float
    val_dice: float | None


class Fitted(NamedTuple):
    """The outcome of a run. `weights` are those after `best_epoch`; counts are (tile, label, 3): tp, fp, fn."""

    weights: dict[str, torch.Tensor]
    curve: list[Epoch]
    best_epoch: int
    val_dice: float
    val: Counts
    test: Counts


class Scale(NamedTuple):
    """Channel-wise (x - mean) / std of tokens; both (channel, 1, 1) float32."""

    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return standardised tokens (view, channel, row, col)."""
        return (tokens - self.mean.to(tokens.device)) / self.std.to(tokens.device)


def channel_scale(grids: Grids) -> Scale:
    """Return the mean and standard deviation of each channel over all training grids (constant channels: std 1)."""
    total = torch.zeros(grids.tokens.shape[2], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for tile in grids.tokens:
        values = tile.double()
        total += values.sum(dim=(0, 2, 3)).cpu()
        squares += values.square().sum(dim=(0, 2, 3)).cpu()
    n = grids.tokens.numel() / len(total)
    mean = total / n
    std = (squares / n - mean**2).clamp(min=0).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return Scale(mean.float()[:, None, None], std.float()[:, None, None])


def train(
    decoder: Decoder,
    train_source: Source,
    val: Grids,
    test: Grids,
    spec: FitSpec,
    seed: int,
    reduction: Reduction,
    device: torch.device,
    scale: Scale | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Fitted:
    """Train `decoder` from the initial weights of `seed`, and return its best weights and their counts.

    Parameters
    ----------
    decoder
        Its values do not matter; it is initialised here.
    train_source
        Training tiles and their views; validation and test use the first view of `val` and `test`.
    reduction
        The Dice that chooses the weights: mean over labels, on validation; the first of equals is kept.
    tick
        Called with 1 after each epoch.
    """
    with deterministic(device):
        decoder.to(device)
        initialise(decoder, seed)
        optimiser = torch.optim.NAdam(decoder.parameters(), lr=spec.learning_rate)
        curve: list[Epoch] = []
        best: tuple[float, int, dict[str, torch.Tensor], Counts] | None = None
        for epoch in range(spec.epochs):
            steps = epoch_steps(train_source.tiles, len(train_source.views), spec, seed, epoch)
            rate, losses = _train_epoch(decoder, optimiser, train_source, steps, spec, epoch, device, scale)
            val_dice = None
            if (epoch + 1) % spec.validate_epochs == 0 or epoch + 1 == spec.epochs:
                counts = predict_counts(decoder, val, spec.batch, device, scale)
                val_dice = mean_dice(counts, reduction)
                if best is None or val_dice > best[0]:
                    weights = {k: v.detach().cpu().clone() for k, v in decoder.state_dict().items()}
                    best = (val_dice, epoch + 1, weights, counts)
            curve.append(Epoch(epoch + 1, rate, *losses, val_dice))
            tick(1)
        if best is None:
            raise ValueError(f"expected at least one epoch, found {spec.epochs}")
        decoder.load_state_dict(best[2])
        test_counts = predict_counts(decoder, test, spec.batch, device, scale)
    return Fitted(best[2], curve, best[1], best[0], best[3], test_counts)


def learning_rate(spec: FitSpec, progress: float) -> float:
    """Return the learning rate after `progress` epochs: a cosine to 0 that restarts every `restart_epochs`.

    References
    ----------
    Loshchilov & Hutter 2017, SGDR, eq. 5 with a minimum of 0 and equal cycles.
    """
    done = (progress % spec.restart_epochs) / spec.restart_epochs
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def predict_counts(
    decoder: Decoder, grids: Grids, batch: int, device: torch.device, scale: Scale | None = None
) -> Counts:
    """Return tp, fp and fn per tile and label, (tile, label, 3), of the first view of each tile."""
    covered = decoder.grid.covered_px
    counts = []
    with torch.inference_mode():
        for step in in_order(grids, batch):
            tokens, masks = grids.fetch(step, device)
            logits = decoder(scale(tokens) if scale else tokens)
            predicted = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            truth = masks[..., :covered, :covered].cpu().numpy()
            counts += [count(p, t, logits.shape[1]) for p, t in zip(predicted, truth, strict=True)]
    return np.stack(counts)


def mean_dice(counts: Counts, reduction: Reduction) -> float:
    """Return the headline Dice: mean over the labels that have one; 0 when none has."""
    mean = mean_of_defined(dice_per_label(counts, reduction), axis=0)
    return float(np.nan_to_num(mean))


def collapsed(counts: Counts, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that are in the truth of some tile and were predicted nowhere."""
    tp, fp, fn = counts.sum(axis=0).T
    return tuple(name for i, name in enumerate(labels) if tp[i] + fn[i] > 0 and tp[i] + fp[i] == 0)


def still_falling(losses: Sequence[float], cycle: int) -> bool:
    """Return whether training ended before its loss was flat.

    The mean loss of the last `cycle` epochs (a restart cycle: equal learning rates are compared) is set against the
    mean of the `cycle` epochs before; with fewer epochs than two cycles, the two halves are compared.
    """
    cycle = min(cycle, len(losses) // 2)
    if cycle == 0:
        return True
    last, before = np.mean(losses[-cycle:]), np.mean(losses[-2 * cycle : -cycle])
    return bool(last < (1 - STILL_FALLING) * before)


def _train_epoch(
    decoder: Decoder,
    optimiser: torch.optim.Optimizer,
    source: Source,
    steps: Sequence[Step],
    spec: FitSpec,
    epoch: int,
    device: torch.device,
    scale: Scale | None,
) -> tuple[float, tuple[float, float, float]]:
    covered = decoder.grid.covered_px
    losses = []
    for i, step in enumerate(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, epoch + i / len(steps))
        tokens, masks = source.fetch(step, device)
        logits = decoder(scale(tokens) if scale else tokens)
        loss = segmentation_loss(logits, masks[..., :covered, :covered], spec)
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(torch.stack([part.detach() for part in loss]))
    # one transfer per epoch, not one per step: on a GPU each would wait for the whole queue
    total, cross_entropy, dice = torch.stack(losses).mean(dim=0).tolist()
    return learning_rate(spec, epoch), (total, cross_entropy, dice)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Ask torch for reproducible kernels on a GPU (those of the CPU are), and give its setting back afterwards."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
