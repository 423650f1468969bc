import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.errors import FmcacheError, ManifestError, NoRoom, SpecError
from fmcache.identity import canonical_json, differences, fingerprint, random_key, whole_file
from fmcache.manifest import Manifest
from fmcache.specs import Recipe, read_recipe

GOOD = """\
format: 1
default: d
datasets:
  d:
    format: demo
    seed: 1
    labels: [{name: a, colour: '#ffffff'}, {name: b, colour: '#000000'}]
    tiles: [{id: x, group: g}, {id: y, group: h}, {id: z}]
    splits: {train: [x], val: [y], test: [z]}
"""


def write(folder, text):
    (folder / "f.yaml").write_text(text)
    return folder / "f.yaml"


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("seed: 1", "seed: 1\n    sed: 2"), 7, "unknown key 'sed'"),
        (("seed: 1", "seed: one"), 6, "Expected `int`"),
        (("#000000", "black"), 7, "'#rrggbb'"),
        (("id: z", "id: x"), 8, "listed twice"),
        (("group: h", "group: g"), 9, "group 'g' is in two splits"),
        (("test: [z]", "test: [x]"), 9, "'train' and again in 'test'"),
        (("test: [z]", "test: [w]"), 9, "no tile has the id 'w'"),
        (("test: [z]", "test: []"), 9, "empty"),
        (("name: b", "name: a"), 7, "'a' is listed twice"),
        (("format: 1\n", "format: 2\n"), 1, "another format"),
        (("default: d", "default: e"), 2, "no dataset has this name"),
        (("seed: 1", "seed: 1\n    seed: 2"), 7, "given twice"),
        (("format: demo", "format: magic"), 5, "magic"),
    ],
)
def test_a_wrong_manifest_is_refused_with_line_and_key(tmp_path, change, line, says):
    assert Manifest(write(tmp_path, GOOD)).dataset().splits.test == ("z",)
    with pytest.raises(ManifestError) as error:
        Manifest(write(tmp_path, GOOD.replace(*change)))
    assert f"f.yaml:{line}: " in str(error.value)
    assert says in str(error.value)


def test_a_recipe_without_a_word_is_the_papers_protocol(tmp_path):
    recipe = read_recipe(write(tmp_path, "name: paper"))
    assert recipe == Recipe()
    fit = recipe.fit
    assert (recipe.tile_px, recipe.views.count, recipe.decoder.width, recipe.grid, recipe.taps) == (
        512,
        50,
        256,
        "fit",
        ("last",),
    )
    assert (fit.seeds, fit.epochs, fit.batch, fit.learning_rate, fit.restart_epochs) == (10, 50, 8, 1e-4, 10)
    assert (fit.passes_per_epoch, fit.standardise, recipe.dice, recipe.store) == (1, "none", "pooled", "float16")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fit: {epochs: 0}", "fit.epochs"),
        ("fit:\n  bogus: 1", "f.yaml:2: fit.bogus"),
        ("encoders: [a, {name: a}]", "listed twice"),
        ("name: a/b", "recipe name"),
        ("[: ", "not valid YAML"),
        ("- 1", "Expected `object`"),
    ],
)
def test_a_wrong_recipe_is_refused_with_line_and_key(tmp_path, text, says):
    with pytest.raises(SpecError, match=r"f\.yaml") as error:
        read_recipe(write(tmp_path, text))
    assert says in str(error.value)


def test_paths_in_a_recipe_are_relative_to_it(tmp_path):
    recipe = read_recipe(write(tmp_path, "encoders: [mine.yaml, {name: virchow2, weights: w.bin}]"))
    mine, virchow = recipe.encoder_choices
    assert (mine.name, virchow.name, virchow.weights) == (
        str(tmp_path / "mine.yaml"),
        "virchow2",
        str(tmp_path / "w.bin"),
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=4))
def test_the_order_of_keys_does_not_change_a_fingerprint(value):
    backwards = dict(reversed(value.items()))
    assert fingerprint(value) == fingerprint(backwards)
    assert differences(value, backwards) == []


@given(values, values)
def test_two_values_differ_exactly_when_a_difference_is_named(one, other):
    assert (canonical_json(one) == canonical_json(other)) == (differences({"v": one}, {"v": other}) == [])


def test_names_of_keys_do_not_run_together():
    assert len({random_key("a", "bc"), random_key("ab", "c"), random_key("abc"), random_key("a", "b", "c")}) == 4
    assert random_key("seed", 1) == random_key("seed", 1)
    assert random_key("seed", 1) != random_key("seed", "1")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "f.txt"
    with whole_file(path, "w") as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_file(path, "w") as file:
        file.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["f.txt"]  # noqa: PTH208


def every_error(kind=FmcacheError):
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_is_drawn_in_the_tree_and_survives_the_way_between_processes(kind):
    import fmcache.errors

    assert kind.__name__ in fmcache.errors.__doc__
    error = pickle.loads(pickle.dumps(kind("what", expected="a", found="b", next_step="c")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "what\n  expected: a\n  found: b\n  next: c"


def test_no_room_is_an_os_error_with_our_words():
    with pytest.raises(OSError, match="disk"):
        raise NoRoom("disk is small")
