"""What stage two fits with which decoder, and what it records: so results of earlier releases stay recognised."""

import itertools
from types import SimpleNamespace

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fmcache import Study
from fmcache.errors import CacheNotFound, ResultsMismatch, SpecError
from fmcache.scores.counts import count
from fmcache.scores.run_files import WEIGHTS, find_runs, read_record, run_folder
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import inputs, places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags


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


def test_biases_that_start_at_label_shares_are_another_run(fitted):
    fitted.fit(change(fitted.recipe, name="shares", decoder=change(fitted.recipe.decoder, bias="label-shares")))
    record = record_of(fitted, "shares")
    assert record.identity["decoder"]["bias"] == record.recipe["decoder"]["bias"] == "label-shares"
    (folder,) = find_runs(places.results(fitted.work), "shares")
    bias = load_file(folder / WEIGHTS)["classify.bias"].numpy()
    pixels = np.array(record.label_pixels["train"])
    assert bias == pytest.approx(np.log((pixels + 1) / (pixels + 1).sum()), abs=2e-3)  # one epoch at 1e-4 moved it


def test_a_run_in_bfloat16_is_another_run_that_says_so(fitted):
    fitted.fit(change(fitted.recipe, name="half", fit=change(fitted.recipe.fit, precision="bfloat16")))
    half, whole = record_of(fitted, "half"), record_of(fitted)
    assert half.identity["fit"] == whole.identity["fit"] | {"precision": "bfloat16"}
    assert half.recipe["fit"] == whole.recipe["fit"] | {"precision": "bfloat16"}
    assert (half.number_format, whole.number_format) == ("bfloat16 (autocast), weights and loss in float32", "float32")
    weights = [load_file(run_folder(places.results(fitted.work), name, "toy", whole.encoder.name, 0) / WEIGHTS)
               for name in ("half", "toy")]  # fmt: skip
    assert {value.dtype for value in weights[0].values()} == {torch.float32}
    assert not torch.equal(weights[0]["project.weight"], weights[1]["project.weight"])


def test_another_decoder_under_the_name_of_a_fitted_study_is_refused_by_field(fitted):
    with pytest.raises(ResultsMismatch, match=r"decoder\.kind"):
        fitted.fit(change(fitted.recipe, decoder=DecoderSpec(kind="linear")))


@pytest.fixture(scope="module")
def tapped(drawn, tmp_path_factory):
    """A study of a tiny transformer whose taps 1 and last, but not 2, are extracted."""
    folder = tmp_path_factory.mktemp("tapped")
    manifest = drawn(folder, 2, 1, 1)
    tiny = {
        "name": "tiny", "title": "Tiny ViT", "architecture": "vit_tiny_patch16_224",
        "arguments": {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}, "patch": 16, "width": 24,
        "prefix_tokens": 1, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "random_weights": True,
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    recipe = Recipe(
        name="taps", encoders=(str(folder / "tiny.yaml"),), tile_px=64, views=ViewSpec(count=2), taps=("1", "last"),
        decoder=DecoderSpec(kind="multi-tap", width=6),
        fit=FitSpec(seeds=2, epochs=2, batch=2, validate_epochs=1, standardise="channel"),
    )  # fmt: skip
    flags = Flags(folder / "work", device="cpu", threads=1)
    assert extract(recipe, manifest, flags, print) == []
    return recipe, manifest, flags


def test_a_decoder_of_several_taps_is_one_entry_for_each_encoder(tapped):
    recipe, manifest, flags = tapped
    lines = []
    assert fit(recipe, manifest, flags, lines.append) == []
    assert any("2 caches x 2 seeds; 2 of 2 runs to do" in line for line in lines)
    study = Study(recipe, flags.work, manifest.path, device="cpu")
    counts = study.results()
    assert set(counts["encoder"]) == {"tiny@1+last"}
    record = read_record(run_folder(places.results(flags.work), "taps", "toy", "tiny@1+last", 0))
    assert [tokens["tap"] for tokens in record.identity["tokens"]] == ["1", "last"]
    assert record.identity["decoder"] == {"kind": "multi-tap", "width": 6}
    assert record.encoder.display == "Tiny ViT, taps 1 + last (random weights)"
    assert (record.encoder.width, record.encoder.patch) == (48, 16)
    assert record.decoder_params == 2 * (24 * 6 + 6) + 4 * (9 * 36 + 6) + 6 * 3 + 3

    grids = study.grids("toy", "tiny", "test")
    taps = [study.grids("toy", "tiny", "test", tap=tap).tokens for tap in recipe.taps]
    assert torch.equal(grids.tokens, torch.cat(taps, dim=2))
    decoder = study.decoder("toy", "tiny@1+last", seed=1)
    ((tokens, mask),) = grids
    predicted = decoder(tokens[None]).argmax(1)[0].to(torch.uint8).numpy()
    stored = counts.filter((pl.col("seed") == 1) & (pl.col("split") == "test")).select("tp", "fp", "fn")
    assert count(predicted, mask.numpy(), 3).tolist() == stored.to_numpy().tolist()


def test_an_encoder_that_is_found_by_its_caches_must_have_all_taps(tapped):
    recipe, manifest, flags = tapped
    found = change(recipe, name="found", encoders=(), fit=FitSpec(seeds=1, epochs=1, batch=2))
    assert fit(found, manifest, flags, print) == []
    with pytest.raises(CacheNotFound, match=r"of each tap \(1, 2, last\)"):
        fit(change(found, taps=("1", "2", "last")), manifest, flags, print)


def test_taps_that_were_not_extracted_are_named_with_the_command_that_extracts_them(tapped):
    recipe, manifest, flags = tapped
    (failure,) = fit(change(recipe, taps=("1", "2", "last")), manifest, flags, print)
    assert "a decoder for taps that were not extracted" in failure.error.problem
    assert failure.error.found == "no cache of 2"
    assert "fmcache extract --dataset toy --encoder tiny --tap 1,2,last" in failure.error.next_step


def test_one_decoder_cannot_read_grids_of_different_sizes(tapped, monkeypatch):
    recipe, manifest, flags = tapped
    sides = itertools.cycle([4, 2])
    monkeypatch.setattr(inputs, "open_tokens", lambda *_: SimpleNamespace(item=(24, side := next(sides), side)))
    (failure,) = fit(change(recipe, name="sizes"), manifest, flags, print)
    assert isinstance(failure.error, SpecError)
    assert failure.error.found == "1: 4 x 4, last: 2 x 2"
