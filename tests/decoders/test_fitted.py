"""A decoder from the file of a run: only the kind that the record states is accepted."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.fitted import load_decoder, weights_metadata
from fmcache.decoders.layers import Shape
from fmcache.decoders.registry import settings
from fmcache.errors import ResultsCorrupt
from fmcache.grid import GridGeometry
from fmcache.specs import DecoderSpec

GRID = GridGeometry(32, 8)


def stored(folder, kind, *, earlier=False):
    """Return a file of weights and the decoder that they are of; earlier releases stated nothing about it."""
    decoder = Decoder(Shape((5,), 8, 2, GRID), kind)
    initialise(decoder, 0)
    save_file(
        dict(decoder.state_dict()), folder / "weights.safetensors", None if earlier else weights_metadata(decoder)
    )
    return folder / "weights.safetensors", decoder


def record_of(kind):
    recipe = {"tile_px": 32, "grid": "fit", "decoder": settings(DecoderSpec(kind=kind, width=8)), "fit": {}}
    labels = (("a", "#000000"), ("b", "#ffffff"))
    return SimpleNamespace(
        recipe=recipe, labels=labels, encoder=SimpleNamespace(width=5, patch=8), identity={"tokens": {}}
    )


@pytest.mark.parametrize("earlier", [True, False], ids=["earlier release", "this release"])
def test_weights_give_the_decoder_that_they_were_stored_from(tmp_path, earlier):
    file, decoder = stored(tmp_path, "paper", earlier=earlier)
    tokens = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_decoder(file, record_of("paper"))(tokens), decoder(tokens))


def test_a_decoder_predicts_in_the_precision_of_its_run(tmp_path):
    file, _ = stored(tmp_path, "paper")
    record = record_of("paper")
    assert load_decoder(file, record).decoder.precision == "float32"
    record.recipe["fit"]["precision"] = "bfloat16"
    assert load_decoder(file, record).decoder.precision == "bfloat16"


@pytest.mark.parametrize(("stored_as", "recorded"), [("linear", "paper"), ("paper", "linear")])
def test_weights_of_another_kind_are_refused_by_both_names(tmp_path, stored_as, recorded):
    file, _ = stored(tmp_path, stored_as)
    with pytest.raises(ResultsCorrupt, match="another kind of decoder") as error:
        load_decoder(file, record_of(recorded))
    assert recorded in error.value.expected
    assert error.value.found == stored_as
