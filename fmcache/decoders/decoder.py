"""The light decoder as a torch module: token grid -> logits. The same for all encoders; `registry.py` lists kinds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, cast

import psutil
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fmcache.decoders import upsampled
from fmcache.decoders.layers import Convolution, Layer, Shape, UpsamplingBlock
from fmcache.decoders.registry import KINDS
from fmcache.grid import GridGeometry
from fmcache.identity import random_key
from fmcache.specs import DecoderKind, DecoderPrecision

Form = Literal["fast", "direct"]
"""How blocks are computed: `direct` follows the formula; `fast` is equal up to rounding (upsampled.py)."""

MUCH_LARGER = 4
"""From this factor on, logits are interpolated by two matrix products with the weights of the interpolation. On a CPU
this takes a tenth of the time for a linear probe, forward and backward; at smaller factors it would take longer."""

KEPT_SHARE = 1 / 8
"""On a CPU the last activation is kept for the backward pass if it takes at most this share of the free memory. No
number depends on it: computed again, the activation has the same bits."""


def form_for(device: torch.device) -> Form:
    """Return the form in which decoders are trained on a device: the one that was measured to be faster there.

    On an H100 the fast form takes twice as long, because the library's kernels for the fixed filter are slow; it needs
    a fifth of the memory (pipelines/bench/LOG.md).
    """
    return "fast" if device.type == "cpu" else "direct"


class Block(nn.Module):
    """Bilinear x2 upsampling, 3x3 convolution, ReLU (paper, eq. 4); normalisation before ReLU if the layer says so."""

    def __init__(self, layer: UpsamplingBlock) -> None:
        super().__init__()
        self.conv = _conv(layer.width, layer.width, 3)
        # it draws no random numbers: its initial values are ones and zeros
        self.norm = nn.GroupNorm(layer.groups, layer.width) if layer.normalised else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (view, width, 2 row, 2 col) of (view, width, row, col)."""
        convolved = self.conv(doubled(x))
        return functional.relu(self.norm(convolved) if self.norm else convolved)

    def classified(self, x: torch.Tensor, classify: nn.Conv2d) -> torch.Tensor:
        """Return the logits of `classify` for the result of this block, (view, label, 2 row, 2 col)."""
        logits: torch.Tensor = classify(self(x))
        return logits


class FastBlock(Block):
    """The same block, with the kernel applied before upsampling.

    When the result is only classified, it exists as a whole only if it is normalised, or if training keeps it for the
    backward pass (`KEPT_SHARE`).
    """

    def __init__(self, layer: UpsamplingBlock) -> None:
        super().__init__(layer)
        self._kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (view, width, 2 row, 2 col) of (view, width, row, col)."""
        if self.norm:
            return functional.relu(self.norm(upsampled.conv(x, self.conv.weight, _bias(self.conv))))
        return upsampled.conv_relu(x, self.conv.weight, _bias(self.conv))

    def classified(self, x: torch.Tensor, classify: nn.Conv2d) -> torch.Tensor:
        """Return the logits of `classify` for the result of this block, (view, label, 2 row, 2 col)."""
        if self.norm:
            return super().classified(x, classify)
        kept = self._room_for(x) if self.training and torch.is_grad_enabled() else None
        return upsampled.conv_relu_classify(
            x, self.conv.weight, _bias(self.conv), classify.weight, _bias(classify), kept
        )

    def _room_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return memory for this block's result in training, (view, width, 2 row, 2 col), or None.

        It is the same memory at each step: new memory would cost more time than the computation that it saves.
        """
        views, width, rows, columns = x.shape
        size, dtype, kept = (width, 2 * rows, 2 * columns), upsampled.dtype_of_result(x), self._kept
        if x.device.type != "cpu":
            return None
        if kept is None or kept.shape[1:] != size or kept.dtype != dtype or len(kept) < views:
            self._kept = None
            if 4 * x.numel() * dtype.itemsize > KEPT_SHARE * psutil.virtual_memory().available:
                return None
            self._kept = kept = torch.empty(views, *size, dtype=dtype, memory_format=torch.channels_last)
        return kept[:views]


BLOCKS: dict[Form, type[Block]] = {"direct": Block, "fast": FastBlock}


class Decoder(nn.Module):
    """A decoder of a kind, for a shape: the layers of the kind, then one interpolation if sizes differ.

    With `precision` bfloat16, its layers run in torch's autocast; parameters and logits are float32 in every precision.

    Its parameters are undefined until `initialise` or a state dict sets them: torch's default would draw from the
    global generator. A state dict fits both forms. The form is not part of a run's identity.
    """

    def __init__(
        self,
        shape: Shape,
        kind: DecoderKind = "paper",
        form: Form = "fast",
        precision: DecoderPrecision = "float32",
    ) -> None:
        super().__init__()
        self.shape, self.kind, self.precision = shape, kind, precision
        for name, layers in KINDS[kind].layers(shape).items():
            if isinstance(layers, Layer):
                self.add_module(name, _module(layers, form))
            else:
                self.add_module(name, nn.ModuleList(_module(layer, form) for layer in layers))

    @property
    def grid(self) -> GridGeometry:
        """The geometry of the token grid on the tile's pixels."""
        return self.shape.grid

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (view, label, y, x) of the tile's covered pixels, from tokens (view, channel, row, col)."""
        rounded = self.precision == "bfloat16"
        with torch.autocast(tokens.device.type, torch.bfloat16) if rounded else nullcontext():
            logits = KINDS[self.kind].logits(self, tokens)
        if rounded:
            logits = logits.float()  # before they are resized: weights of the interpolation are not rounded
        if logits.shape[-1] != self.grid.logits_px:
            logits = resized(logits, self.grid.logits_px)
        covered = self.grid.covered_px
        return logits[..., :covered, :covered]

    def layer(self, name: str) -> nn.Module:
        """Return a layer that the kind listed under this name."""
        return self.get_submodule(name)

    def blocks_and_classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (view, label, row, col) from (view, width, row, col): layers ``blocks``, then ``classify``."""
        blocks, classify = list(cast(nn.ModuleList, self.layer("blocks"))), cast(nn.Conv2d, self.layer("classify"))
        for block in blocks[:-1]:
            x = block(x)
        logits: torch.Tensor = cast(Block, blocks[-1]).classified(x, classify) if blocks else classify(x)
        return logits


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Return (view, width, 2 row, 2 col), bilinearly upsampled.

    On a GPU, torch's interpolation is reproducible only in a form that takes several times as long as the rest of a
    training step. There, both axes are upsampled by sums of shifted values.
    """
    if not x.is_cuda:
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return _doubled_columns(_doubled_columns(x.mT).mT)


def _doubled_columns(x: torch.Tensor) -> torch.Tensor:
    clamped = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
    here = 0.75 * x
    return torch.stack([here + 0.25 * clamped[..., :-2], here + 0.25 * clamped[..., 2:]], dim=-1).flatten(-2)


def resized(logits: torch.Tensor, side: int) -> torch.Tensor:
    """Return logits (view, label, side, side), interpolated bilinearly from (view, label, row, row).

    On a GPU matrix products are always used: torch's interpolation is reproducible only in a very slow form there.
    """
    if side < MUCH_LARGER * logits.shape[-1] and not logits.is_cuda:
        return functional.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
    # the weights of the interpolation are the result for each unit vector
    unit = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    weights = functional.interpolate(unit[None], size=side, mode="linear", align_corners=False)[0]
    return weights.T @ logits @ weights


def _module(layer: Layer, form: Form) -> nn.Module:
    if isinstance(layer, Convolution):
        return _conv(layer.inputs, layer.outputs, layer.kernel)
    return BLOCKS[form](layer)


def _conv(channels: int, width: int, kernel: int) -> nn.Conv2d:
    conv: nn.Conv2d = skip_init(nn.Conv2d, channels, width, kernel_size=kernel, padding=kernel // 2)  # type: ignore[no-untyped-call]
    return conv


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    if conv.bias is None:
        raise ValueError("expected a convolution with a bias")
    return conv.bias


def initialise(decoder: Decoder, seed: int, label_shares: Sequence[float] = ()) -> None:
    """Set all parameters from `seed`, by torch's default rules.

    Convolutions are uniform in +-1/sqrt(fan in); normalisations start with scale 1 and shift 0. Each parameter of a
    convolution has its own generator, keyed by (seed, its name). So decoders of two encoders start from the same
    values when their shapes are equal. The global generator is not used.

    If `label_shares` are given, the biases of the logits are their logarithms.

    References
    ----------
    Lin et al. 2017, Focal loss, section 3.3, for biases that start at the shares of labels.
    """
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for key, parameter in module.named_parameters():
                generator = torch_generator(seed, "init", f"{name}.{key}")
                values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                with torch.no_grad():
                    parameter.copy_(values)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
    if label_shares:
        with torch.no_grad():
            _bias(cast(nn.Conv2d, decoder.layer("classify"))).copy_(torch.tensor(label_shares).log())


def torch_generator(*names: str | int) -> torch.Generator:
    """Return a CPU generator keyed by names, the same in every process."""
    return torch.Generator().manual_seed(random_key(*names) % 2**63)
