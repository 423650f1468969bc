"""The configuration has every field that the schema of WSInfer's model zoo (1.0) demands, with its type."""

import json

import pytest


@pytest.fixture
def config(bundle):
    return json.loads((bundle / "config.json").read_text())


def test_required_fields_have_the_types_of_the_schema(config):
    kinds = {
        "spec_version": str, "architecture": str, "num_classes": int, "patch_size_pixels": int,
        "spacing_um_px": float, "class_names": list, "transform": list,
    }  # fmt: skip
    assert {field: type(config[field]) for field in kinds} == kinds
    assert config["spec_version"] == "1.0"
    assert len(set(config["class_names"])) == config["num_classes"] == 3
    for step in config["transform"]:
        assert step["name"] in ("Resize", "ToTensor", "Normalize")
        assert step.keys() <= {"name", "arguments"}


def test_values_are_those_of_the_study(config):
    assert config["class_names"] == ["tumour | *bed*", "строма", "other"]
    assert config["patch_size_pixels"] == 40
    assert config["spacing_um_px"] == pytest.approx(0.6)
    assert config["architecture"] == "vit_tiny_patch16_224"
    # the model normalises: a second Normalize would spoil its input
    assert config["transform"] == [{"name": "ToTensor"}]
