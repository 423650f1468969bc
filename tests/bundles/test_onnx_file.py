"""The ONNX file returns what the model returns, and names no file of this machine; without its packages it says so."""

import sys

import numpy as np
import pytest
import torch

from fmcache.bundles import onnx_file
from fmcache.bundles.onnx_file import check_installed, write_onnx
from fmcache.bundles.whole_model import WholeModel
from fmcache.errors import ExtraMissing, SpecError


@pytest.mark.slow
def test_onnx_runtime_returns_the_same_probabilities(fitted, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} of the extra onnx is not installed")
    import onnxruntime

    folder = fitted.export(tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    model = torch.jit.load(folder / "torchscript_model.pt")
    tiles = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    (found,) = session.run(["probabilities"], {"tiles": tiles.numpy()})
    np.testing.assert_allclose(found, model(tiles).numpy(), atol=2e-4)  # a token may round to its other neighbour
    content = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"whole_model.py" not in content
    assert "model.onnx" in (folder / "rdf.yaml").read_text()


def test_without_its_packages_export_names_the_extra(fitted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExtraMissing) as error:
        check_installed()
    assert "pip install 'fmcache[onnx]'" in error.value.next_step
    with pytest.raises(ExtraMissing):
        fitted.export(tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_onnx_cannot_express_is_named(tiny_card, tmp_path, monkeypatch):
    from fmcache.cache.encoding import store_of
    from fmcache.decoders.decoder import Decoder, initialise
    from fmcache.decoders.fitted import FittedDecoder
    from fmcache.decoders.layers import Shape
    from fmcache.encoders.load import load_encoder
    from fmcache.grid import GridGeometry
    from fmcache.specs import EncoderChoice

    def refuse(*_, **__):
        raise torch.onnx.errors.OnnxExporterError("no such operation")

    monkeypatch.setattr(onnx_file.torch.onnx, "export", refuse)
    encoder = load_encoder(EncoderChoice("raw-pixels"), torch.device("cpu"))
    decoder = Decoder(Shape((768,), 4, 2, GridGeometry(32, 16)))
    initialise(decoder, 0)
    model = WholeModel(encoder, ("last",), store_of("float16"), FittedDecoder(decoder, ("a", "b"), None))
    with pytest.raises(SpecError, match="'raw-pixels' cannot be written as ONNX") as error:
        write_onnx(model, torch.rand(1, 3, 32, 32), tmp_path)
    assert error.value.next_step == "leave out --onnx"
