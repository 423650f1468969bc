"""``rdf.yaml``, the description of a model for the BioImage Model Zoo and the programs that read it.

References
----------
https://github.com/bioimage-io/spec-bioimage-io, model description 0.5.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from fmcache.bundles.contents import MODEL, ONNX, PAGE, TEST_INPUT, TEST_OUTPUT, Facts
from fmcache.identity import sha256_file

FORMAT_VERSION = "0.5.3"
SPDX = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0")
"""Licences of cards that are identifiers of SPDX; the field ``license`` may hold no others."""
_NAME_LENGTH, _DESCRIPTION_LENGTH = 128, 1024


def bioimage_description(facts: Facts, folder: Path, *, torch_version: str, opset: int) -> bytes:
    """Return the description as YAML; the files that it names, with their sha256, are in `folder`."""
    described: dict[str, Any] = {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": _name(facts),
        "description": _description(facts),
        "authors": [{"name": f"the authors of study {_plain(facts.study)}"}],
        "cite": _cited(facts),
        "documentation": PAGE,
        "tags": ["2d", "histology", "pathology", "semantic-segmentation", "foundation-model", "fmcache"],
        "inputs": [_input(facts, folder)],
        "outputs": [_output(facts, folder)],
        "weights": _weights(facts, folder, torch_version, opset),
        "config": {"fmcache": msgspec.to_builtins(facts)},
    }
    if facts.encoder.licence in SPDX and not facts.encoder.random_weights:
        described["license"] = facts.encoder.licence
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def _name(facts: Facts) -> str:
    return _plain(facts.title)[:_NAME_LENGTH].strip()


def _plain(text: str) -> str:
    """Return a text with the characters that names of models may have."""
    return re.sub(r"[^0-9a-zA-Z_\- ()]", "-", text)


def _description(facts: Facts) -> str:
    random = " The weights of the encoder are random: it has learnt nothing." if facts.encoder.random_weights else ""
    text = (
        f"Semantic segmentation of tiles of {facts.tile_px} x {facts.tile_px} px at {facts.mpp:g} um/px into "
        f"{len(facts.labels)} labels: a frozen encoder ({facts.encoder_display}) and a light decoder, fitted by "
        f"fmcache on {facts.dataset_title}.{random} Licence of the encoder's weights: "
        f"{facts.encoder.licence or 'none stated'}."
    )
    return text[:_DESCRIPTION_LENGTH]


def _cited(facts: Facts) -> list[dict[str, str]]:
    if not (facts.encoder.citation and facts.licence_page):
        return []
    return [{"text": facts.encoder.citation, "url": facts.licence_page}]


def _space(facts: Facts, px: int) -> list[dict[str, Any]]:
    return [{"type": "space", "id": axis, "size": px, "unit": "micrometer", "scale": facts.mpp} for axis in ("y", "x")]


def _input(facts: Facts, folder: Path) -> dict[str, Any]:
    channel = {"type": "channel", "id": "channel", "channel_names": ["red", "green", "blue"]}
    return {
        "id": "tiles",
        "description": "RGB in 0..1; the model normalises it",
        "axes": [{"type": "batch"}, channel, *_space(facts, facts.tile_px)],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": _file(folder, TEST_INPUT),
    }


def _output(facts: Facts, folder: Path) -> dict[str, Any]:
    names = [label.name for label in facts.labels]
    return {
        "id": "probabilities",
        "description": "softmax over the labels: " + ", ".join(names),
        "axes": [
            {"type": "batch"},
            {"type": "channel", "id": "channel", "channel_names": identifiers(names)},
            *_space(facts, facts.covered_px),
        ],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": _file(folder, TEST_OUTPUT),
    }


def identifiers(names: list[str]) -> list[str]:
    """Return a name for each label that a description may contain: ASCII identifiers, ``label_ID`` for other names."""
    usable = [name.isascii() and name.isidentifier() for name in names]
    return [name if fine else f"label_{i}" for i, (name, fine) in enumerate(zip(names, usable, strict=True))]


def _weights(facts: Facts, folder: Path, torch_version: str, opset: int) -> dict[str, Any]:
    release = torch_version.partition("+")[0]
    weights: dict[str, Any] = {"torchscript": _file(folder, MODEL) | {"pytorch_version": release}}
    if facts.onnx:
        weights["onnx"] = _file(folder, ONNX) | {"opset_version": opset, "parent": "torchscript"}
    return weights


def _file(folder: Path, name: str) -> dict[str, Any]:
    return {"source": name, "sha256": sha256_file(folder / name)}
