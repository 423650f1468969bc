"""Breaks users' input files in thousands of ways: fmcache must read or refuse each, and never end in a traceback.

    python pipelines/fuzz.py --inputs 100000            # in total; under ten minutes on two cores
    python pipelines/fuzz.py --inputs 2000 --only mask geojson

For each kind of file it makes good files, then breaks them: bytes are inserted, replaced, cut or repeated, and values
in YAML or JSON trees are replaced by unusual ones. An input counts as `read` or as `refused` (an FmcacheError). Any
other error counts as a traceback; its input is made as small as possible and printed. The last line has the totals.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from fmcache.datasets.folder import Pair
from fmcache.datasets.groups import group_of
from fmcache.encoders.cards import BUILT_IN, read_card
from fmcache.errors import FmcacheError
from fmcache.manifest import FolderDataset, Label, Manifest
from fmcache.specs import read_recipe
from fmcache.tiles.annotations import read_annotations
from fmcache.tiles.pictures import read_image, read_raw_mask
from fmcache.tiles.values import read_values

SIDE = 24
ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    "", " ", "0", "nan", "1e5", "#c80000", "#", "255-", "-1", "..", "/", "\x00", "\u202e", "a" * 5000, "肿瘤", "é",
    "e\u0301", "2026-11-25", "!!python/x", [], {}, [[]], [None], {"": ""}, {"name": None}, [0, 1], ["a", "a"],
    {"a": {"a": {"a": []}}},
]  # fmt: skip
ODD_TEXTS = [
    "", "\n", "\t", "\r\n", "\x00", "\ufeff", ",", ";", "'", '"', "{", "}", "[", "]", ":", "- ", "&a ", "*a", "!!set ",
    "%", "? ", "|", ">", "\u2028", "NaN", "-Infinity", "1e999", "null", "#", "<<: ", "=", "\\", "tile", "group", "肿",
]  # fmt: skip


class Kind(NamedTuple):
    """A kind of file: a strategy that draws broken bytes, the file name, and the function that reads it."""

    strategy: st.SearchStrategy[bytes]
    name: str
    read: Callable[[Path], object]


class Outcome(NamedTuple):
    """How many inputs were read, were refused, and took over a second; and the text of the first traceback."""

    read: int
    refused: int
    slow: int
    traceback: str


def main() -> None:
    """Break files of all kinds; exit with code 1 when one ended in a traceback."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="number of inputs, all kinds in total")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    arguments = parser.parse_args()
    each = -(-arguments.inputs // len(arguments.only))
    outcomes = {}
    for name in arguments.only:
        start = time.monotonic()
        outcomes[name] = one = run(KINDS[name], each, arguments.seed)
        print(f"{name}: {one.read} read, {one.refused} refused, {one.slow} over 1 s, {time.monotonic() - start:.0f} s")
        print(one.traceback, end="", flush=True)
    total = sum(one.read + one.refused for one in outcomes.values())
    tracebacks = sum(bool(one.traceback) for one in outcomes.values())
    print(f"inputs={total} tracebacks={tracebacks}")
    sys.exit(bool(tracebacks))


def run(kind: Kind, inputs: int, start: int) -> Outcome:
    """Read `inputs` broken files of a kind; stop at the first traceback."""
    counts: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=inputs, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], print_blob=False,
    )  # fmt: skip
    @given(kind.strategy)
    def hand_in(data: bytes) -> None:
        path = folder / kind.name
        path.write_bytes(data)
        began = time.monotonic()
        try:
            kind.read(path)
            counts["read"] += 1
        except FmcacheError:
            counts["refused"] += 1
        counts["slow"] += time.monotonic() - began > 1

    traceback = ""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        try:
            hand_in()
        except Exception as error:  # noqa: BLE001 - any error but an FmcacheError is a finding
            traceback = f"  TRACEBACK {type(error).__name__}: {str(error)[:300]}\n"
            traceback += "".join(f"    {note}\n" for note in getattr(error, "__notes__", ()))[:3000]
    return Outcome(counts["read"], counts["refused"], counts["slow"], traceback)


# --- broken bytes ---------------------------------------------------------------------------------------------------


def broken(goods: list[bytes], texts: bool = False) -> st.SearchStrategy[bytes]:
    """Return good files with up to six edits each: bytes inserted, replaced, cut or repeated, or another file's end."""
    pieces = st.sampled_from([text.encode() for text in ODD_TEXTS]) if texts else st.binary(min_size=1, max_size=8)
    edit = st.tuples(st.sampled_from(["put", "over", "cut", "end", "twice", "graft"]), st.floats(0, 1), pieces)

    @st.composite
    def files(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(goods))
        for what, place, piece in draw(st.lists(edit, max_size=6)):
            # half of all edits go into the first 200 bytes, because most files have their header there
            at = int(place * len(data)) if place > 0.5 else int(2 * place * min(len(data), 200))
            if what == "put":
                data = data[:at] + piece + data[at:]
            elif what == "over":
                data = data[:at] + piece + data[at + len(piece) :]
            elif what == "cut":
                data = data[:at] + data[at + 4 * len(piece) :]
            elif what == "end":
                data = data[:at]
            elif what == "twice":
                data = data[:at] + data[max(0, at - 64) :]
            else:
                other = draw(st.sampled_from(goods))
                data = data[:at] + other[int(place * len(other)) :]
        return data

    return files()


def broken_trees(goods: list[Any], dump: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    """Return YAML or JSON trees in which up to four values or keys were replaced, removed or moved."""
    edit = st.tuples(st.sampled_from(["odd", "drop", "key", "move"]), st.integers(0, 10**6), st.integers(0, 10**6))

    @st.composite
    def files(draw: st.DrawFn) -> bytes:
        tree = copy.deepcopy(draw(st.sampled_from(goods)))
        for what, number, value in draw(st.lists(edit, min_size=1, max_size=4)):
            places = list(_places(tree))
            if not places:
                break
            parent, key = places[number % len(places)]
            if what == "drop":
                del parent[key]
            elif what == "key" and isinstance(parent, dict):
                parent[str(ODD[value % len(ODD)])[:40]] = parent.pop(key)
            elif what == "move":
                other, name = places[value % len(places)]
                parent[key] = copy.deepcopy(other[name])
            else:
                parent[key] = copy.deepcopy(ODD[value % len(ODD)])
        return dump(tree)

    return files()


def trees_or_texts(goods: list[Any], dump: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    """Return good trees that were broken either as trees or as text."""
    return st.one_of(broken_trees(goods, dump), broken([dump(one) for one in goods], texts=True))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


# --- good files -----------------------------------------------------------------------------------------------------


def good_pictures(colours: bool) -> list[bytes]:
    """Return small pictures in every mode and file format: images if `colours`, else masks with values 0 to 2."""
    rng = np.random.Generator(np.random.Philox(key=1))
    grey = rng.integers(0, 3, (SIDE, SIDE), dtype=np.uint8)
    rgb = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) if colours else np.repeat(grey[..., None], 3, axis=2)
    pictures = [Image.fromarray(rgb), Image.fromarray(rgb).convert("RGBA"), Image.fromarray(grey)]
    pictures += [Image.fromarray(grey).convert(mode) for mode in ("LA", "P", "1", "I")]
    files = []
    for picture in pictures:
        for kind in ("PNG", "TIFF", "BMP", "JPEG"):
            with contextlib.suppress(OSError):  # this format has no such mode
                file = io.BytesIO()
                picture.save(file, kind)
                files.append(file.getvalue())
    for pixels, options in (
        (rgb, {"photometric": "rgb", "compression": "zlib"}),
        (rgb, {"photometric": "rgb", "tile": (16, 16)}),
        (np.moveaxis(rgb, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        (np.moveaxis(rgb, -1, 0), {"photometric": "minisblack"}),
        (grey, {"photometric": "miniswhite"}),
        (grey.astype(np.uint16), {"photometric": "minisblack"}),
        (grey.astype(np.float32), {"photometric": "minisblack"}),
        (grey, {"photometric": "palette", "colormap": rng.integers(0, 2**16, (3, 256), dtype=np.uint16)}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, **options)
        files.append(file.getvalue())
    for array in (grey, grey.astype(np.int64), grey > 0) if not colours else ():
        file = io.BytesIO()
        np.save(file, array)
        files.append(file.getvalue())
    return files


def good_regions() -> list[Any]:
    """Return GeoJSON as QuPath and other tools write it."""
    square = [[[1, 1], [9, 1], [9, 9], [1, 9], [1, 1]], [[3, 3], [4, 3], [4, 4], [3, 3]]]
    shapes = [
        {"type": "Polygon", "coordinates": square, "plane": {"c": -1, "z": 0, "t": 0}},
        {"type": "MultiPolygon", "coordinates": [square, [[[11, 11], [12, 11], [12, 12], [11, 11]]]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": square}]},
        {"type": "Point", "coordinates": [1, 1]},
    ]
    classes: list[Any] = [{"name": "Tumor", "color": [200, 0, 0]}, {"names": ["Tumor", "Positive"]}, "Stroma", None]
    classes.append("{'name': 'Stroma'}")
    features = [
        {
            "type": "Feature",
            "id": str(i),
            "geometry": shape,
            "properties": {"objectType": "annotation", "classification": kind, "measurements": {"Area": float("nan")}},
        }
        for i, (shape, kind) in enumerate(zip(shapes * 2, classes * 2, strict=False))
    ]
    return [{"type": "FeatureCollection", "features": features}, features, features[0]]


def good_manifests() -> list[Any]:
    """Return manifests of drawn tiles, pictures and annotated regions."""
    ids = [f"t{i}" for i in range(6)]
    splits = {"train": ids[:3], "val": ids[3:4], "test": ids[4:], "subsets": [ids[:1], ids[:2]]}
    labels = [
        {"name": "a", "colour": "#d55e00", "values": [0, "2-5"]},
        {"name": "b", "colour": "#009e73", "values": [1]},
    ]
    hashes = {"image_sha256": "0" * 64, "mask_sha256": "1" * 64}
    files = [{"id": i, "group": i, "image": f"{i}.png", "mask": f"{i}.png"} | hashes for i in ids]
    demo = {"format": "demo", "seed": 7, "labels": [{k: v for k, v in one.items() if k != "values"} for one in labels]}
    demo |= {"tiles": [{"id": i, "group": i} for i in ids], "splits": splits, "folds": [splits], "mpp": 0.5}
    folder = {"format": "folder", "root": "tiles", "labels": labels, "ignore_values": [255], "tiles": files}
    folder |= {"splits": splits, "mpp": 0.25, "view_mpp": 0.5}
    named = [{"name": "a", "colour": "#d55e00", "values": ["Tumor"]}, {"name": "b", "colour": "#009e73"}]
    geojson = {"format": "geojson", "root": "/tiles", "labels": named, "order": ["Tumor", "b"], "fill": "b"}
    geojson |= {"fetch": {"url": "http://localhost/{file}", "archives": [{"file": "a.zip", "holds": "images"}]}}
    return [{"format": 1, "default": "x", "datasets": {"x": dataset, "y": demo}} for dataset in (demo, folder, geojson)]


def good_recipes() -> list[Any]:
    """Return recipes with every key."""
    recipe = {
        "name": "study", "question": "?", "datasets": ["demo"], "folds": False, "subset": 0, "tile_px": 64,
        "grid": "fit",
        "encoders": ["raw-pixels", {"name": "timm:vit_tiny_patch16_224", "random_weights": True}, "mine.yaml"],
        "views": {"count": 3, "seed": 1, "scale": 1.1, "outside": "ignore"}, "taps": ["last", "6+norm"],
        "precision": "published", "store": "float16-round5", "decoder": {"width": 8}, "dice": "pooled",
        "fit": {"seeds": 2, "epochs": 2, "learning_rate": 1e-3, "standardise": "channel"},
        "sweep": {"views.count": [1, 2], "grid": ["fit", "pad"]},
    }  # fmt: skip
    return [recipe, {"name": "short"}]


def good_groups() -> list[bytes]:
    """Return CSV files with tiles and groups, as spreadsheets write them."""
    text = "tile,group\nt0,p0\nt1,p1\nt2.png,p1\n"
    quoted = '"Image";"Patient"\r\n"t0";"p;0"\r\n"t1";"p1"\r\n"t2";"p1"\r\n'
    return [text.encode(), b"\xef\xbb\xbf" + text.encode(), quoted.encode("utf-16"), text.replace(",", "\t").encode()]


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode()


# --- their readers ---------------------------------------------------------------------------------------------------

_LABELS = (Label("a", "#d55e00", (0,)), Label("b", "#009e73", (1,)), Label("c", "#0072b2", (2, "#c80000")))
_PAIRS = [Pair(f"t{i}", Path(f"images/t{i}.png"), Path(f"masks/t{i}.png")) for i in range(3)]


def _read_mask(path: Path) -> None:
    raw = read_raw_mask(path)
    read_values(raw, FolderDataset(labels=_LABELS, root="", ignore_values=(255,)))


def _cards() -> list[Any]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(BUILT_IN.rglob("*.yaml"))]


def _kinds() -> dict[str, Kind]:
    masks = good_pictures(colours=False)
    return {
        "image": Kind(broken(good_pictures(colours=True)), "t.png", read_image),
        "mask": Kind(broken(masks), "t.tif", _read_mask),
        "npy": Kind(broken([one for one in masks if one.startswith(b"\x93NUMPY")]), "t.npy", _read_mask),
        "geojson": Kind(trees_or_texts(good_regions(), _json), "t.geojson", read_annotations),
        "manifest": Kind(trees_or_texts(good_manifests(), _yaml), "data_manifest.yaml", Manifest),
        "recipe": Kind(trees_or_texts(good_recipes(), _yaml), "recipe.yaml", read_recipe),
        "card": Kind(trees_or_texts(_cards(), _yaml), "card.yaml", lambda path: read_card(str(path))),
        "groups": Kind(broken(good_groups(), texts=True), "groups.csv", lambda path: group_of(str(path), _PAIRS)),
    }  # fmt: skip


KINDS = _kinds()

if __name__ == "__main__":
    main()
