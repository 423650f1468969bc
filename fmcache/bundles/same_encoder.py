"""Load an encoder, and make sure that it is the one with which a run was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fmcache.encoders.load import Encoder, load_encoder
from fmcache.errors import WeightsMismatch
from fmcache.identity import differences
from fmcache.specs import EncoderChoice
from fmcache.strict import builtins


def load_same_encoder(
    choice: EncoderChoice,
    identity: Mapping[str, Any],
    device: torch.device,
    *,
    offline: bool = False,
    lock: Path | None = None,
) -> Encoder:
    """Return the encoder of a choice on a device, after comparing it with an identity.

    Parameters
    ----------
    identity
        Everything of the encoder that can change a token: fields of its card, the sha256 of its weights, and whether
        they are random.

    Raises
    ------
    EncoderUnavailable, SpecError
        As `load_encoder`.
    WeightsMismatch
        When card or weights differ, or cannot be loaded; the message names each field that differs.
    """
    encoder = load_encoder(choice, device, offline=offline, lock=lock)
    of_weights = {"weights_sha256": encoder.weights_sha256, "random_weights": encoder.random_weights}
    now = builtins(encoder.card) | of_weights
    if lines := differences(dict(identity), {field: now.get(field) for field in identity}, "encoder"):
        raise WeightsMismatch(
            f"the encoder {encoder.card.name!r} is not the one with which the decoder was fitted:\n    "
            + "\n    ".join(lines),
            next_step="restore its card or weights, or name the file of its weights",
        )
    return encoder
