"""Units of work on a real cluster of processes."""

import importlib
import textwrap

import pytest

from fmcache.stages import runners

UNITS = """
    import time
    from typing import NamedTuple

    class Unit(NamedTuple):
        name: str
        weight: int

        title = property(lambda unit: f"unit {unit.name}")
        relief = "ask for less"

    def slowly(unit, tick):
        for _ in range(unit.weight):
            time.sleep(0.3)
            tick(1)
        yield unit.name.upper()

    def silently(unit, tick):
        yield unit.name.upper()

    def fails(unit, tick):
        tick(1)
        raise ZeroDivisionError(unit.name)
"""


@pytest.fixture
def units(tmp_path, monkeypatch):
    """A module that processes of the cluster can import, as they cannot a test."""
    (tmp_path / "units_of_a_test.py").write_text(textwrap.dedent(UNITS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return importlib.import_module("units_of_a_test")


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_told_while_units_run_and_add_up_to_their_weight(units, workers):
    work, seen, told = [units.Unit("a", 5), units.Unit("b", 5), units.Unit("c", 1)], [], []
    for unit, result in runners.run(units.slowly, work, seen.append, workers):
        assert result == unit.name.upper()
        told.append(len(seen))
    assert sum(seen) == 11
    assert told[0] > 1  # the first unit had told of itself before it ended


def test_a_unit_that_tells_of_no_steps_counts_when_it_ends(units):
    seen = []
    results = dict(runners.run(units.silently, [units.Unit("a", 5), units.Unit("b", 2)], seen.append, 2))
    assert results == {units.Unit("a", 5): "A", units.Unit("b", 2): "B"}
    assert sum(seen) == 7


def test_an_error_in_a_unit_is_raised_here(units):
    with pytest.raises(ZeroDivisionError, match="a"):
        list(runners.run(units.fails, [units.Unit("a", 5)], lambda _: None, 1))
