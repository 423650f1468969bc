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


ODD_TEXTS = ["", "[]", "a: &b [*b]", "[" * 5000, "? [a]\n: b", "d: 2024-02-31", "d: 0x_", "a: " + "9" * 5000]
ODD_TEXTS += ["a: !!timestamp z", "a: !!int x", "\x00", "<<: [1]", "--- a\n--- b", "? .nan\n: 1", "a: *b"]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_is_a_manifest_or_refused_by_name(tmp_path, text):
    with pytest.raises(ManifestError, match=r"f\.yaml"):
        Manifest(write(tmp_path, text))


def test_a_given_text_is_read_instead_of_the_file(tmp_path):
    assert Manifest(tmp_path / "none.yaml", GOOD).dataset().splits.test == ("z",)
    with pytest.raises(ManifestError, match=r"none\.yaml:9: "):
        Manifest(tmp_path / "none.yaml", GOOD.replace("[z]", "[]"))


@pytest.mark.parametrize("mpp", ["0", "-1", ".nan", ".inf"])
def test_um_per_px_must_be_positive_and_finite(tmp_path, mpp):
    with pytest.raises(ManifestError, match=r"f\.yaml:\d+: datasets\.d\.mpp"):
        Manifest(write(tmp_path, GOOD.replace("seed: 1", f"seed: 1\n    mpp: {mpp}")))


REGIONS = """\
format: 1
default: d
datasets:
  d:
    format: geojson
    root: .
    mpp: 0.25
    labels:
      - {name: a, colour: '#ffffff', values: [A, C]}
      - {name: b, colour: '#000000'}
    order: [b, A, C]
    fetch: {place: here}
"""


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("[b, A, C]", "[b, A]"), 4, "order: expected each class of the labels once; see 'C'"),
        (("[b, A, C]", "[b, A, A]"), 4, "see 'C'"),
        (("mpp: 0.25", "fill: c"), 4, "expected ignore or a label: 'a', 'b'"),
        (("order: [b, A, C]", "ignore_values: [b]"), 8, "'b' means two things"),
        (("mpp: 0.25", "view_mpp: 0.5"), 7, "um/px of the files"),
        (("fetch: {place: here}", "tiles: [{id: x}]"), 12, "image, mask, image_sha256"),
        (("root: .", "root: .\n    tiles: [{id: x}]"), 13, "lists no tiles and splits"),
    ],
)
def test_a_wrong_dataset_of_regions_is_refused_with_line_and_key(tmp_path, change, line, says):
    manifest = Manifest(write(tmp_path, REGIONS))
    assert manifest.unfetched["d"].classes() == {"A": 0, "C": 0, "b": 1}
    with pytest.raises(ManifestError) as error:
        Manifest(write(tmp_path, REGIONS.replace(*change)))
    assert says in str(error.value)
    assert f"f.yaml:{line}: " in str(error.value)


FOLDED = (
    GOOD
    + """\
    folds:
      - {train: [x], val: [y], test: [z]}
      - {train: [z], val: [x], test: [y], subsets: [[z]]}
"""
)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("val: [x], test: [y]", "val: [x], test: [z]"), 12, "'train' and again in 'test'"),
        (("[z], val: [x], test: [y], subsets: [[z]]", "[y], val: [x], test: [z]"), 10, "tested in two folds"),
        (("{id: z}", "{id: z, group: h}"), 9, "group 'h' is in two splits"),
        (("subsets: [[z]]", "subsets: [[x]]"), 12, "not part of the next larger one"),
        (("subsets: [[z]]", "subsets: [[]]"), 12, "not part of the next larger one"),
        (("subsets: [[z]]", "subsets: [[z, z]]"), 12, "not part of the next larger one"),
    ],
)
def test_every_fold_and_subset_is_checked_as_the_fixed_split_is(tmp_path, change, line, says):
    assert Manifest(write(tmp_path, FOLDED)).dataset().folds[1].subsets == (("z",),)
    with pytest.raises(ManifestError) as error:
        Manifest(write(tmp_path, FOLDED.replace(*change)))
    assert f"f.yaml:{line}: " in str(error.value)
    assert says in str(error.value)


def test_a_group_in_two_splits_of_a_fold_is_refused_even_if_the_fixed_split_is_correct(tmp_path):
    text = FOLDED.replace("{id: z}", "{id: z}, {id: w, group: h}").replace(
        "splits: {train: [x], val: [y]", "splits: {train: [x], val: [y, w]"
    )
    assert Manifest(write(tmp_path, text))
    with pytest.raises(ManifestError, match=r"folds\[0\].test: group 'h' is in two splits"):
        Manifest(
            write(tmp_path, text.replace("- {train: [x], val: [y], test: [z]}", "- {train: [x], val: [y], test: [w]}"))
        )


def test_a_recipe_with_only_a_name_is_the_papers_protocol(tmp_path):
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
def test_a_difference_is_reported_exactly_when_two_values_differ(one, other):
    assert (canonical_json(one) == canonical_json(other)) == (differences({"v": one}, {"v": other}) == [])


def test_different_lists_of_names_give_different_keys():
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
def test_every_error_is_in_the_tree_of_the_docstring_and_can_be_pickled(kind):
    import fmcache.errors

    assert kind.__name__ in fmcache.errors.__doc__
    error = pickle.loads(pickle.dumps(kind("what", expected="a", found="b", next_step="c")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "what\n  expected: a\n  found: b\n  next: c"


def test_no_room_is_an_os_error_with_our_message():
    with pytest.raises(OSError, match="disk"):
        raise NoRoom("disk is small")
