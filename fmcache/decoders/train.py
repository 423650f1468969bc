"""Runs: train decoders on cached grids, one seed or several in step, choose weights on validation, test them."""

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
from fmcache.decoders.heads import Decoder
from fmcache.decoders.losses import segmentation_loss
from fmcache.decoders.stacked import Stack, Weights
from fmcache.scores.counts import count
from fmcache.scores.dice import Reduction, dice_per_label, mean_of_defined
from fmcache.specs import FitSpec

Counts = npt.NDArray[np.int64]
STILL_FALLING = 0.02
"""A run's loss counts as still falling when the mean of its last restart cycle is this share below the one before."""

NOISE = 2.0
"""The fall must also be this many of its own standard errors."""


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
    val: Source,
    test: Source,
    spec: FitSpec,
    seed: int,
    reduction: Reduction,
    device: torch.device,
    scale: Scale | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Fitted:
    """Train `decoder` from the initial weights of `seed`; see `train_seeds`, of which this is the case of one."""
    (fitted,) = train_seeds(decoder, train_source, val, test, spec, (seed,), reduction, device, scale, tick)
    return fitted


def train_seeds(
    decoder: Decoder,
    train_source: Source,
    val: Source,
    test: Source,
    spec: FitSpec,
    seeds: Sequence[int],
    reduction: Reduction,
    device: torch.device,
    scale: Scale | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> list[Fitted]:
    """Train a decoder per seed, all in step with stacked parameters; return each one's best weights and their counts.

    Each seed has its own initial weights, batches, views, optimiser state and best epoch, so its outcome is that of its
    run alone up to float rounding (kernels for stacked parameters may add in another order).

    Parameters
    ----------
    decoder
        Its values do not matter; it is initialised here, and they are undefined afterwards.
    train_source
        Training tiles and their views; validation and test use the first view of `val` and `test`.
    reduction
        The Dice that chooses the weights: mean over labels, on validation; the first of equals is kept.
    tick
        Called after each epoch with the number of seeds.
    """
    with deterministic(device):
        stack = Stack(decoder.to(device), seeds)
        optimiser = torch.optim.NAdam(stack.parameters.values(), lr=spec.learning_rate)
        runs = [_Run() for _ in stack.seeds]
        for epoch in range(spec.epochs):
            walks = [epoch_steps(train_source.tiles, len(train_source.views), spec, s, epoch) for s in stack.seeds]
            rate = learning_rate(spec, epoch)
            losses = _train_epoch(stack, optimiser, train_source, walks, spec, epoch, device, scale)
            scores: Sequence[float | None] = [None] * len(runs)
            if (epoch + 1) % spec.validate_epochs == 0 or epoch + 1 == spec.epochs:
                counts = predict_counts(stack, val, spec.batch, device, scale)
                scores = [run.validate(epoch + 1, own, reduction) for run, own in zip(runs, counts, strict=True)]
                for run, weights in zip(runs, stack.weights(), strict=True):
                    run.keep(epoch + 1, weights)
            for run, parts, score in zip(runs, losses, scores, strict=True):
                run.curve.append(Epoch(epoch + 1, rate, *parts, val_dice=score))
            tick(len(runs))
        stack.load([run.weights for run in runs])
        tested = predict_counts(stack, test, spec.batch, device, scale)
    return [run.fitted(counts) for run, counts in zip(runs, tested, strict=True)]


class _Run:
    """What a seed has come to so far."""

    def __init__(self) -> None:
        self.curve: list[Epoch] = []
        self.best_epoch, self.val_dice = 0, -math.inf
        self.weights: Weights = {}
        self.val: Counts

    def validate(self, epoch: int, counts: Counts, reduction: Reduction) -> float:
        """Return the validation Dice after `epoch`; note the epoch as the best one if it is."""
        dice = mean_dice(counts, reduction)
        if dice > self.val_dice:
            self.best_epoch, self.val_dice, self.val = epoch, dice, counts
        return dice

    def keep(self, epoch: int, weights: Weights) -> None:
        """Keep the weights after `epoch` if that is the best one."""
        if epoch == self.best_epoch:
            self.weights = weights

    def fitted(self, test: Counts) -> Fitted:
        return Fitted(self.weights, self.curve, self.best_epoch, self.val_dice, self.val, test)


def learning_rate(spec: FitSpec, progress: float) -> float:
    """Return the learning rate after `progress` epochs: a cosine to 0 that restarts every `restart_epochs`.

    References
    ----------
    Loshchilov & Hutter 2017, SGDR, eq. 5 with a minimum of 0 and equal cycles.
    """
    done = (progress % spec.restart_epochs) / spec.restart_epochs
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def predict_counts(
    stack: Stack, grids: Source, batch: int, device: torch.device, scale: Scale | None = None
) -> list[Counts]:
    """Return, seed by seed, tp, fp and fn per tile and label, (tile, label, 3), of the first view of each tile."""
    covered = stack.covered_px
    counts: list[list[Counts]] = [[] for _ in stack.seeds]
    with torch.inference_mode():
        for step in in_order(len(grids.tiles), batch):
            tokens, masks = grids.fetch(step, device)
            logits = stack.logits_of_same(scale(tokens) if scale else tokens)
            predicted = logits.argmax(dim=2).to(torch.uint8).cpu().numpy()
            truth = masks[..., :covered, :covered].cpu().numpy()
            for own, prediction in zip(counts, predicted, strict=True):
                own += [count(p, t, logits.shape[2]) for p, t in zip(prediction, truth, strict=True)]
    return [np.stack(own) for own in counts]


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
    mean of the `cycle` epochs before; with fewer epochs than two cycles, the two halves are compared. Noise is told
    from the fall by how much the differences of epochs change from one to the next.

    References
    ----------
    von Neumann 1941, Distribution of the ratio of the mean square successive difference to the variance.
    """
    cycle = min(cycle, len(losses) // 2)
    if cycle == 0:
        return True
    before, last = np.asarray(losses[-2 * cycle :], dtype=np.float64).reshape(2, cycle)
    fall = before - last
    noise = np.sqrt(np.square(np.diff(fall)).mean() / 2 / cycle) if cycle > 1 else 0.0
    return bool(fall.mean() > max(STILL_FALLING * before.mean(), NOISE * noise))


def _train_epoch(
    stack: Stack,
    optimiser: torch.optim.Optimizer,
    source: Source,
    walks: Sequence[Sequence[Step]],
    spec: FitSpec,
    epoch: int,
    device: torch.device,
    scale: Scale | None,
) -> list[tuple[float, float, float]]:
    """Take an epoch's steps; return the means of total loss, cross-entropy and Dice loss, seed by seed."""
    covered = stack.covered_px
    losses = []
    # the i-th batches of all seeds are of one size: it depends on the number of tiles and the recipe alone
    for i, steps in enumerate(zip(*walks, strict=True)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, epoch + i / len(walks[0]))
        tokens, masks = source.fetch(np.concatenate(steps), device)
        seeds = (len(steps), len(steps[0]))
        tokens = scale(tokens) if scale else tokens
        logits = stack.logits(tokens.reshape(*seeds, *tokens.shape[1:]))
        truth = masks[..., :covered, :covered]
        loss = segmentation_loss(logits, truth.reshape(*seeds, *truth.shape[1:]), spec)
        optimiser.zero_grad()
        # seeds share no parameter, so the gradient of the sum is that of each
        loss.total.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(torch.stack([part.detach() for part in loss], dim=1))
    # one transfer per epoch, not one per step: on a GPU each would wait for the whole queue
    return [(total, entropy, dice) for total, entropy, dice in torch.stack(losses).mean(dim=0).tolist()]


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
