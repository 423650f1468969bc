"""Tasks on a real scheduler, whose workers are processes of the command line; one is killed in the middle of a task."""

import contextlib
import os
import platform
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from fmcache.errors import ClusterUnfit, SpecError, WorkerDied
from fmcache.runtime import lanes, runners
from fmcache.runtime.admission import Sees
from fmcache.runtime.devices import where

pytestmark = pytest.mark.slow


def results(function, groups, address, tick=lambda _: None, sees=Sees()):  # noqa: B008
    with contextlib.closing(runners.run(function, groups, tick, address, sees)) as found:
        return [result for _, result in found]


@pytest.fixture(scope="module")
def address(scheduler):
    """The address of a scheduler with two workers of two threads each."""
    for _ in range(2):
        scheduler.worker()
    scheduler.workers_are(2)
    return scheduler.address


def test_workers_elsewhere_open_each_setup_once_and_use_the_folder_of_the_command(
    units, address, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    seen, groups = [], [
        (units.Shared(name, str(tmp_path)), [units.Unit(f"{name}{i}", 3) for i in range(6)]) for name in "ab"
    ]  # fmt: skip
    found = results(units.place, groups, address, seen.append)
    assert sorted(name for name, _, _ in found) == [f"{name}{i}" for name in "ab" for i in range(6)]
    assert {folder for _, folder, _ in found} == {str(tmp_path)}
    assert sum(seen) == 36
    opened = Counter((tmp_path / "opened").read_text().splitlines())
    assert max(opened.values()) <= 2  # once, and again at the end if the other worker has the longer queue
    assert {line.split()[1] for line in opened} == {"a", "b"}


def test_an_error_of_a_task_is_raised_here_as_it_was(units, address, tmp_path):
    with pytest.raises(SpecError, match="odd") as error:
        results(units.refuses, [(units.Shared("x", str(tmp_path)), [units.Unit("three", 1)])], address)
    assert error.value.next_step == "fix it"


def test_who_stops_early_stops_the_workers_too(units, scheduler, address, tmp_path):
    work = [(units.Shared("x", str(tmp_path)), [units.Unit("endless", 1)])]
    running = runners.run(units.never_ends, work, lambda _: None, address)
    assert next(running)[1] == "begun"
    running.close()
    scheduler.until((tmp_path / "left").exists)


def test_a_worker_that_is_killed_in_the_middle_of_a_task_loses_nothing(units, scheduler, address, tmp_path):
    pids, seen = scheduler.workers_are(2), []
    work = [units.Unit("long", 6), *(units.Unit(f"short{i}", 2) for i in range(3))]

    def kill_it():
        scheduler.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert pid in pids.values()
        os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_it)
        found = results(units.waits_once, [(units.Shared("x", str(tmp_path)), work)], address, seen.append)
        killed.result()
    # results and steps that the killed worker had reported are not reported again
    assert sorted(found) == sorted((unit.name, what) for unit in work for what in ("begun", "ended"))
    assert sum(seen) == sum(unit.weight for unit in work)
    assert len(scheduler.workers_are(1)) == 1


def test_a_task_that_ends_every_worker_is_named_after_three_tries(units, scheduler, address, tmp_path):
    for _ in range(2):
        scheduler.worker()
    scheduler.workers_are(3)
    work = [units.Unit("deadly", 1)]
    with pytest.raises(WorkerDied, match="before its work was done: unit deadly") as error:
        results(units.always_deadly, [(units.Shared("x", str(tmp_path)), work)], address)
    assert error.value.next_step.startswith("ask for less")
    assert "3 workers ended" in error.value.found
    assert len((tmp_path / "tries").read_text().split()) == 3


def test_without_workers_or_a_scheduler_the_message_says_what_to_start(scheduler, monkeypatch):
    monkeypatch.setattr(lanes, "PATIENCE_S", 0.5)
    scheduler.workers_are(0)
    with pytest.raises(ClusterUnfit, match="has no workers that can be used") as error:
        where("auto", 0, scheduler.address)
    assert "dask worker" in error.value.next_step
    monkeypatch.setattr("fmcache.runtime.cluster.CONNECT_S", 0.5)
    with pytest.raises(ClusterUnfit, match="no Dask scheduler answers at") as error:
        where("auto", 0, "tcp://127.0.0.1:1")
    assert "--workers N" in error.value.next_step


def test_a_worker_with_other_versions_is_refused_before_work_starts(units, scheduler, tmp_path):
    scheduler.workers_are(0)
    (tmp_path / "sitecustomize.py").write_text("import platform\nplatform.python_version = lambda: '3.1.4'\n")
    path = os.pathsep.join([str(tmp_path), scheduler.environment["PYTHONPATH"]])
    scheduler.worker(PYTHONPATH=path)
    scheduler.workers_are(1)
    groups = [(units.Shared("x", str(tmp_path)), [units.Unit("a", 1)])]
    with pytest.raises(ClusterUnfit, match="do not fit this command") as error:
        results(units.place, groups, scheduler.address)
    assert f"python 3.1.4 instead of {platform.python_version()} (tcp://127.0.0.1:" in error.value.found
    assert not (tmp_path / "opened").exists()
