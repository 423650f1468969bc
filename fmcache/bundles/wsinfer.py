"""``config.json``, as WSInfer's model zoo describes a model.

References
----------
Kaczmarzyk et al. 2024, Open and reusable deep learning for pathology with WSInfer and QuPath, npj Precision Oncology;
schema ``model-config.schema.json`` 1.0 of https://github.com/SBU-BMI/wsinfer-zoo.
"""

from __future__ import annotations

import msgspec

from fmcache.bundles.contents import Facts

SPEC_VERSION = "1.0"


def wsinfer_config(facts: Facts) -> bytes:
    """Return the configuration as JSON.

    The model normalises pixels itself, so the only transform is that to float32 in 0..1. The schema has no field for
    random weights; `name` and `description`, which it allows and ignores, state them.
    """
    identity = facts.encoder_identity
    config = {
        "spec_version": SPEC_VERSION,
        "name": facts.title,
        "description": "Semantic segmentation: the model returns a map of probabilities (tile, label, y, x), already "
        "after the softmax, and not one vector per tile.",
        "architecture": identity["architecture"] or facts.encoder.name,
        "num_classes": len(facts.labels),
        "class_names": [label.name for label in facts.labels],
        "patch_size_pixels": facts.tile_px,
        "spacing_um_px": facts.mpp,
        "transform": [{"name": "ToTensor"}],
    }
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
