"""The files of a bundle: complete, checked, about the run that was exported, and without names of tiles or paths."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from fmcache.bundles.contents import CHECKSUMS, checked_facts
from fmcache.errors import BundleCorrupt
from fmcache.identity import sha256_file
from fmcache.scores.run_files import read_record

FILES = {
    "torchscript_model.pt", "decoder.safetensors", "config.json", "rdf.yaml", "test_input.npy", "test_output.npy",
    "bundle.json", "README.md", "references.bib", "SHA256SUMS",
}  # fmt: skip


def test_a_bundle_has_these_files_and_sha256sum_accepts_its_list(bundle):
    assert {path.name for path in bundle.iterdir()} == FILES
    assert len((bundle / CHECKSUMS).read_text().splitlines()) == len(FILES) - 1
    subprocess.run(["sha256sum", "--quiet", "--check", CHECKSUMS], cwd=bundle, check=True)


def test_facts_are_those_of_the_run(fitted, bundle):
    facts, record = checked_facts(bundle), read_record(fitted.run_folder())
    assert (facts.seed, facts.study, facts.dataset, facts.fold) == (1, "toy", "drawn", None)
    assert facts.fingerprint == record.fingerprint
    assert facts.encoder_identity["weights_sha256"] == sha256_file(fitted.folder / "tiny.safetensors")
    assert facts.decoder_sha256 == sha256_file(bundle / "decoder.safetensors")
    assert (bundle / "decoder.safetensors").read_bytes() == (fitted.run_folder() / "decoder.safetensors").read_bytes()


def test_no_file_names_a_tile_a_patient_or_a_folder_of_this_machine(fitted, bundle):
    private = [b"patient-", b'"t4"', b"t4:", str(fitted.folder).encode(), str(Path.cwd()).encode()]
    for path in bundle.iterdir():
        content = path.read_bytes()
        assert [word for word in private if word in content] == [], path.name


def test_random_weights_are_stated_in_every_file_that_describes_the_model(fitted, tmp_path):
    folder = fitted.export(tmp_path / "out", "tiny-random")
    for name in ("README.md", "config.json", "rdf.yaml", "bundle.json"):
        assert "random weights" in (folder / name).read_text(), name
    assert "it has learnt nothing" in (folder / "README.md").read_text()
    assert "it has learnt nothing" in " ".join((folder / "rdf.yaml").read_text().split())


def test_a_damaged_list_and_a_bundle_of_a_later_fmcache_are_refused(bundle, tmp_path):
    (tmp_path / CHECKSUMS).write_text(f"{'0' * 64}  ../bundle.json\n")
    with pytest.raises(BundleCorrupt, match="is damaged"):  # a list names files of its folder only
        checked_facts(tmp_path)
    facts = msgspec.json.decode((bundle / "bundle.json").read_bytes()) | {"format": 99}
    (tmp_path / "bundle.json").write_bytes(msgspec.json.encode(facts))
    (tmp_path / CHECKSUMS).write_text(f"{sha256_file(tmp_path / 'bundle.json')}  bundle.json\n")
    with pytest.raises(BundleCorrupt, match="a later fmcache"):
        checked_facts(tmp_path)
