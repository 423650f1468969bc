"""A Dask scheduler and workers as a user starts them: processes of the command line, on free ports."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

UNITS = """
    import os
    import time
    from contextlib import contextmanager
    from pathlib import Path
    from typing import NamedTuple

    from fmcache.errors import SpecError

    class Unit(NamedTuple):
        name: str
        weight: int

        title = property(lambda unit: f"unit {unit.name}")
        relief = "ask for less"

    class Shared(NamedTuple):
        name: str
        folder: str

        @contextmanager
        def open(self):
            with open(f"{self.folder}/opened", "a") as file:
                file.write(f"{os.getpid()} {self.name}\\n")
            yield self.folder

    def place(folder, unit, tick):
        tick(unit.weight)
        yield unit.name, os.getcwd(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def waits_once(folder, unit, tick):
        yield unit.name, "begun"
        for i in range(unit.weight):
            tick(1)
            time.sleep(0.3)  # steps are reported a few times a second
            if i == 1 and unit.name == "long" and not Path(folder, "pid").exists():
                Path(folder, "pid").write_text(str(os.getpid()))
                time.sleep(600)
        yield unit.name, "ended"

    def always_deadly(folder, unit, tick):
        with open(f"{folder}/tries", "a") as file:
            file.write(f"{os.getpid()}\\n")
        if unit.name == "deadly":
            os._exit(9)
        yield unit.name

    def never_ends(folder, unit, tick):
        yield "begun"
        try:
            while True:
                tick(0)
                time.sleep(0.02)
        finally:
            Path(folder, "left").touch()

    def refuses(folder, unit, tick):
        raise SpecError("odd", expected="even", found=unit.name, next_step="fix it")
        yield
"""


def until(condition, seconds=240.0):
    """Wait until a condition is true; fail after a long time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.05)
    return found


class Scheduler:
    """A `dask scheduler`, and the `dask worker` processes that were started for it."""

    def __init__(self, folder, environment):
        self.folder, self.environment, self._processes = folder, environment, []
        self.file = folder / "scheduler.json"
        self._start("scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")
        until(self.file.exists)
        self.address = until(self._address)

    def _address(self):
        with contextlib.suppress(ValueError):
            return json.loads(self.file.read_text())["address"]

    until = staticmethod(until)

    def _start(self, kind, *options, **environment):
        command = [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self.file), *options]
        with (self.folder / f"{kind}.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=self.environment | environment
            )
        self._processes.append(process)
        return process

    def worker(self, nanny="--no-nanny", **environment):
        return self._start("worker", nanny, "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1", **environment)

    def workers_are(self, n):
        """Wait until the scheduler has `n` workers; return their pids by address."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            until(lambda: len(client.nthreads()) == n)
            return client.run(os.getpid)

    def end(self):
        for process in reversed(self._processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def units_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    (folder / "units_of_lanes.py").write_text(textwrap.dedent(UNITS))
    return folder


@pytest.fixture
def units(units_folder, monkeypatch):
    """A module that workers can import, as they cannot a test."""
    monkeypatch.syspath_prepend(units_folder)
    return importlib.import_module("units_of_lanes")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory, units_folder):
    """A scheduler without workers."""
    path = os.pathsep.join([str(units_folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    made = Scheduler(
        tmp_path_factory.mktemp("scheduler"),
        os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    yield made
    made.end()
