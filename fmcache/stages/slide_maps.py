"""The map of one slide: what it depends on, whether it is there already, and how it is made and written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fmcache.errors import FmcacheError, NoRoom, ResultsMismatch, WorkerDied
from fmcache.identity import differences, fingerprint, whole_file
from fmcache.maps.contract import MapGeometry, MapOptions, MapTotals
from fmcache.maps.writing import writing
from fmcache.prediction.lattice import Coverage
from fmcache.prediction.tile_model import TileModel
from fmcache.prediction.windowing import Settings, Windows, predict_bands, tiles_at_a_time, windows_over
from fmcache.runtime import runners
from fmcache.slides.canvas import Canvas, open_canvas
from fmcache.stages.flags import Refused
from fmcache.stages.slide_tokens import SlideTokens, with_cache

FORMAT = 1
SUFFIX = ".predict.json"
"""The end of the name of the file that is written last: with it, the map of a slide is complete."""

LESS_MEMORY = "use a smaller --batch, fewer --workers, or a seed in place of --all-seeds"


class SlideTask(NamedTuple):
    """A slide to predict; picklable. `identity` (JSON) holds everything that can change its map."""

    path: Path
    name: str
    identity: bytes
    folder: Path
    mpp_of_slide: float | None
    overlap: float
    coverage: Coverage
    tiles: int
    batch: int
    threads: int
    seeds: int
    outputs: MapOptions
    tokens: SlideTokens | None = None
    relief: str = LESS_MEMORY

    @property
    def weight(self) -> int:
        return self.tiles

    @property
    def title(self) -> str:
        return self.name


def map_slide(model: TileModel, task: SlideTask, tick: runners.Tick) -> Iterator[tuple[str, Refused | None]]:
    """Predict a slide and write its files; yield a line on it, or the error of this slide."""
    try:
        line = _mapped(model, task, tick)
    except (NoRoom, WorkerDied):
        raise  # these would end the next slide too
    except FmcacheError as error:
        yield "", Refused.of(error)
    else:
        yield line, None


def _mapped(model: TileModel, task: SlideTask, tick: runners.Tick) -> str:
    start = time.monotonic()
    with open_canvas(task.path, model.mpp, task.mpp_of_slide) as canvas:
        windows = windows_over(canvas, model.tile_px, model.covered_px, task.overlap, task.coverage)
        n_labels, many = len(model.labels), task.seeds > 1
        batch = tiles_at_a_time(task.batch, task.seeds, n_labels, model.covered_px)
        settings = Settings(batch, task.threads, task.folder, shares=many)
        with (
            writing(geometry_of(canvas, model), task.folder, task.outputs) as writer,
            with_cache(model, task.tokens) as source,
        ):
            predict_bands(canvas, source, windows, settings, writer.add, tick)
        totals: MapTotals = writer.totals
        seconds = time.monotonic() - start
        _write_record(task, windows, totals, seconds)
        mm2 = (sum(totals.px)) * (canvas.true_mpp / 1000) ** 2
    shares = ", ".join(
        f"{label.name} {px / max(sum(totals.px), 1):.1%}" for label, px in zip(model.labels, totals.px, strict=True)
    )
    return f"{task.name}: {mm2:.3g} mm2 in {seconds:.0f} s, {totals.regions} regions; {shares}"


def geometry_of(canvas: Canvas, model: TileModel) -> MapGeometry:
    """Return the geometry of the map of a canvas."""
    return MapGeometry(canvas.name, canvas.height, canvas.width, canvas.true_mpp, canvas.scale, model.labels)


def is_mapped(folder: Path, name: str, identity: dict[str, Any]) -> bool:
    """Return whether the map of a slide is complete in `folder`, made from this identity.

    Raises
    ------
    ResultsMismatch
        When it was made from another identity; the message names each field that differs.
    """
    try:
        said = msgspec.json.decode((folder / f"{name}{SUFFIX}").read_bytes())
        found, files = said["identity"], said["files"]
        whole = said["fingerprint"] == fingerprint(found)
        there = all(_size(folder / file) == size for file, size in files.items())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False
    if not (whole and there):
        return False
    if lines := differences(identity, found):
        raise ResultsMismatch(
            f"{folder / name}{SUFFIX}: this map was made in another way:\n    " + "\n    ".join(lines),
            next_step="choose another folder with --into, or replace it with --recompute",
        )
    return True


def _write_record(task: SlideTask, windows: Windows, totals: MapTotals, seconds: float) -> None:
    identity = msgspec.json.decode(task.identity)
    said = {
        "format": FORMAT,
        "identity": identity,
        "fingerprint": fingerprint(identity),
        "files": {file.name: _size(file) for file in totals.files},
        "tiles": windows.tiles,
        "label_pixels": list(totals.px),
        "glass_pixels": totals.glass_px,
        "regions": totals.regions,
        "wall_s": round(seconds, 3),
    }
    with whole_file(task.folder / f"{task.name}{SUFFIX}") as file:
        file.write(msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")


def _size(path: Path) -> int:
    """Return the size of a file, or of all files below a folder; -1 when it does not exist."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else -1
