"""The whole model as a TorchScript file that needs only torch, and names no file of the machine that wrote it.

torch calls TorchScript deprecated (torch.export is its successor), but WSInfer, QuPath's extension for it, the BioImage
Model Zoo and C++ programs read TorchScript.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fmcache.bundles.whole_model import WholeModel
from fmcache.errors import SpecError

TOLERANCE = 1e-3
"""Largest accepted difference between probabilities of a written model and of the model that it was made from."""
_OF_OTHER_MACHINES = ".debug_pkl"
"""The end of the names of records that hold only paths of source files, for tracebacks."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PIECE_BYTES = 2**22


def trace(model: WholeModel, tile: torch.Tensor) -> Any:
    """Return the TorchScript of a model, checked against it.

    Parameters
    ----------
    tile
        (1, colour, y, x) float32 in 0..1, on the CPU.

    Raises
    ------
    SpecError
        When torch cannot trace the encoder, or the trace gives other probabilities, also for 1 or 3 tiles.
    """
    try:
        with torch.no_grad(), without_deprecation():
            traced: Any = torch.jit.trace(model, several(tile, 2), check_trace=False)  # type: ignore[no-untyped-call]
            _follow_device(traced)
            for count in (1, 3):
                tiles = several(tile, count)
                check_same(model, "TorchScript", traced(tiles), model(tiles))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as reason:
        if isinstance(reason, SpecError):
            raise
        raise cannot_be_written(model, "TorchScript", reason) from reason
    return traced


def _follow_device(traced: Any) -> None:
    """Let tensors that a module makes be made on the device of its input.

    A trace stores the device on which it was made as a constant. Encoders that compute positions (rotary embeddings,
    shifted windows) would then fail on a GPU.
    """
    for module in traced.modules():
        if not module._c._has_method("forward"):  # a list of modules
            continue
        graph = module.graph
        tensors = [value for value in graph.inputs() if value.type().kind() == "TensorType"]
        for constant in graph.findAllNodes("prim::Constant"):
            device = constant.output()
            if device.type().kind() == "DeviceObjType" and tensors:
                of_input = graph.create("prim::device", tensors[:1], 1).insertBefore(constant).output()
                of_input.setType(device.type())
                device.replaceAllUsesWith(of_input)


def several(tile: torch.Tensor, count: int) -> torch.Tensor:
    """Return a batch of `count` different tiles: the tile (1, colour, y, x), mirrored, and so on."""
    return torch.cat([tile, tile.flip(-1), tile.flip(-2), tile.mT][:count])


def check_same(model: WholeModel, form: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise SpecError when a written model returns other probabilities than the model that it was made from."""
    if found.shape != expected.shape:
        difference = f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    elif (largest := float((found - expected).abs().max())) > TOLERANCE:
        difference = f"probabilities that differ by up to {largest:.2g}"
    else:
        return
    raise SpecError(
        f"{model.encoder.card.name!r} cannot be written as {form}: the result is another model",
        expected=f"probabilities that differ by at most {TOLERANCE:g}",
        found=difference,
        next_step="pass --decoder-only, and run the encoder with fmcache",
    )


def cannot_be_written(model: WholeModel, form: str, reason: Exception) -> SpecError:
    """Return the error for an encoder with operations that a file format does not have."""
    return SpecError(
        f"{model.encoder.card.name!r} cannot be written as {form}",
        found=str(reason).strip().partition("\n")[0][:300] or type(reason).__name__,
        next_step="leave out --onnx" if form == "ONNX" else "pass --decoder-only, and run the encoder with fmcache",
    )


def save(traced: Any, path: Path) -> None:
    """Write a TorchScript file without the records that name source files of this machine."""
    whole = path.with_suffix(".whole")  # the archive has the name of the file inside: the stem must be the same
    try:
        with without_deprecation():
            torch.jit.save(traced, whole)
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for record in source.infolist():
                if not record.filename.endswith(_OF_OTHER_MACHINES):
                    _copy(source, record.filename, archive)
    finally:
        whole.unlink(missing_ok=True)


def _copy(source: zipfile.ZipFile, name: str, archive: zipfile.ZipFile) -> None:
    with (
        source.open(name) as record,
        archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as written,
    ):
        while piece := record.read(_PIECE_BYTES):
            written.write(piece)


def load(path: Path, device: torch.device) -> Any:
    """Return the module in a TorchScript file, which is a program: load only files that you trust."""
    with without_deprecation():
        return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]


@contextmanager
def without_deprecation() -> Iterator[None]:
    """Hide torch's warnings that TorchScript is deprecated, and that a trace fixes sizes, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
