"""Units of work for workers of a cluster."""

import importlib
import textwrap

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
def scheduler(new_scheduler, units_folder):
    """A scheduler without workers; workers can import the module of units."""
    with new_scheduler(units_folder) as made:
        yield made
