"""Pins of files at their first download."""

import pytest

from fmcache.errors import SpecError
from fmcache.pins import Pins
from fmcache.strict import Frozen


class Facts(Frozen, frozen=True):
    sha256: str


def pins_in(path):
    return Pins(path, Facts, SpecError, "Facts of files.")


def test_a_pin_is_kept_under_its_heading_and_moves_only_when_told(tmp_path):
    pins = pins_in(tmp_path / "new" / "pins.yaml")
    assert pins.read() == {}
    assert pins.add("b", Facts("1"))
    assert pins.add("a", Facts("2"))
    assert not pins.add("b", Facts("3"))
    assert pins_in(tmp_path / "new" / "pins.yaml").read() == {"a": Facts("2"), "b": Facts("1")}
    assert pins.add("b", Facts("3"), replace=True)
    assert pins.read()["b"] == Facts("3")
    text = (tmp_path / "new" / "pins.yaml").read_text()
    assert text.splitlines()[:2] == ["# Facts of files.", "a:"]


def test_without_a_file_nothing_is_pinned():
    assert not pins_in(None).add("a", Facts("1"))
    assert pins_in(None).read() == {}


def test_another_form_is_refused_with_file_and_line(tmp_path):
    (tmp_path / "pins.yaml").write_text("a:\n  sha257: x\n")
    with pytest.raises(SpecError, match=r"pins\.yaml"):
        pins_in(tmp_path / "pins.yaml").read()
