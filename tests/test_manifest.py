"""Datasets of a manifest: what is wrong is refused with file, line and key."""

import pytest

from fmcache.errors import ManifestError
from fmcache.manifest import Manifest

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
