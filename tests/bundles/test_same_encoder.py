"""A bundle is written only with the encoder with which the run was fitted."""

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fmcache.bundles.same_encoder import load_same_encoder
from fmcache.errors import WeightsMismatch
from fmcache.scores.run_files import read_record
from fmcache.specs import EncoderChoice
from fmcache.stages.exported_run import encoder_identity


def test_other_weights_than_those_of_the_run_are_refused(fitted, tmp_path):
    values = load_file(fitted.folder / "tiny.safetensors")
    values["norm.bias"] += 1
    save_file(values, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatch, match="weights_sha256"):
        fitted.export(tmp_path / "out", weights=str(tmp_path / "other.safetensors"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "value"), [("mean", [0.5, 0.5, 0.5]), ("std", [0.3, 0.3, 0.3])])
def test_a_card_that_changed_since_is_refused_and_the_field_named(fitted, tmp_path, field, value):
    card = yaml.safe_load(fitted.card.read_text()) | {field: value}
    card["weights"] = {"file": str(fitted.folder / "tiny.safetensors")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(card))
    identity = encoder_identity(read_record(fitted.run_folder()))
    with pytest.raises(WeightsMismatch, match=f"encoder.{field}"):
        load_same_encoder(EncoderChoice(str(tmp_path / "tiny.yaml")), identity, torch.device("cpu"))
    same = load_same_encoder(EncoderChoice(str(fitted.card)), identity, torch.device("cpu"))
    assert same.weights_sha256 == identity["weights_sha256"]
