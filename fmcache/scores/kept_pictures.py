"""Pictures beside the results, for the report: test tiles as JPEG, and the token grids of each encoder as colours.

- ``STUDY/DATASET/tiles.parquet``: tile, jpeg, and the sha256 (hex) of `jpeg`
- ``tokens.parquet`` beside the seeds of an encoder (and fold): tile, rows, columns, rgb (raw uint8, row by row), and
  the sha256 (hex) of `rgb`

No number depends on them. What is missing or damaged is left out, never an error. Nothing lists the checksums of these
files, so they are read in the way of `fmcache.scores.unchecked`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.identity import whole_file
from fmcache.scores.unchecked import ends_its_reader

TILES, TOKENS = "tiles.parquet", "tokens.parquet"
TILES_SCHEMA = {"tile": pl.String, "jpeg": pl.Binary, "sha256": pl.String}
TOKENS_SCHEMA = {"tile": pl.String, "rows": pl.Int32, "columns": pl.Int32, "rgb": pl.Binary, "sha256": pl.String}

Rgb = npt.NDArray[np.uint8]


def write_tile_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write the pictures (JPEG) of tiles, by tile id, into the folder of a dataset's results."""
    rows = [(tile, jpeg, _sha256(jpeg)) for tile, jpeg in sorted(pictures.items())]
    _write(folder / TILES, pl.DataFrame(rows, TILES_SCHEMA, orient="row"))


def tile_pictures(folder: Path) -> dict[str, bytes]:
    """Return the pictures (JPEG) of tiles that the folder of a dataset's results holds, by tile id."""
    table = _read(folder / TILES, TILES_SCHEMA)
    return {tile: jpeg for tile, jpeg, sha256 in table.iter_rows() if _is_whole(jpeg, sha256)}


def write_token_pictures(folder: Path, pictures: Mapping[str, Rgb]) -> None:
    """Write the token grids of tiles as colours, (row, col, 3) uint8 by tile id, beside the seeds of an encoder."""
    rows = [(tile, *rgb.shape[:2], data := rgb.tobytes(), _sha256(data)) for tile, rgb in sorted(pictures.items())]
    _write(folder / TOKENS, pl.DataFrame(rows, TOKENS_SCHEMA, orient="row"))


def token_pictures(folder: Path) -> dict[str, Rgb]:
    """Return the token grids of tiles as colours, (row, col, 3) uint8 by tile id; `folder` is that of the seeds."""
    table = _read(folder / TOKENS, TOKENS_SCHEMA)
    return {
        tile: np.frombuffer(rgb, np.uint8).reshape(rows, columns, 3)
        for tile, rows, columns, rgb, sha256 in table.iter_rows()
        if _is_whole(rgb, sha256) and rows and columns and len(rgb) == 3 * rows * columns
    }


def _write(path: Path, table: pl.DataFrame) -> None:
    with whole_file(path) as file:
        table.write_parquet(file, compression="zstd", statistics=False)  # statistics would repeat whole pictures


def _read(path: Path, schema: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """Return a table of this schema; without rows if there is no such file, or it cannot be read."""
    empty = pl.DataFrame(schema=schema)
    if not path.is_file() or ends_its_reader(path):
        return empty
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return empty
    return table if table.schema == empty.schema else empty


def _is_whole(data: bytes | None, sha256: str | None) -> bool:
    return data is not None and _sha256(data) == sha256


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
