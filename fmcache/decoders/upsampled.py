"""Convolution of an upsampled grid with a quarter of the operations, without computing the upsampled grid.

A block of the decoder computes relu(conv3x3(up(x))): up is bilinear x2, with zero padding at the upsampled size. Along
one axis, write the kernel w and the bilinear filter k = (1, 3, 3, 1) / 4 as polynomials in z. Then up(x) is
k(z) x(z^2), and

    w(z) (k(z) x(z^2)) = k(z) (w(z) x(z^2)).

So the kernel can be applied first, on the small grid, as a transposed convolution of stride 2. This needs 9 D^2
multiply-adds per pixel of the small grid; the direct form needs 36 D^2. The fixed filter k is applied last, on each
channel separately. Because up clamps its indices, x gets a border of one clamped pixel. One difference remains: just
outside the upsampled grid the convolution should see zeros, but here it sees upsampled values. Their contribution
(`rim`) is subtracted from the outermost rows and columns before the filter.

All work is done in pieces (some samples, or a band of rows of one sample), so that no intermediate result exists as a
whole. The backward pass has the same structure: filter, then matrix products on the small grid. In the last block each
piece also includes ReLU and classification. The backward pass computes the activation again, unless it was kept.

References
----------
Karras et al. 2020, StyleGAN2, for a transposed convolution followed by a filter. The treatment of the border is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

NHWC = torch.channels_last
PIECE_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Size in bytes of a piece after the transposed convolution: on a CPU it should fit into the processor's cache. It is
fixed, and does not depend on the machine, so that sums are the same everywhere."""
KERNELS_A_PIECE = 10
"""A piece is at least this many times as large as the kernel, which is read again for each piece."""


class Piece(NamedTuple):
    """Some samples, and of each the rows top..bottom of the small grid."""

    samples: slice
    top: int
    bottom: int

    def larger(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same piece of a tensor that has the upsampled size, as a view."""
        return x[self.samples, :, 2 * self.top : 2 * self.bottom]

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same piece of a tensor that has the size after the transposed convolution, as a view."""
        return x[self.samples, :, 2 * self.top : 2 * self.bottom + 3]


def conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return conv3x3(up(x)), (view, width, 2 row, 2 col), of x (view, width, row, col)."""
    x, weight, bias = _cast(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return _Conv.apply(x, weight, bias)  # type: ignore[no-any-return]


def conv_relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return relu(conv3x3(up(x))), (view, width, 2 row, 2 col), of x (view, width, row, col)."""
    x, weight, bias = _cast(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return _ConvRelu.apply(x, weight, bias)  # type: ignore[no-any-return]


def conv_relu_classify(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    labels_bias: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return conv1x1(relu(conv3x3(up(x)))), (view, label, 2 row, 2 col), of x (view, width, row, col).

    `labels` is the 1x1 convolution's weight, (label, width, 1, 1). If `kept`, (view, width, 2 row, 2 col), is given, it
    holds relu(conv3x3(up(x))) until the backward pass, which then need not compute it again.
    """
    x, weight, bias, labels, labels_bias = _cast(x, weight, bias, labels, labels_bias)
    with torch.autocast(x.device.type, enabled=False):
        return _ConvReluClassify.apply(  # type: ignore[no-any-return]
            x, weight, bias, labels, labels_bias, kept
        )


def dtype_of_result(x: torch.Tensor) -> torch.dtype:
    """Return the type in which these functions compute: that of autocast if it is enabled, otherwise that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def pieces(x: torch.Tensor) -> Iterator[Piece]:
    """Yield the pieces of (view, width, row, col): several whole samples if they fit, otherwise bands of rows."""
    views, width, rows, columns = x.shape
    row_bytes = 2 * (2 * columns + 3) * width * x.element_size()
    kernel_bytes = 9 * width**2 * x.element_size()
    size = max(PIECE_BYTES.get(x.device.type, PIECE_BYTES["cuda"]), KERNELS_A_PIECE * kernel_bytes)
    fit = max(1, size // row_bytes)
    samples = max(1, fit // (rows + 2))
    bands = -(-rows // fit) if samples == 1 else 1
    edges = [rows * i // bands for i in range(bands + 1)]
    for start in range(0, views, samples):
        for top, bottom in itertools.pairwise(edges):
            yield Piece(slice(start, start + samples), top, bottom)


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        views, width, rows, columns = x.shape
        out = torch.empty(views, width, 2 * rows, 2 * columns, dtype=x.dtype, device=x.device, memory_format=NHWC)
        forward = _Forward(x, weight, bias)
        for piece in pieces(x):
            piece.larger(out).copy_(forward(piece, _bordered(piece, x)))
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            backward = _Backward(x, weight)
            for piece in pieces(x):
                backward.add(piece, _bordered(piece, x), piece.larger(grad).contiguous(memory_format=NHWC))
            return backward.result()


class _ConvRelu(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        views, width, rows, columns = x.shape
        out = torch.empty(views, width, 2 * rows, 2 * columns, dtype=x.dtype, device=x.device, memory_format=NHWC)
        forward = _Forward(x, weight, bias)
        for piece in pieces(x):
            torch.clamp_min(forward(piece, _bordered(piece, x)), 0, out=piece.larger(out))
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight, out = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            backward = _Backward(x, weight)
            for piece in pieces(x):
                upper = piece.larger(grad).contiguous(memory_format=NHWC)
                backward.add(piece, _bordered(piece, x), _through_relu(upper, piece.larger(out)))
            return backward.result()


class _ConvReluClassify(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        labels: torch.Tensor,
        labels_bias: torch.Tensor,
        kept: torch.Tensor | None,
    ) -> torch.Tensor:
        views, _, rows, columns = x.shape
        out = x.new_empty((views, len(labels), 2 * rows, 2 * columns))
        forward, of_labels = _Forward(x, weight, bias), labels.flatten(1)
        for piece in pieces(x):
            active = forward(piece, _bordered(piece, x))
            active = torch.clamp_min(active, 0, out=active if kept is None else piece.larger(kept))
            product = of_labels @ _positions(active)
            torch.add(product.view_as(piece.larger(out)), labels_bias[:, None, None], out=piece.larger(out))
        ctx.save_for_backward(x, weight, bias, labels, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, labels, kept = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            forward, backward = None if kept is not None else _Forward(x, weight, bias), _Backward(x, weight)
            of_labels = labels.flatten(1)
            labels_grad = torch.zeros_like(of_labels, dtype=backward.exact)
            for piece in pieces(x):
                bordered = _bordered(piece, x)
                active = torch.relu_(forward(piece, bordered)) if forward else piece.larger(kept)
                upper = piece.larger(grad).flatten(2)
                labels_grad += (upper @ _positions(active).mT).sum(dim=0)
                lower = (upper.mT @ of_labels).mT.view_as(active)
                backward.add(piece, bordered, _through_relu(lower, active))
            labels_bias = grad.sum(dim=(0, 2, 3), dtype=backward.exact)
            return *backward.result(), labels_grad.view_as(labels).to(labels.dtype), labels_bias.to(labels.dtype), None


class _Forward:
    """conv3x3(up(x)), piece by piece."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.kernel, self.filter, self.bias = _transposed(weight), _filter(x), bias
        self.ends, self.sides = rim(*_edges(x), weight)

    def __call__(self, piece: Piece, bordered: torch.Tensor) -> torch.Tensor:
        """Return (view, width, 2 row, 2 col) of a piece of x with its border."""
        spread = functional.conv_transpose2d(bordered, self.kernel, stride=2, padding=1)
        sides = piece.spread(self.sides)
        spread[..., 0] -= sides[..., 0]
        spread[..., -1] -= sides[..., 1]
        if piece.top == 0:
            spread[:, :, 0] -= self.ends[piece.samples, :, 0]
        if 2 * piece.bottom + 3 == self.sides.shape[2]:
            spread[:, :, -1] -= self.ends[piece.samples, :, 1]
        return functional.conv2d(spread, self.filter, self.bias, groups=len(self.bias))


class _Backward:
    """Sums over pieces of the gradients of x, weight and bias."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        views, width, rows, columns = x.shape
        self.exact = torch.promote_types(x.dtype, torch.float32)  # for sums of many pieces, also when x is bfloat16
        self.weight, self.edges = weight, _edges(x)
        self.kernel, self.filter = _transposed(weight), _filter(x)
        self.x = torch.zeros_like(x, memory_format=NHWC)
        self.taps = x.new_zeros((3, 3, width, width), dtype=self.exact)  # of the kernel: row, column, in, out
        self.bias = x.new_zeros(width, dtype=self.exact)
        self.ends = x.new_empty((views, width, 2, 2 * columns + 3))
        self.sides = x.new_zeros((views, width, 2 * rows + 3, 2))  # pieces share some rows

    def add(self, piece: Piece, bordered: torch.Tensor, y: torch.Tensor) -> None:
        """Add the gradients of a piece: `y` is the gradient of its result before ReLU, `bordered` its part of x."""
        rows, columns = y.shape[2], y.shape[3]
        self.bias += y.sum(dim=(0, 2, 3), dtype=self.exact)
        # the filter is symmetric, so it is its own transpose, with padding 3; one more adds zeros for the shifts below
        y = functional.conv2d(y, self.filter, padding=4, groups=y.shape[1])
        piece.spread(self.sides).add_(y[:, :, 1:-1, 1 :: columns + 2])
        if piece.top == 0:
            self.ends[piece.samples, :, 0] = y[:, :, 1, 1:-1]
        if 2 * piece.bottom + 3 == self.sides.shape[2]:
            self.ends[piece.samples, :, 1] = y[:, :, -2, 1:-1]
        self._add_bordered(piece, functional.conv2d(y, self.kernel, stride=2))
        # nine matrix products: the library's gradient of a strided kernel takes more than twice as long
        channels_in = _pixels(bordered).T
        for a in range(3):
            for b in range(3):
                self.taps[a, b] += channels_in @ _pixels(y[:, :, a : a + rows + 3 : 2, b : b + columns + 3 : 2])

    def _add_bordered(self, piece: Piece, grad: torch.Tensor) -> None:
        """Add a gradient of the bordered piece. A border pixel's gradient goes to the pixel it was copied from."""
        grad[..., 1] += grad[..., 0]
        grad[..., -2] += grad[..., -1]
        low, high = piece.top - 1, piece.bottom + 1
        if low < 0:
            grad[:, :, 1] += grad[:, :, 0]
            low, grad = 0, grad[:, :, 1:]
        if high > self.x.shape[2]:
            grad[:, :, -2] += grad[:, :, -1]
            high, grad = high - 1, grad[:, :, :-1]
        self.x[piece.samples, :, low:high] += grad[..., 1:-1]

    def result(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of x, weight and bias."""
        dtype = self.x.dtype
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in (*self.edges, self.weight)]
            rows, columns, weight = torch.autograd.grad(rim(*inputs), inputs, (self.ends, self.sides))
        self.x[:, :, 0] -= rows[:, :, 0]
        self.x[:, :, -1] -= rows[:, :, 1]
        self.x[..., 0] -= columns[..., 0]
        self.x[..., -1] -= columns[..., 1]
        weight = self.taps.permute(3, 2, 0, 1).flip(2, 3) - weight
        return self.x, weight.to(dtype), self.bias.to(dtype)


def rim(rows: torch.Tensor, columns: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what upsampled values just outside the upsampled grid add, at the size after the transposed convolution.

    The first entry there reaches only the first pixel of the result, with a quarter of its value. So a contribution to
    that pixel is subtracted from the entry, times 4; and times 16 at a corner, where it is subtracted for both axes.

    Parameters
    ----------
    rows
        First and last row of the small grid, (view, width, 2, col).
    columns
        First and last column, (view, width, row, 2).

    Returns
    -------
    What to subtract from the first and last row, (view, width, 2, 2 col + 3); and from the first and last column,
    (view, width, 2 row + 3, 2).
    """
    outer = weight[:, :, ::2, ::2]
    ends = 4 * _spread(rows, weight[:, :, ::2].permute(2, 1, 3, 0))
    sides = 4 * _spread(columns.mT, weight[..., ::2].permute(3, 1, 2, 0)).mT
    corners = 16 * torch.einsum("oiab,viab->voab", outer, torch.stack([rows[..., 0], rows[..., -1]], dim=-1))
    left, middle, right = ends[..., :1], ends[..., 1:-1], ends[..., -1:]
    return torch.cat([left - corners[..., :1], middle, right - corners[..., 1:]], dim=-1), sides


def _spread(edges: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Return two edges after a transposed convolution of stride 2 along them, (view, width, 2, 2 pixel + 3).

    Parameters
    ----------
    edges
        (view, width, 2, pixel); a border of one clamped pixel is added.
    kernels
        Of each edge, (2, in, 3, out).
    """
    views, width, _, pixels = edges.shape
    bordered = torch.cat([edges[..., :1], edges, edges[..., -1:]], dim=-1).permute(2, 0, 3, 1)
    products = (bordered.reshape(2, -1, width) @ kernels.reshape(2, width, -1)).view(2, views, pixels + 2, 3, width)
    even, odd = products[:, :, :, 1], products[:, :, :-1, 0] + products[:, :, 1:, 2]
    pairs = torch.stack([even[:, :, :-1], odd], dim=3).flatten(2, 3)
    return torch.cat([pairs, even[:, :, -1:]], dim=2).permute(1, 3, 0, 2)


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and last row, and the first and last column, of (view, width, row, col)."""
    return torch.stack([x[:, :, 0], x[:, :, -1]], dim=2), torch.stack([x[..., 0], x[..., -1]], dim=3)


def _bordered(piece: Piece, x: torch.Tensor) -> torch.Tensor:
    """Return a piece of x with a border of one pixel: pixels of x if it has them, otherwise clamped pixels."""
    low, high = max(piece.top - 1, 0), min(piece.bottom + 1, x.shape[2])
    border = (1, 1, int(piece.top == 0), int(piece.bottom == x.shape[2]))
    return functional.pad(x[piece.samples, :, low:high], border, mode="replicate").contiguous(memory_format=NHWC)


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    """Return the kernel with which a transposed convolution equals a convolution with `weight`."""
    return weight.flip(2, 3).transpose(0, 1).contiguous()


def _positions(x: torch.Tensor) -> torch.Tensor:
    """Return (view, channel, row * col) of (view, channel, row, col); no copy if it is in channels-last order."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mT


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """Return (view * row * col, channel) from (view, channel, row, col)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _filter(x: torch.Tensor) -> torch.Tensor:
    """Return the bilinear filter for each channel of x, (channel, 1, 4, 4)."""
    axis = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=x.dtype, device=x.device)
    return torch.outer(axis, axis).repeat(x.shape[1], 1, 1, 1)


def _through_relu(grad: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward(grad, active, 0)  # type: ignore[no-any-return]


def _cast(x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return all tensors in the precision of autocast, x in channels-last order."""
    dtype = dtype_of_result(x)
    return x.to(dtype).contiguous(memory_format=NHWC), *(p.to(dtype) for p in parameters)
