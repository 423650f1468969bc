"""``rdf.yaml`` is valid for the BioImage Model Zoo's own package, where it is installed, and names its files."""

import numpy as np
import pytest
import yaml

from fmcache.bundles.bioimage import FORMAT_VERSION, identifiers
from fmcache.identity import sha256_file


@pytest.fixture
def described(bundle):
    return yaml.safe_load((bundle / "rdf.yaml").read_text(encoding="utf-8"))


def test_the_zoos_own_package_accepts_it(bundle):
    spec = pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed")
    found = spec.load_description(bundle / "rdf.yaml", format_version="discover")
    assert found.validation_summary.status == "valid-format", found.validation_summary.format()
    assert (found.type, found.name) == ("model", "Tiny -ViT- on Drawn -tiles-- study toy- seed 1")
    assert [axis.size for axis in found.outputs[0].axes[2:]] == [40, 40]


def test_it_names_files_of_the_bundle_with_their_sha256(bundle, described):
    assert described["format_version"] == FORMAT_VERSION
    files = [described["inputs"][0]["test_tensor"], described["outputs"][0]["test_tensor"]]
    files += described["weights"].values()
    assert len(files) == 3
    for one in files:
        assert one["sha256"] == sha256_file(bundle / one["source"])
    assert (bundle / described["documentation"]).is_file()


def test_axes_are_those_of_the_test_tensors(bundle, described):
    for tensor, names in ((described["inputs"][0], 3), (described["outputs"][0], 3)):
        shape = np.load(bundle / tensor["test_tensor"]["source"]).shape
        batch, channel, *space = tensor["axes"]
        assert shape == (1, len(channel["channel_names"]), *(axis["size"] for axis in space))
        assert batch == {"type": "batch"}
        assert len(channel["channel_names"]) == names
        assert all(axis["scale"] == pytest.approx(0.6) and axis["unit"] == "micrometer" for axis in space)


def test_the_licence_of_the_weights_and_the_citation_are_stated(described):
    assert described["license"] == "CC-BY-NC-ND-4.0"
    assert described["cite"] == [{"text": "Nobody (2020). A tiny transformer", "url": "https://example.org/tiny"}]


def test_labels_that_are_no_identifiers_get_a_name_by_their_id():
    assert identifiers(["tumour", "tumour bed", "строма"]) == ["tumour", "label_1", "label_2"]
