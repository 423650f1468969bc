"""Units of work on a real cluster of processes."""

import contextlib
import importlib
import logging
import os
import textwrap
import time

import psutil
import pytest

from fmcache.errors import NoMemory, NoRoom, SpecError, WorkerDied
from fmcache.runtime import runners

UNITS = """
    import os
    import signal
    import sys
    import time
    from contextlib import contextmanager
    from typing import NamedTuple

    from fmcache.errors import SpecError

    class Unit(NamedTuple):
        name: str
        weight: int

        title = property(lambda unit: f"unit {unit.name}")
        relief = "ask for less"

    class Shared(NamedTuple):
        name: str

        @contextmanager
        def open(self):
            if self.name != "nothing":
                print(f"open {self.name}", file=sys.stderr)
            yield f"{self.name} of {os.getpid()}"
            if self.name != "nothing":
                print(f"free {self.name}", file=sys.stderr)

    def yields_what_is_shared(shared, unit, tick):
        yield shared

    def slowly(shared, unit, tick):
        for _ in range(unit.weight):
            time.sleep(0.3)
            tick(1)
        yield unit.name.upper()

    def silently(shared, unit, tick):
        yield unit.name.upper()

    def lacks(shared, unit, tick):
        raise {"memory": MemoryError(), "cuda": RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
               "disk": OSError(28, "No space left on device", "x.zarr"),
               "library": ValueError("I/O error: No space left on device (os error 28)")}[unit.name]
        yield

    def refuses(shared, unit, tick):
        raise SpecError("odd", expected="even", found=unit.name, next_step="fix it")
        yield

    def dies(shared, unit, tick):
        if unit.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)
        yield

    def one_by_one(shared, unit, tick):
        for i in range(3):
            yield (unit.name, i)
            time.sleep(0.5)

    def fails(shared, unit, tick):
        tick(1)
        raise ZeroDivisionError(unit.name)
"""


def run(function, work, tick, workers):
    """Run units that share nothing."""
    return runners.run(function, [(importlib.import_module("units_of_a_test").Shared("nothing"), work)], tick, workers)


@pytest.fixture
def units(tmp_path, monkeypatch):
    """A module that processes of the cluster can import, as they cannot a test."""
    (tmp_path / "units_of_a_test.py").write_text(textwrap.dedent(UNITS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return importlib.import_module("units_of_a_test")


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_reported_while_units_run_and_add_up_to_their_weight(units, workers):
    work, seen, found = [units.Unit("a", 5), units.Unit("b", 5), units.Unit("c", 1)], [], []
    for unit, result in run(units.slowly, work, seen.append, workers):
        assert result == unit.name.upper()
        found.append(len(seen))
    assert sum(seen) == 11
    assert found[0] > 1  # the first unit had reported steps before it ended


def test_a_unit_that_reports_no_steps_counts_when_it_ends(units):
    seen = []
    results = dict(run(units.silently, [units.Unit("a", 5), units.Unit("b", 2)], seen.append, 2))
    assert results == {units.Unit("a", 5): "A", units.Unit("b", 2): "B"}
    assert sum(seen) == 7


def test_a_setup_is_opened_once_for_its_units_and_freed_before_the_next(units, capfd):
    groups = [(units.Shared(name), [units.Unit(f"{name}{i}", 1) for i in range(3)]) for name in ("first", "second")]
    found = [result for _, result in runners.run(units.yields_what_is_shared, groups, lambda _: None, 0)]
    assert found == [f"{name} of {os.getpid()}" for name in ("first", "second") for _ in range(3)]
    assert capfd.readouterr().err.split("\n")[:-1] == ["open first", "free first", "open second", "free second"]


@pytest.mark.slow
def test_each_process_of_a_cluster_opens_its_own_and_keeps_it_for_all_units(units, capfd):
    work = [units.Unit(str(i), 1) for i in range(8)]
    groups = [(units.Shared("dear"), work)]
    found = [shared for _, shared in runners.run(units.yields_what_is_shared, groups, lambda _: None, 2)]
    assert len(found) == 8
    assert os.getpid() not in {int(shared.split()[-1]) for shared in found}
    assert capfd.readouterr().err.count("open") == len(set(found)) <= 2


def test_an_error_in_a_unit_is_raised_here(units):
    with pytest.raises(ZeroDivisionError, match="a"):
        list(run(units.fails, [units.Unit("a", 5)], lambda _: None, 1))


@pytest.fixture
def children():
    """A function that returns the processes that this test began and that are there still, dead ones too.

    The process that keeps Python's account of semaphores is left out.
    """
    before = set(psutil.Process().children(recursive=True))

    def begun():
        found = []
        for child in set(psutil.Process().children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE or "resource_tracker" not in " ".join(child.cmdline()):
                    found.append(child)
        return found

    return begun


def test_the_results_of_a_unit_come_one_by_one_and_each_once(units, children):
    seen, times = [], []
    for unit, result in run(units.one_by_one, [units.Unit("a", 1), units.Unit("b", 1)], lambda _: None, 2):
        assert unit.name == result[0]
        seen.append(result)
        times.append(time.monotonic())
    assert sorted(seen) == [(name, i) for name in "ab" for i in range(3)]
    assert [i for name, i in seen if name == "a"] == [0, 1, 2]
    assert times[-1] - times[0] > 0.7  # not all when the unit had ended
    assert children() == []


def test_a_worker_that_dies_ends_the_rest_at_once_and_its_unit_is_named_without_a_line_from_dask(
    units, capfd, children
):
    level, start = logging.getLogger("distributed").level, time.monotonic()
    work = [units.Unit(name, 1) for name in ("other", "deadly", "later", "last")]
    with pytest.raises(WorkerDied, match="before its work was done: unit deadly") as error:
        list(run(units.dies, work, lambda _: None, 2))
    assert error.value.next_step.startswith("ask for less")
    assert time.monotonic() - start < 25  # the others would sleep for 30 s
    assert children() == []
    assert capfd.readouterr().err == ""
    assert logging.getLogger("distributed").level == level


def test_what_runs_out_in_a_worker_and_what_it_refuses_is_reported_as_if_it_were_here(units, capfd):
    def error_of(function, name, workers):
        with pytest.raises((NoRoom, SpecError)) as error:
            list(run(function, [units.Unit(name, 1)], lambda _: None, workers))
        return type(error.value), str(error.value)

    for name, kind in (("memory", NoMemory), ("cuda", NoMemory), ("disk", NoRoom), ("library", NoRoom)):
        assert error_of(units.lacks, name, 0)[0] is kind
    for function, name in ((units.lacks, "disk"), (units.refuses, "three")):
        assert error_of(function, name, 0) == error_of(function, name, 1)
    assert "(x.zarr)" in error_of(units.lacks, "disk", 0)[1]
    assert capfd.readouterr().err == ""


def test_who_stops_early_waits_for_no_worker(units, children):
    with contextlib.closing(run(units.slowly, [units.Unit("a", 1), units.Unit("b", 200)], print, 2)) as results:
        next(results)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert children() == []
