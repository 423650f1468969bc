"""Decoders of a model run with the settings of torch with which `fit` tested them; the encoder runs without these."""

import contextlib

import numpy as np
import pytest
import torch

from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.fitted import FittedDecoder
from fmcache.decoders.layers import Shape
from fmcache.grid import GridGeometry
from fmcache.manifest import Label
from fmcache.prediction import fitted_model
from fmcache.prediction.fitted_model import FittedModel

GRID = GridGeometry(32, 8)
LABELS = (Label(name="a", colour="#000000"), Label(name="b", colour="#ffffff"))


@pytest.mark.parametrize("precision", ["float32", "float32-ieee", "bfloat16"])
def test_the_settings_of_fit_hold_for_decoders_and_not_for_the_encoder(monkeypatch, precision):
    now, seen = [], []

    @contextlib.contextmanager
    def noted(device, precision):
        now.append((device.type, precision))
        yield
        now.pop()

    class Encoder:
        def tokens(self, tiles):
            for _ in range(2):
                seen.append(("encoder", *now))
                yield torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(fitted_model, "reproducible", noted)
    decoder = Decoder(Shape((5,), 4, 2, GRID), precision=precision)
    initialise(decoder, 0)
    decoder.layer("project").register_forward_hook(lambda *_: seen.append(("decoder", *now)))
    fitted = FittedDecoder(decoder, ("a", "b"), None).eval()
    model = FittedModel(Encoder(), GRID, [fitted], torch.device("cpu"), LABELS, 0.5, batch=2)
    found = model(np.zeros((2, 32, 32, 3), np.uint8))
    assert seen == [("encoder",), ("decoder", ("cpu", precision))] * 2
    assert found.shape == (1, 2, 2, 32, 32)
    assert np.allclose(found.sum(axis=2), 1)
