"""Runs: train a decoder with a seed on cached grids, choose its weights by validation Dice, test them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fmcache.decoders.batches import Step, TokenGrids, epoch_steps, in_order
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.losses import segmentation_loss
from fmcache.scores.boundary import boundary_counts
from fmcache.scores.calibration import calibration_counts
from fmcache.scores.counts import count
from fmcache.scores.dice import Reduction, dice_per_label, mean_of_defined
from fmcache.scores.predictions import Labels, Predictions, kept_tiles
from fmcache.specs import DecoderPrecision, FitSpec

Counts = npt.NDArray[np.int64]
StateDict = dict[str, torch.Tensor]
STILL_FALLING = 0.02
"""The loss of a run is still falling when the mean of its last restart cycle is this share below the cycle before."""

TENSOR_CORES = (8, 0)
"""From this compute capability (Ampere) on, GPUs have TF32."""

NOISE = 2.0
"""The decrease must also be at least this many of its own standard errors."""


class BatchSource(Protocol):
    """The source of batches: the cache (`TokenGrids`), or, in a test of the cache, an encoder that runs in the loop."""

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


class TrainedRun(NamedTuple):
    """The result of a run. `weights` are those after `best_epoch`; counts are (tile, label, 3): tp, fp, fn.

    `kept` are the predictions of the test tiles in `kept_tiles`; `calibration` (tile, bin, 3) are the counts of
    `fmcache.scores.calibration` of all test tiles, and `boundary` (tile, label, 4) those of `fmcache.scores.boundary`,
    if they were counted.
    """

    weights: StateDict
    curve: list[Epoch]
    best_epoch: int
    val_dice: float
    val: Counts
    test: Counts
    kept: Predictions
    calibration: Counts
    boundary: Counts | None


class Scale(NamedTuple):
    """Channel-wise (x - mean) / std of tokens; both (channel, 1, 1) float32."""

    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return standardised tokens (view, channel, row, col)."""
        return (tokens - self.mean.to(tokens.device)) / self.std.to(tokens.device)


def channel_scale(grids: TokenGrids) -> Scale:
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


@dataclass(frozen=True, eq=False)
class Training:
    """All inputs of a run except its seed: the same for all seeds of one encoder.

    The values of `decoder` do not matter: a run initialises them from its seed. Validation and test use the first view
    of `val` and `test`. `boundary_px` are the tolerances of boundaries of the test tiles; empty: none are counted.
    `reduction` is the Dice by which the weights are chosen: the mean over labels on the validation
    tiles; the first of equal values wins. `scale`, if given, is applied to all tokens. The biases of the logits start
    at the logarithms of `label_shares`, if there are any.
    """

    decoder: Decoder
    train: BatchSource
    val: BatchSource
    test: BatchSource
    spec: FitSpec
    reduction: Reduction
    device: torch.device
    scale: Scale | None = None
    boundary_px: tuple[float, ...] = ()
    label_shares: tuple[float, ...] = ()


def train(training: Training, seed: int, tick: Callable[[int], None] = lambda _: None) -> TrainedRun:
    """Train the decoder from the initial weights of `seed`; return the best weights and their counts.

    The decoder of `training` is trained in place, on its device. Its values are undefined afterwards. `tick` is called
    with 1 after each epoch.
    """
    spec, run = training.spec, _Run()
    with reproducible(training.device, spec.precision):
        decoder = training.decoder.to(training.device)
        initialise(decoder, seed, training.label_shares)
        optimiser = torch.optim.NAdam(decoder.parameters(), lr=spec.learning_rate)
        for epoch in range(spec.epochs):
            losses = _train_epoch(training, optimiser, seed, epoch)
            score = None
            if (epoch + 1) % spec.validate_epochs == 0 or epoch + 1 == spec.epochs:
                counts = predict_counts(training, training.val)
                score = run.validate(epoch + 1, decoder, counts, training.reduction)
            run.curve.append(Epoch(epoch + 1, learning_rate(spec, epoch), *losses, val_dice=score))
            tick(1)
        decoder.load_state_dict(run.weights)
        tested = _Tested(training)
        return run.fitted(predict_counts(training, training.test, tested), tested)


class _Run:
    """The state of a run during training: the curve, and the best weights until now."""

    def __init__(self) -> None:
        self.curve: list[Epoch] = []
        self.best_epoch, self.val_dice = 0, -math.inf
        self.weights: StateDict = {}
        self.val: Counts

    def validate(self, epoch: int, decoder: Decoder, counts: Counts, reduction: Reduction) -> float:
        """Return the validation Dice after `epoch`; keep counts and weights (in main memory) if it is the best."""
        dice = mean_dice(counts, reduction)
        if dice > self.val_dice:
            self.best_epoch, self.val_dice, self.val = epoch, dice, counts
            # always a copy: training continues in place
            self.weights = {name: value.detach().cpu().clone() for name, value in decoder.named_parameters()}
        return dice

    def fitted(self, test: Counts, tested: _Tested) -> TrainedRun:
        return TrainedRun(
            self.weights, self.curve, self.best_epoch, self.val_dice, self.val, test, tested.kept,
            np.stack(tested.calibration), np.stack(tested.boundary) if tested.boundary else None,
        )  # fmt: skip


class _Tested:
    """What is kept of the test tiles besides tp, fp and fn: predictions of some, calibration and boundaries of all."""

    def __init__(self, training: Training) -> None:
        tiles, covered = training.test.tiles, training.decoder.grid.covered_px
        kept = set(kept_tiles(tiles))
        shown = tuple(tile for tile in tiles if tile in kept)
        self.kept = Predictions(shown, *np.empty((2, len(shown), covered, covered), np.uint8))
        self.calibration: list[Counts] = []
        self.boundary: list[Counts] = []
        self._tolerances = training.boundary_px
        self._at = {tiles.index(tile): i for i, tile in enumerate(shown)}

    def add(self, step: Step, logits: torch.Tensor, predicted: Labels, truth: Labels) -> None:
        """Add a batch: logits (tile, label, y, x), the labels predicted from them and the truth, both (tile, y, x)."""
        sure = confidence(logits).cpu().numpy()
        self.calibration += [calibration_counts(*maps) for maps in zip(sure, predicted, truth, strict=True)]
        for i, (tile, _) in enumerate(step):
            if self._tolerances:
                one = boundary_counts(predicted[i], truth[i], logits.shape[1], self._tolerances[tile])
                self.boundary.append(one)
            if (row := self._at.get(tile)) is not None:
                self.kept.predicted[row], self.kept.truth[row] = predicted[i], truth[i]


def predicted_labels(logits: torch.Tensor) -> torch.Tensor:
    """Return the label of the largest logit of each pixel, (tile, y, x) uint8; of equal logits the first.

    Label by label with arithmetic on whole maps: on a CPU `torch.argmax` over labels takes ten times as long.
    """
    first, *others = logits.unbind(1)
    largest, label, better = first.clone(), torch.zeros_like(first), torch.empty_like(first)
    for i, values in enumerate(others, 1):
        torch.gt(values, largest, out=better)
        label.addcmul_(better, i - label)
        torch.maximum(largest, values, out=largest)
    return label.to(torch.uint8)


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return the largest softmax probability of each pixel, (tile, y, x), from logits (tile, label, y, x)."""
    return (logits - logits.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal()


def learning_rate(spec: FitSpec, progress: float) -> float:
    """Return the learning rate after `progress` epochs: a cosine to 0 that restarts every `restart_epochs`.

    References
    ----------
    Loshchilov & Hutter 2017, SGDR, eq. 5 with a minimum of 0 and equal cycles.
    """
    done = (progress % spec.restart_epochs) / spec.restart_epochs
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def predict_counts(training: Training, source: BatchSource, tested: _Tested | None = None) -> Counts:
    """Return tp, fp and fn per tile and label, (tile, label, 3), of the first view of each tile of `source`.

    If `tested` is given, every batch is added to it.
    """
    decoder, scale = training.decoder, training.scale
    covered = decoder.grid.covered_px
    counts: list[Counts] = []
    with torch.inference_mode():
        for step in in_order(len(source.tiles), training.spec.batch):
            tokens, masks = source.fetch(step, training.device)
            logits = decoder(scale(tokens) if scale else tokens)
            predicted = predicted_labels(logits).cpu().numpy()
            truth = masks[..., :covered, :covered].cpu().numpy()
            counts += [count(p, t, logits.shape[1]) for p, t in zip(predicted, truth, strict=True)]
            if tested:
                tested.add(step, logits, predicted, truth)
    return np.stack(counts)


def mean_dice(counts: Counts, reduction: Reduction) -> float:
    """Return the mean Dice over the labels that have a Dice; 0 when no label has one."""
    mean = mean_of_defined(dice_per_label(counts, reduction), axis=0)
    return float(np.nan_to_num(mean))


def collapsed(counts: Counts, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that occur in the truth of some tile but were never predicted."""
    tp, fp, fn = counts.sum(axis=0).T
    return tuple(name for i, name in enumerate(labels) if tp[i] + fn[i] > 0 and tp[i] + fp[i] == 0)


def still_falling(losses: Sequence[float], cycle: int) -> bool:
    """Return whether training ended before its loss was flat.

    The mean loss of the last `cycle` epochs (a restart cycle, so that equal learning rates are compared) is compared
    with the mean of the `cycle` epochs before. With fewer epochs than two cycles, the two halves are compared. The
    noise of the decrease is estimated from how much the differences change from one epoch to the next.

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
    training: Training, optimiser: torch.optim.Optimizer, seed: int, epoch: int
) -> tuple[float, float, float]:
    """Do the training steps of an epoch; return the means of total loss, cross-entropy and Dice loss."""
    decoder, source, spec, scale = training.decoder, training.train, training.spec, training.scale
    covered = decoder.grid.covered_px
    steps = epoch_steps(source.tiles, len(source.views), spec, seed, epoch)
    losses = []
    for i, step in enumerate(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, epoch + i / len(steps))
        tokens, masks = source.fetch(step, training.device)
        logits = decoder(scale(tokens) if scale else tokens)
        loss = segmentation_loss(logits, masks[..., :covered, :covered], spec)
        optimiser.zero_grad()
        logits.backward(loss.gradient)
        optimiser.step()
        losses.append(torch.stack([loss.total, loss.cross_entropy, loss.dice]))
    # one transfer per epoch, not one per step: on a GPU each transfer would wait for the whole queue
    total, entropy, dice = torch.stack(losses).mean(dim=0).tolist()
    return total, entropy, dice


@contextmanager
def reproducible(device: torch.device, precision: DecoderPrecision) -> Iterator[None]:
    """Set torch to reproducible kernels on a GPU, and to the rounding of a precision; restore its settings afterwards.

    CPU kernels are always reproducible, and never round float32. Settings of the process that change numbers on a GPU
    (TF32, the search for the fastest kernel) are thus the same in a command and in a notebook.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled()
    flags = convolutions.allow_tf32, convolutions.benchmark, products.allow_tf32
    torch.use_deterministic_algorithms(True)
    convolutions.allow_tf32, convolutions.benchmark = precision != "float32-ieee", False
    products.allow_tf32 = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        convolutions.allow_tf32, convolutions.benchmark, products.allow_tf32 = flags


def number_format(device: torch.device, precision: DecoderPrecision) -> str:
    """Return in which number format a decoder is trained on a device, for the record and the methods text."""
    if precision == "bfloat16":
        return "bfloat16 (autocast), weights and loss in float32"
    if device.type != "cuda" or precision == "float32-ieee" or torch.cuda.get_device_capability(device) < TENSOR_CORES:
        return "float32"
    return "float32, inputs of convolutions rounded to TF32"
