"""fmcache commands as processes, each in its own session: fresh interpreters, or forks of this process ("warm").

A fork has everything imported, so nearly all of its time is work. This process only imports and never runs the code, so
a fork has the same state as a fresh process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path
from typing import NamedTuple

PATIENCE_S = 120
IN_USE = (
    "fmcache.stages.extract", "fmcache.stages.filling", "fmcache.stages.fit", "fmcache.stages.report",
    "fmcache.commands.cache_tables", "fmcache.datasets.add", "fmcache.datasets.split", "fmcache.datasets.fetch",
    "distributed", "matplotlib.pyplot", "huggingface_hub", "timm",
)  # fmt: skip
CRASHED = 70


class Done(NamedTuple):
    """A command that has ended: its exit code (negative: the signal that ended it), and everything it printed."""

    arguments: tuple[str, ...]
    code: int
    text: str
    wall_s: float

    @property
    def traceback(self) -> bool:
        """Whether it ended with a traceback or with an unexpected exit code."""
        return self.code not in (0, 1, 2) or "Traceback (most recent call last)" in self.text


def warm_up() -> None:
    """Import all that commands import."""
    for name in IN_USE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that forks share this memory


class Running:
    """A running command in a folder, alone in its session."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], fresh: bool = False) -> None:
        self.arguments, self._began = arguments, time.monotonic()
        self._output = folder.with_name(f"{folder.name}.output")
        self.pid = _fresh(folder, arguments, self._output) if fresh else _forked(folder, arguments, self._output)
        self._code: int | None = None

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def wait(self, patience_s: float = PATIENCE_S) -> Done:
        """Wait until it has ended, and return it; kill it if it takes longer than `patience_s`."""
        stop = time.monotonic() + patience_s
        while not self.ended():
            if time.monotonic() > stop:
                self.signal(signal.SIGKILL)
                stop += 5
            time.sleep(0.005)
        wall_s = time.monotonic() - self._began
        return Done(self.arguments, self._code or 0, self._output.read_text(errors="replace"), wall_s)

    def signal(self, number: int, group: bool = True) -> None:
        """Send a signal to its process group, or to the process only."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def others(self) -> list[int]:
        """Return the other processes of its session, without zombies."""
        return [pid for pid in _processes(self.pid) if pid != self.pid]


def run(folder: Path, command: str) -> Done:
    """Run a command to its end in a warm process."""
    return Running(folder, tuple(command.split())).wait()


def _fresh(folder: Path, arguments: tuple[str, ...], output: Path) -> int:
    with output.open("wb") as out:
        command = [sys.executable, "-m", "fmcache", *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    process.returncode = 0  # `Running.ended` waits for the pid; subprocess must not
    return process.pid


def _forked(folder: Path, arguments: tuple[str, ...], output: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        while os.getsid(pid) != pid:  # before that, its process group does not exist and cannot get a signal
            time.sleep(0.0002)
        return pid
    os.setsid()
    code = CRASHED
    try:
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stream = io.TextIOWrapper(os.fdopen(descriptor, "wb"), encoding="utf-8", line_buffering=True)
            setattr(sys, name, stream)
        os.chdir(folder)
        sys.argv = ["fmcache", *arguments]
        sys.modules["__main__"] = types.ModuleType("__main__")  # processes that it starts must not run this script
        from fmcache.cli import main

        main()
        code = 0
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(bool(request.code))
    except BaseException:  # noqa: BLE001 - the user would have seen any error
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _processes(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(folder.name))
    return found
