"""A written TorchScript is the model, names no file of this machine, and runs on the device of its input."""

import re
import zipfile

import pytest
import timm
import torch

from fmcache.bundles import tracing
from fmcache.bundles.whole_model import WholeModel
from fmcache.cache.encoding import store_of
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.fitted import FittedDecoder
from fmcache.decoders.layers import Shape
from fmcache.encoders.load import Encoder, card_for_timm, load_encoder
from fmcache.errors import SpecError
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

CPU, META = torch.device("cpu"), torch.device("meta")


def model_of(encoder, side):
    card = encoder.card
    decoder = Decoder(Shape((card.width,), 4, 2, GridGeometry(side, card.patch)), "linear", "direct")
    initialise(decoder, 0)
    return WholeModel(encoder, ("last",), store_of("float16"), FittedDecoder(decoder.eval(), ("a", "b"), None))


def rotary_encoder():
    """A small transformer with rotary positions, which timm computes in every forward pass."""
    name = "vit_small_patch16_dinov3"
    arguments = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 64}
    module = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments).eval()
    card = card_for_timm(name)
    fields = {field: getattr(card, field) for field in card.__struct_fields__}
    small = type(card)(**fields | {"width": 48, "arguments": arguments})
    return Encoder(small, module, CPU, "", True, 0)


@pytest.fixture
def tiny(tiny_card):
    return load_encoder(EncoderChoice(str(tiny_card), random_weights=True), CPU)


def test_a_written_file_names_no_file_of_this_machine_and_gives_the_same_bytes_again(tiny, tmp_path):
    traced = tracing.trace(model_of(tiny, 32), torch.rand(1, 3, 32, 32))
    tracing.save(traced, tmp_path / "model.pt")
    (tmp_path / "again").mkdir()
    tracing.save(traced, tmp_path / "again" / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "again" / "model.pt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model.pt"]
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        for name in archive.namelist():
            assert not re.search(rb"site-packages|whole_model\.py", archive.read(name)), name


def moved_to_meta(module):
    """Move parameters to a device on which operations with tensors of another device fail, as on a GPU."""
    for one in module.modules():
        for name, value in [*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)]:
            one._c.setattr(name, value.detach().to(META))
    return module


@pytest.mark.parametrize("kind", ["tiny", "rotary", "colour-texture"])
def test_it_runs_on_the_device_of_its_input(tiny, kind, tmp_path):
    control = lambda: load_encoder(EncoderChoice("colour-texture"), CPU)  # noqa: E731
    encoder = {"tiny": lambda: tiny, "rotary": rotary_encoder, "colour-texture": control}[kind]()
    traced = tracing.trace(model_of(encoder, 64), torch.rand(1, 3, 64, 64))
    tracing.save(traced, tmp_path / "model.pt")
    elsewhere = moved_to_meta(tracing.load(tmp_path / "model.pt", CPU))
    assert elsewhere(torch.rand(2, 3, 64, 64, device=META)).device == META


def test_the_test_of_devices_can_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(tracing, "_follow_device", lambda traced: None)
    traced = tracing.trace(model_of(rotary_encoder(), 64), torch.rand(1, 3, 64, 64))
    tracing.save(traced, tmp_path / "model.pt")
    elsewhere = moved_to_meta(tracing.load(tmp_path / "model.pt", CPU))
    with pytest.raises(RuntimeError, match="device"):
        elsewhere(torch.rand(2, 3, 64, 64, device=META))


def test_a_trace_that_fixes_the_number_of_tiles_is_refused(tiny):
    class OfTwo(torch.nn.Module):
        def forward_features(self, x):
            return tiny.module.forward_features(x)[: len(x)].reshape(len(x), 5, 48)  # len is a constant in a trace

    model = model_of(tiny._replace(module=OfTwo().eval()), 32)
    with pytest.raises(SpecError, match="cannot be written as TorchScript") as error:
        tracing.trace(model, torch.rand(1, 3, 32, 32))
    assert "--decoder-only" in error.value.next_step


def test_a_trace_that_takes_one_way_of_several_is_refused(tiny):
    class AnotherForOne(torch.nn.Module):
        def forward_features(self, x):
            features = tiny.module.forward_features(x)
            return -features if int(x.shape[0]) == 1 else features

    model = model_of(tiny._replace(module=AnotherForOne().eval()), 32)
    with pytest.raises(SpecError, match="the result is another model"):
        tracing.trace(model, torch.rand(1, 3, 32, 32))
