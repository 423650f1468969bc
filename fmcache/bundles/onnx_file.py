"""The whole model as an ONNX file, for programs without torch; needs the extra ``onnx``."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fmcache.bundles.contents import ONNX
from fmcache.bundles.tracing import cannot_be_written, check_same, several, without_deprecation
from fmcache.bundles.whole_model import WholeModel
from fmcache.errors import ExtraMissing

OPSET = 18
"""The first version of ONNX's operations with antialiased resizing, which position tables and `grid: fit` use."""
LARGEST_BYTES = 2**31 - 2**20
"""A file of protobuf ends at 2 GB; larger weights go into a file beside it."""


def check_installed() -> None:
    """Raise ExtraMissing when a package of the extra ``onnx`` is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as reason:
        raise ExtraMissing(
            "--onnx needs packages that are not installed",
            found=str(reason),
            next_step="pip install 'fmcache[onnx]', or leave out --onnx",
        ) from None


def write_onnx(model: WholeModel, tile: torch.Tensor, folder: Path) -> None:
    """Write ``model.onnx``; input ``tiles``, output ``probabilities``, any number of tiles.

    It is run once by ONNX Runtime, and compared with the model.

    Raises
    ------
    SpecError
        When ONNX lacks an operation of the encoder, or the file gives other probabilities.
    """
    path = folder / ONNX
    dynamic = {"tiles": {0: torch.export.Dim("tile")}}
    try:
        with torch.no_grad(), without_deprecation(), _quiet():
            program: Any = torch.onnx.export(
                model, (several(tile, 2),), input_names=["tiles"], output_names=["probabilities"],
                opset_version=OPSET, dynamic_shapes=dynamic, dynamo=True, verbose=False,
            )  # fmt: skip
        _forget_source_files(program.model)
        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        program.save(str(path), external_data=size > LARGEST_BYTES)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as reason:
        raise cannot_be_written(model, "ONNX", reason.__cause__ or reason) from reason  # type: ignore[arg-type]
    _check(model, tile, path)


def _check(model: WholeModel, tile: torch.Tensor, path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        tiles = several(tile, count)
        (found,) = session.run(None, {"tiles": tiles.numpy()})
        with torch.no_grad():
            check_same(model, "ONNX", torch.from_numpy(found), model(tiles))


def _forget_source_files(graph_model: Any) -> None:
    """Remove what torch notes beside each operation: tracebacks with paths of this machine."""
    for graph in (graph_model.graph, *graph_model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        graph.metadata_props.clear()
    graph_model.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing its progress and its warnings about operations of torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
