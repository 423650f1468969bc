"""Fingerprints, differences, keys of generators, and files that appear whole."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcache.identity import canonical_json, differences, fingerprint, random_key, whole_file


def write(folder, text):
    (folder / "f.yaml").write_text(text)
    return folder / "f.yaml"


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
