"""Torture: commands are killed and files damaged, by the thousand, on a tiny study; what comes of it is counted.

    python pipelines/torture.py --kills 1000
    python pipelines/torture.py --faults 1000
    python pipelines/torture.py --kills 20 --faults 20       # a minute on two cores

A kill starts a command (extract, fit, report, run, cache rm, data add, data split; with and without worker processes),
ends it at a random moment of its life with SIGKILL, SIGTERM or SIGINT, runs the same command again, and compares every
file with that of an uninterrupted run. One in ten is a fresh interpreter, the others are forks of a warm one, whose
life is nearly all work.

    kills=N resumed=N lost=N orphans=N leftovers=N

resumed: all files are equal, caches are sound; lost: the others. orphans: processes that outlive their command;
leftovers: kills after which a .partial, .removed, filling or damaged is left.

A fault damages a file (a bit, a stretch, its end, all of it, its place) of a random kind, runs what a user would run
next, and follows what is printed.

    faults=N detected=N silent=N tracebacks=N repaired=N

detected: a message, or the numbers of before; silent: other numbers or tables without a word; tracebacks: a crash;
repaired: after what the messages say, all files are as before. Titles and colours in the manifest are the user's words,
and no damage can be told from a change of mind: there, only numbers count.
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
TELL_S = 30
ROOT = Path(__file__).resolve().parents[1]
"""What is tortured is the fmcache that lies beside this script."""


def main() -> None:
    """Share the kills and faults among processes; print every bad outcome, progress, and the counts last."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=0, help="how many commands to kill")
    parser.add_argument("--faults", type=int, default=0, help="how many files to damage")
    parser.add_argument("--seed", type=int, default=0, help="each kill and fault is drawn from this and its number")
    parser.add_argument("--first", type=int, default=0, help="number of the first: to see one again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, each with its own study")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share is not None:
        take_share(arguments)
        return
    counts = Counter[str]()
    whole = arguments.kills + arguments.faults
    begun = told = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # what was done until then is counted
        for done, (counted, text) in enumerate(outcomes(arguments), start=1):
            counts.update(counted)
            if text:
                print(text, flush=True)
            if (now := time.monotonic()) - told > TELL_S:
                told, each = now, (now - begun) / done
                print(f"{done} of {whole}, {each:.2f} s each, {(whole - done) * each:.0f} s left", flush=True)
    for names in (KILLS, FAULTS):
        if counts[names[0]]:
            print(*(f"{name}={counts[name]}" for name in names))


def outcomes(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, int], str]]:
    """Yield what each kill and fault counts for, and what is to be said of it, from all shares as they come."""
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
    """Do every n-th kill and fault, and print what came of each as a line of JSON."""
    warm_up()
    study = Study(arguments.folder)
    for what, n in (("kill", arguments.kills), ("fault", arguments.faults)):
        for number in range(arguments.first + arguments.share, arguments.first + n, arguments.jobs):
            random = np.random.default_rng([arguments.seed, len(what), number])
            counted, text = killed(study, random) if what == "kill" else damaged(study, random)
            print(json.dumps([counted, f"{what} {number}: {text}" if text else ""]), flush=True)


def killed(study: Study, random: np.random.Generator) -> tuple[dict[str, int], str]:
    """Kill once; return what it counts for, and what is to be said of it."""
    outcome = kill(study, random)
    lost, left = bool(outcome.lost), bool(outcome.leftovers)
    numbers = (1, not lost, lost, outcome.orphans, left)
    bad = [*outcome.lost, *outcome.leftovers] + [f"{outcome.orphans} orphans"] * bool(outcome.orphans)
    return dict(zip(KILLS, map(int, numbers), strict=True)), "\n    ".join([outcome.what, *bad]) if bad else ""


def damaged(study: Study, random: np.random.Generator) -> tuple[dict[str, int], str]:
    """Damage a file; return what it counts for, and what is to be said of it."""
    outcome = fault(study, random)
    counted = {"faults": 1, outcome.verdict: 1, "repaired": int(outcome.repaired)}
    return counted, f"{outcome.verdict}: {outcome.what}: {outcome.why}" if outcome.why else ""


if __name__ == "__main__":
    main()
