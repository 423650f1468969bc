"""Fixtures for all tests. Hypothesis has no time limit here, because a busy machine draws examples slowly."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def draw_font(path, family, signs):
    """Write a font whose characters are all squares."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for at, to in zip(((100, 0), (100, 700), (800, 700), (800, 0)), ("moveTo", *("lineTo",) * 3), strict=True):
        getattr(pen, to)(at)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(sign):04X}" for sign in signs)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(sign): name for sign, name in zip(signs, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a drawn font (family, characters) in a folder that matplotlib searches."""
    from matplotlib import font_manager

    from fmcache import fonts

    def install(family, signs):
        draw_font(tmp_path / f"{family}.ttf", family, signs)
        fonts._search.cache_clear()

    known = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager, "X11FontDirectories", [*font_manager.X11FontDirectories, str(tmp_path)])
    fonts._search.cache_clear()
    yield install
    font_manager.fontManager.ttflist[:] = known
    font_manager.fontManager._findfont_cached.cache_clear()
    fonts._search.cache_clear()


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
        return self._start(
            "worker",
            nanny,
            "--nthreads",
            "2",
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--death-timeout",
            "60",
            **environment,
        )

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


@pytest.fixture(scope="session")
def new_scheduler(tmp_path_factory):
    """A context: a scheduler without workers. Workers can import the modules in `folder`, and see no GPU."""

    @contextlib.contextmanager
    def start(folder):
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        made = Scheduler(tmp_path_factory.mktemp("scheduler"), os.environ | environment)
        try:
            yield made
        finally:
            made.end()

    return start
