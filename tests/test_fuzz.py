"""Manifests, recipes and cards of any content are read or refused: no input of a user ends in a traceback.

These tests draw few inputs; FMCACHE_FUZZ=N draws N inputs for each test.
"""

import datetime
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmcache.datasets.label_flags import parse_labels
from fmcache.encoders.cards import read_card
from fmcache.errors import FmcacheError
from fmcache.manifest import Manifest
from fmcache.specs import read_recipe, variants

EXAMPLES = int(os.environ.get("FMCACHE_FUZZ", "120"))
SHORT = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SHA = "0" * 64
FILES = {"image_sha256": SHA, "mask_sha256": SHA}
LABELS = [{"name": "a", "colour": "#000000", "values": [0]}, {"name": "b", "colour": "#ffffff", "values": ["1-"]}]
TILES = [{"id": f"t{i}", "group": f"p{i}", "image": f"t{i}.png", "mask": f"t{i}.png", **FILES} for i in range(3)]
SPLITS = {"train": ["t0"], "val": ["t1"], "test": ["t2"], "subsets": [["t0"]]}
FOLDER = {"format": "folder", "root": ".", "mpp": 0.5, "labels": LABELS, "tiles": TILES, "splits": SPLITS}
REGIONS = {
    "format": "geojson", "root": ".",
    "labels": [{**label, "values": [label["name"]]} for label in LABELS], "order": ["a", "b"],
    "fetch": {"archives": [{"file": "x.zip", "holds": "images"}]},
}  # fmt: skip
DEMO = {"format": "demo", "seed": 1, "labels": LABELS, "tiles": [{"id": f"t{i}"} for i in range(3)], "splits": SPLITS}
MANIFEST = {"format": 1, "default": "m", "datasets": {"m": FOLDER, "r": REGIONS, "d": {**DEMO, "folds": [SPLITS]}}}
RECIPE = {
    "name": "r", "datasets": ["m"], "encoders": ["raw-pixels", {"name": "x.yaml", "weights": "w.pt"}],
    "taps": ["last", "6+norm"], "views": {"count": 3, "hue": 0.1}, "fit": {"seeds": 2, "learning_rate": 0.1},
    "sweep": {"views.count": [1, 2]}, "store": "float16-round5",
}  # fmt: skip
CARD = {
    "name": "c", "title": "C", "architecture": "vit",
    "patch": 16, "width": 384, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "arguments": {"img_size": 224, "act_layer": "SwiGLU"}, "weights": {"repo": "x/y", "file": "z", "sha256": SHA},
}  # fmt: skip
READERS = {
    "manifest": (MANIFEST, lambda path: Manifest(path).dataset()),
    "recipe": (RECIPE, lambda path: variants(read_recipe(path))),
    "card": (CARD, lambda path: read_card(str(path))),
}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.dates(),
    st.datetimes(), st.binary(max_size=4),
    st.sampled_from(["", ".", "..", "../x", "a/b", "CON", "1-", "9-3", "#12345g", "\u0301", "a" * 300, 10**400, -0.0]),
    st.sampled_from(["last", "1+norm", "float32-round19", "folder", "demo"]),
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
SNIPPETS = [
    "&a [*a]", "&a {x: *a}", "{[1]: 2}", "{{a: b}: c}", "2024-02-31", "0x_", "1:99:99", "!!binary zzz",
    "!!set {a}", "!!python/name:os.x",
    "!!omap [a]", "!!float x", "!!int ''", "!!timestamp x", "<<: 3", "? [a]\n: b", "*nowhere", "\0", "\x85",
    "\ufeff", "'", '"\\ud800"',
    "[" * 2000, "{a: " * 2000, "- " * 3000, "1" * 5000, "1e999", ".nan", "-.inf", "%YAML 9.9\n---\n",
    "--- a\n--- b\n", "\t", "|9\n x",
    "!!bool maybe", "!!null x", "!<tag:yaml.org,2002:int> q", "0b", "0o9", "190:20:30", "=", "<<: [a]",
    "key: a\nkey: b",
]  # fmt: skip


@st.composite
def changed(draw, tree):
    """A tree that is nearly valid: some of its nodes are replaced, left out, doubled or renamed."""
    for _ in range(draw(st.integers(1, 3))):
        tree = draw(_changed_once(tree))
    return tree


@st.composite
def _changed_once(draw, tree):
    if not isinstance(tree, dict | list) or not tree or draw(st.integers(0, 4)) == 0:
        return draw(trees)
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    at = draw(st.sampled_from(list(keys)))
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    how = draw(st.integers(0, 7))
    if how == 0:
        del copy[at]
    elif how == 1 and isinstance(copy, dict):
        copy[draw(scalars.filter(lambda key: not isinstance(key, float)))] = copy.pop(at)
    elif how == 1:
        copy.append(copy[at])
    else:
        copy[at] = draw(_changed_once(copy[at]))
    return copy


def outcome(kind, path):
    """Read a file; it may also be refused, with a message that can be printed."""
    try:
        READERS[kind][1](path)
    except FmcacheError as error:
        assert str(error).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("kind", READERS)
@SHORT
@given(data=st.data())
def test_nearly_valid_trees_are_read_or_refused(tmp_path, kind, data):
    path = tmp_path / "x.yaml"
    tree = data.draw(changed(READERS[kind][0]))
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    outcome(kind, path)


@pytest.mark.parametrize("kind", READERS)
@SHORT
@given(data=st.data())
def test_nearly_valid_bytes_are_read_or_refused(tmp_path, kind, data):
    path = tmp_path / "x.yaml"
    raw = bytearray(
        yaml.safe_dump(READERS[kind][0], default_flow_style=data.draw(st.sampled_from([None, False]))).encode()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        put = data.draw(
            st.sampled_from(SNIPPETS).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=4)
        )
        raw[at : at + data.draw(st.integers(0, 20))] = put
    path.write_bytes(bytes(raw))
    outcome(kind, path)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_odd_yaml_in_place_of_a_value_is_read_or_refused(tmp_path, kind, snippet):
    path = tmp_path / "x.yaml"
    for text in (snippet, f"name: {snippet}", f"datasets: {snippet}", f"a:\n  - {snippet}"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        outcome(kind, path)


@pytest.mark.parametrize("kind", READERS)
def test_valid_files_are_read(tmp_path, kind):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(READERS[kind][0]))
    READERS[kind][1](path)


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory(tmp_path):
    path = tmp_path / "x.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path.write_text("\n".join(lines))
    for kind in READERS:
        with pytest.raises(FmcacheError):
            READERS[kind][1](path)


@SHORT
@given(st.text("a=,|#\"'\\ 0123-:肿\0", max_size=20))
def test_labels_of_any_text_are_read_or_refused(text):
    for regions in (False, True):
        try:
            parse_labels(text, regions)
        except FmcacheError as error:
            assert str(error)


@pytest.mark.parametrize(
    "value", [datetime.date(2024, 1, 1), float("nan"), float("inf"), 0, -1, 10**400, "x", True, [1]]
)
@pytest.mark.parametrize("key", ["mpp", "view_mpp"])
def test_um_per_px_is_positive_and_finite_or_refused_by_line(tmp_path, key, value):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({**MANIFEST, "datasets": {"m": {**FOLDER, key: value}}}))
    with pytest.raises(FmcacheError, match=rf"m.yaml:\d+: datasets\.m\.{key}"):
        Manifest(path)
