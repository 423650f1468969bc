"""Training loss: cross-entropy + Dice, without the ignored pixels, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fmcache.manifest import IGNORE
from fmcache.specs import FitSpec

PIECE_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
"""Size in bytes of the logits of a piece. On a CPU a few of them should fit into a core's cache; but not much smaller,
because seeds that are trained concurrently wait for each other at each small operation. It is fixed, and does not
depend on the machine, so that sums are the same everywhere."""


class Loss(NamedTuple):
    """The weighted `total`, which training minimises, and its two parts; scalars.

    `gradient` is that of `total` by the logits, (view, label, y, x): it is in the memory that held them.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    dice: torch.Tensor
    gradient: torch.Tensor


class _Piece(NamedTuple):
    """Some views, and of each some rows: `planes` of each label and `truth`, all (view, row, x), as parts of the batch.

    The other planes are working memory that all pieces share, in the type of the logits: `of_truth` is 1 where a label
    is the truth, otherwise 0; `counted` is 1 where there is a truth, otherwise 0. `free` holds nothing.
    """

    planes: tuple[torch.Tensor, ...]
    truth: torch.Tensor
    of_truth: tuple[torch.Tensor, ...]
    counted: torch.Tensor
    free: torch.Tensor
    total: torch.Tensor

    def compare(self) -> _Piece:
        """Fill `of_truth` and `counted` for this piece."""
        # as floating-point numbers: comparing bytes takes five times as long on a CPU
        self.counted.copy_(self.truth)
        for label, here in enumerate(self.of_truth):
            torch.eq(self.counted, label, out=here)
        self.counted.ne_(IGNORE)
        return self


@torch.no_grad()
def segmentation_loss(logits: torch.Tensor, truth: torch.Tensor, spec: FitSpec) -> Loss:
    """Return the loss of a batch and its gradient. The gradient replaces the values of `logits`.

    Cross-entropy is the mean over pixels with a truth. Dice loss is 1 - 2 sum(p g) / (sum p + sum g), with softmax
    probabilities p and truth g. Sums are over the pixels of the whole batch. The mean is over the labels that occur in
    the truth of the batch: as in the scores, an absent label has no Dice.

    Training continues with ``logits.backward(loss.gradient)``. Logits, probabilities and gradient follow each other in
    one label map, because at full resolution the loss moves more bytes than everything else in a small decoder.

    Parameters
    ----------
    logits
        (view, label, y, x) float32 or float64. No operation whose backward pass reads its own result may have made
        them (PyTorch refuses the backward pass otherwise).
    truth
        (view, y, x) uint8 label ids; 255 is ignored.

    References
    ----------
    Milletari et al. 2016, V-Net, for the soft Dice loss. The gradient, with O = sum(p g) and S = sum p + sum g for each
    label, a = -2 w / (K S), b = 2 w O / (K S^2) for the K labels that occur (w: weight of the Dice loss), q = b + a g:
    that of a label's logit is p (q - sum over labels of p q) + v (p - g) / N, for N pixels with a truth (v: weight of
    the cross-entropy).
    """
    values = logits.detach()
    sums = values.new_zeros((4, values.shape[1]), dtype=torch.float64)
    for piece in _pieces(values, truth):
        sums += _probabilities(piece.compare())
    entropy, probability, overlap, size = sums
    pixels = size.sum().clamp(min=1)
    cross_entropy = entropy.sum() / pixels
    whole = (probability + size).clamp(min=torch.finfo(torch.float32).tiny)
    present = (size > 0).double()
    labels = present.sum().clamp(min=1)
    dice = ((1 - 2 * overlap / whole) * present).sum() / labels
    a = -2 * spec.dice_weight * present / (labels * whole)
    b = 2 * spec.dice_weight * present * overlap / (labels * whole.square())
    factors = [factor.to(values.dtype) for factor in (a, b, spec.cross_entropy_weight / pixels)]
    for piece in _pieces(values, truth):
        _gradients(piece.compare(), *factors)
    total = spec.cross_entropy_weight * cross_entropy + spec.dice_weight * dice
    return Loss(total.to(values.dtype), cross_entropy.to(values.dtype), dice.to(values.dtype), values)


def _pieces(values: torch.Tensor, truth: torch.Tensor) -> Iterator[_Piece]:
    """Yield the pieces of a batch: several whole views if they fit, otherwise bands of rows of one view."""
    views, labels, height, width = values.shape
    rows = max(1, PIECE_BYTES.get(values.device.type, PIECE_BYTES["cuda"]) // (labels * width * values.element_size()))
    together, rows = min(max(1, rows // height), views), min(rows, height)
    scratch = values.new_empty((labels + 3, together, rows, width))
    for first in range(0, views, together):
        for top in range(0, height, rows):
            piece = values[first : first + together, :, top : top + rows]
            *of_truth, counted, free, total = scratch[:, : len(piece), : piece.shape[2]]
            of_piece = truth[first : first + together, top : top + rows]
            yield _Piece(piece.unbind(1), of_piece, tuple(of_truth), counted, free, total)


def _probabilities(piece: _Piece) -> torch.Tensor:
    """Replace the logits of a piece by probabilities (0 at ignored pixels), and return sums of each label, (4, label).

    They are, over the pixels with a truth: -log p where the label is the truth, p, p where the label is the truth, and
    the number of pixels where it is.
    """
    planes, of_truth, counted, free, total = piece.planes, piece.of_truth, piece.counted, piece.free, piece.total
    free.copy_(planes[0])
    for plane in planes[1:]:
        torch.maximum(free, plane, out=free)
    for plane in planes:
        plane.sub_(free)
    chosen = [torch.mul(plane, here, out=free).sum() for plane, here in zip(planes, of_truth, strict=True)]
    total.copy_(planes[0].exp_())
    for plane in planes[1:]:
        total.add_(plane.exp_())
    torch.log(total, out=free)
    share = torch.div(counted, total, out=total)
    sums = []
    for plane, here, at_truth in zip(planes, of_truth, chosen, strict=True):
        plane.mul_(share)
        entropy = torch.mul(free, here, out=counted).sum() - at_truth
        sums.append(torch.stack([entropy, plane.sum(), torch.mul(plane, here, out=counted).sum(), here.sum()]))
    return torch.stack(sums, dim=1)


def _gradients(piece: _Piece, a: torch.Tensor, b: torch.Tensor, entropy: torch.Tensor) -> None:
    """Replace probabilities by gradients; `a`, `b` (label) as in `segmentation_loss`, `entropy` is v / N."""
    free, mean = piece.free, piece.total.zero_()
    labels = list(zip(piece.planes, piece.of_truth, a, b, strict=True))
    for plane, here, of_overlap, of_size in labels:
        mean.addcmul_(plane, torch.mul(here, of_overlap, out=free).add_(of_size))
    for plane, here, of_overlap, of_size in labels:
        # both terms are 0 at ignored pixels
        plane.mul_(torch.mul(here, of_overlap, out=free).add_(of_size + entropy).sub_(mean)).sub_(here.mul_(entropy))
