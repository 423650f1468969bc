"""The kinds of decoders by their names in recipes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fmcache.decoders.layers import Kind
from fmcache.decoders.linear import Linear
from fmcache.decoders.multi_tap import MultiTap
from fmcache.decoders.paper import Paper
from fmcache.decoders.paper_norm import PaperNorm
from fmcache.errors import ResultsMismatch
from fmcache.specs import DecoderKind, DecoderSpec, FitSpec
from fmcache.strict import builtins

KINDS: dict[DecoderKind, Kind] = {
    "paper": Paper(),
    "paper-norm": PaperNorm(),
    "linear": Linear(),
    "multi-tap": MultiTap(),
}


def settings(spec: DecoderSpec) -> dict[str, Any]:
    """Return the fields of a decoder that change its numbers, for the identity of runs and their records.

    The paper's kind and random biases are left out, so that runs fitted before there were others keep their identity.
    So is a width that the kind does not have.
    """
    kind: dict[str, Any] = {} if spec.kind == "paper" else {"kind": spec.kind}
    bias: dict[str, Any] = {} if spec.bias == "random" else {"bias": spec.bias}
    return kind | ({"width": spec.width} if KINDS[spec.kind].has_width else {}) | bias


def training_settings(spec: FitSpec) -> dict[str, Any]:
    """Return the fields of `fit` for the identity of runs and their records; float32 is left out, as in `settings`."""
    return {key: value for key, value in builtins(spec).items() if (key, value) != ("precision", "float32")}


def spec_of(settings: Mapping[str, Any]) -> DecoderSpec:
    """Return the decoder whose `settings` a record holds.

    Raises
    ------
    ResultsMismatch
        When this fmcache has no such decoder.
    """
    try:
        spec: DecoderSpec = msgspec.convert(settings, DecoderSpec)
    except msgspec.ValidationError as reason:
        raise ResultsMismatch(
            "the results are of a decoder that this fmcache does not have",
            found=str(reason),
            next_step="use the fmcache that wrote them",
        ) from None
    return spec
