"""Torture: kills thousands of commands and damages thousands of files of a tiny study, and counts the outcomes.

    python pipelines/torture.py --kills 1000
    python pipelines/torture.py --faults 1000
    python pipelines/torture.py --kills 20 --faults 20       # a minute on two cores

A kill starts a command (extract, fit, report, run, cache rm, data add, data split; with and without worker processes),
ends it at a random moment with SIGKILL, SIGTERM or SIGINT, runs the same command again, and compares every file with
that of an uninterrupted run. One command in ten is a fresh interpreter. The others are forks of a process that has
imported everything, so that nearly all of their time is work.

    kills=N resumed=N lost=N orphans=N leftovers=N

resumed: all files are equal and caches are sound; lost: all other kills. orphans: processes that outlive their command;
leftovers: kills after which a .partial, .removed, filling or damaged file or folder is left.

A fault damages a file of a random kind (a bit, some bytes, its end or all of it; or two files are swapped), runs the
commands that a user would run next, and does what their messages say.

    faults=N detected=N silent=N tracebacks=N repaired=N

detected: there was a message, or the numbers are the same as before; silent: numbers or tables changed without a
message; tracebacks: a crash; repaired: after following the messages, all files are the same as before. Users may edit
titles and colours in the manifest, so damage there cannot be recognised: for the manifest only numbers are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np
from torturing.commands import warm_up
from torturing.faults import fault
from torturing.kills import kill
from torturing.study import HUB, Study

KILLS = ("kills", "resumed", "lost", "orphans", "leftovers")
FAULTS = ("faults", "detected", "silent", "tracebacks", "repaired")
PROGRESS_S = 30
ROOT = Path(__file__).resolve().parents[1]
"""The repository of this script; its fmcache is tested."""


def main() -> None:
    """Distribute kills and faults over processes; print every bad outcome and progress, and the counts at the end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=0, help="how many commands to kill")
    parser.add_argument("--faults", type=int, default=0, help="how many files to damage")
    parser.add_argument("--seed", type=int, default=0, help="each kill and fault is drawn from this and its number")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, each with its own study")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share is not None:
        take_share(arguments)
        return
    counts = Counter[str]()
    whole = arguments.kills + arguments.faults
    begun = printed = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # all outcomes until then are counted
        for done, (counted, text) in enumerate(outcomes(arguments), start=1):
            counts.update(counted)
            if text:
                print(text, flush=True)
            if (now := time.monotonic()) - printed > PROGRESS_S:
                printed, each = now, (now - begun) / done
                print(f"{done} of {whole}, {each:.2f} s each, {(whole - done) * each:.0f} s left", flush=True)
    for names in (KILLS, FAULTS):
        if counts[names[0]]:
            print(*(f"{name}={counts[name]}" for name in names))


def outcomes(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, int], str]]:
    """Yield (counts, text) of the kills and faults of all processes, as they arrive; the text is '' if all is well."""
    lines: SimpleQueue[str] = SimpleQueue()

    def pass_on(stream: IO[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        shares = []
        for number in range(arguments.jobs):
            place = str(Path(folder, str(number)))
            own = ["--share", str(number), "--folder", place]
            own_env = {
                "PYTHONPATH": str(ROOT),
                "HF_HUB_CACHE": str(Path(place, HUB)),
                "OMP_NUM_THREADS": "1",
            }
            command = [sys.executable, __file__, *sys.argv[1:], "--jobs", str(arguments.jobs), *own]
            share = subprocess.Popen(
                command, env=os.environ | own_env, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            threading.Thread(target=pass_on, args=(share.stdout,), daemon=True).start()
            shares.append(share)
        try:
            ended = 0
            while ended < len(shares):
                if line := lines.get():
                    yield tuple(json.loads(line))
                ended += not line
            if failed := [share.returncode for share in shares if share.wait()]:
                raise SystemExit(f"{len(failed)} of {len(shares)} processes failed")
        finally:
            for share in shares:
                share.kill()


def take_share(arguments: argparse.Namespace) -> None:
    """Do every n-th kill and fault, and print each outcome as a line of JSON."""
    warm_up()
    study = Study(arguments.folder)
    for what, n in (("kill", arguments.kills), ("fault", arguments.faults)):
        for number in range(arguments.first + arguments.share, arguments.first + n, arguments.jobs):
            random = np.random.default_rng([arguments.seed, len(what), number])
            counted, text = killed(study, random) if what == "kill" else damaged(study, random)
            print(json.dumps([counted, f"{what} {number}: {text}" if text else ""]), flush=True)


def killed(study: Study, random: np.random.Generator) -> tuple[dict[str, int], str]:
    """Kill once; return the counts, and a text if the outcome is bad."""
    outcome = kill(study, random)
    lost, left = bool(outcome.lost), bool(outcome.leftovers)
    numbers = (1, not lost, lost, outcome.orphans, left)
    bad = [*outcome.lost, *outcome.leftovers] + [f"{outcome.orphans} orphans"] * bool(outcome.orphans)
    return dict(zip(KILLS, map(int, numbers), strict=True)), "\n    ".join([outcome.what, *bad]) if bad else ""


def damaged(study: Study, random: np.random.Generator) -> tuple[dict[str, int], str]:
    """Damage a file; return the counts, and a text if the outcome is bad."""
    outcome = fault(study, random)
    counted = {"faults": 1, outcome.verdict: 1, "repaired": int(outcome.repaired)}
    return counted, f"{outcome.verdict}: {outcome.what}: {outcome.why}" if outcome.why else ""


if __name__ == "__main__":
    main()
