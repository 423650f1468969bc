"""What stage two fits with which decoder, and what it records: so results of earlier releases stay recognised."""

import msgspec
import pytest

from fmcache.errors import ResultsMismatch
from fmcache.scores.run_files import find_runs, read_record
from fmcache.specs import DecoderSpec
from fmcache.stages import places


def change(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


def record_of(study, name="toy"):
    (folder,) = find_runs(places.results(study.work), name)
    return read_record(folder)


@pytest.fixture(scope="module")
def fitted(make_study, tmp_path_factory):
    study = make_study(tmp_path_factory.mktemp("fitted"))
    study.extract()
    study.fit()
    return study


def test_the_identity_of_a_run_of_the_papers_decoder_is_that_of_earlier_releases(fitted):
    record = record_of(fitted)
    identity = dict(record.identity)
    assert set(identity.pop("tokens")) >= {"tiles", "tap", "encoder", "store"}
    assert set(identity.pop("view_bank")) >= {"tiles", "views"}
    tiles = record.identity["splits"]
    assert identity == {
        "views": 1,
        "splits": tiles,
        "decoder": {"width": 2},
        "fit": {
            "epochs": 1, "batch": 2, "learning_rate": 1e-4, "restart_epochs": 10, "validate_epochs": 1,
            "passes_per_epoch": 1, "standardise": "none", "cross_entropy_weight": 1.0, "dice_weight": 1.0,
        },
        "dice": "pooled",
        "seed": 0,
    }  # fmt: skip
    assert record.recipe["decoder"] == {"width": 2}


def test_naming_the_papers_decoder_changes_nothing(fitted):
    named = change(fitted.recipe, decoder=DecoderSpec(kind="paper", width=2))
    assert any("0 of 1 runs to do" in line for line in fitted.fit(named))


def test_a_linear_probe_is_another_run_whose_identity_has_no_width(fitted):
    probe = change(fitted.recipe, name="probe", decoder=DecoderSpec(kind="linear", width=2))
    assert any("1 of 1 runs to do" in line for line in fitted.fit(probe))
    record = record_of(fitted, "probe")
    assert record.identity["decoder"] == record.recipe["decoder"] == {"kind": "linear"}
    assert record.decoder_params == record.encoder.width * 2 + 2
    wider = change(probe, decoder=DecoderSpec(kind="linear", width=64))
    assert any("0 of 1 runs to do" in line for line in fitted.fit(wider))


def test_another_decoder_under_the_name_of_a_fitted_study_is_refused_by_field(fitted):
    with pytest.raises(ResultsMismatch, match=r"decoder\.kind"):
        fitted.fit(change(fitted.recipe, decoder=DecoderSpec(kind="linear")))
