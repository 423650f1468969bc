"""Training loss: cross-entropy + Dice, without the ignored pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from fmcache.manifest import IGNORE
from fmcache.specs import FitSpec


class Loss(NamedTuple):
    """The weighted `total`, which training minimises, and its two parts; scalars."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    dice: torch.Tensor


def segmentation_loss(logits: torch.Tensor, truth: torch.Tensor, spec: FitSpec) -> Loss:
    """Return the loss of a batch.

    Cross-entropy is the mean over pixels with a truth. Dice loss is 1 - 2 sum(p g) / (sum p + sum g), with softmax
    probabilities p and truth g. Sums are over the pixels of the whole batch. The mean is over the labels that occur in
    the truth of the batch: as in the scores, an absent label has no Dice.

    Parameters
    ----------
    logits
        (view, label, y, x).
    truth
        (view, y, x) uint8 label ids; 255 is ignored.

    References
    ----------
    Milletari et al. 2016, V-Net, for the soft Dice loss.
    """
    seen = truth != IGNORE
    labels = truth.masked_fill(~seen, 0).long()
    # one-hot sums instead of nll_loss2d and scatter, which have no deterministic form on GPUs
    target = functional.one_hot(labels, logits.shape[-3]).movedim(-1, -3).to(logits.dtype) * seen.unsqueeze(-3)
    log_probability = functional.log_softmax(logits, dim=-3)
    pixels = seen.sum(dim=(-3, -2, -1)).clamp(min=1)
    cross_entropy = -(target * log_probability).sum(dim=(-4, -3, -2, -1)) / pixels
    probability = log_probability.exp() * seen.unsqueeze(-3)
    overlap = (probability * target).sum(dim=(-4, -2, -1))
    size = target.sum(dim=(-4, -2, -1))
    whole = probability.sum(dim=(-4, -2, -1)) + size
    present = (size > 0).to(logits.dtype)
    dice = 2 * overlap / whole.clamp(min=torch.finfo(logits.dtype).tiny)
    dice_loss = ((1 - dice) * present).sum(dim=-1) / present.sum(dim=-1).clamp(min=1)
    total = spec.cross_entropy_weight * cross_entropy + spec.dice_weight * dice_loss
    return Loss(total, cross_entropy, dice_loss)
