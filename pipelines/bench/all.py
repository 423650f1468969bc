"""Runs all benchmarks one after another, and prints one table of their results.

    python pipelines/bench/all.py --device cuda              # on a GPU, at the paper's size, with random weights
    python pipelines/bench/all.py --quick                    # on a CPU; each script ends within 50 s on two cores

Each script checks for correct results before it measures times. A script that fails has a row with FAILED in the table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

SCRIPTS = ("extract", "encoders", "loss", "decoder", "seeds", "study", "codecs")
WITHOUT_DEVICE = ("codecs",)
FIGURE = re.compile(r"^(\S+) ratio=(\S+) target=(\S+) device=(.*)$", re.MULTILINE)


class Row(NamedTuple):
    """One measurement of a script, or the note that the script failed."""

    script: str
    figure: str
    ratio: str
    target: str
    met: str
    device: str


def main() -> None:
    """Run the scripts; exit with code 1 when one failed (a missed target is a result, not a failure)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every script in its quick form")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    arguments = parser.parse_args()
    rows = [row for script in arguments.only for row in run(script, arguments.device, arguments.quick)]
    print()
    for row in (Row._fields, ("---",) * len(Row._fields), *rows):
        print("| " + " | ".join(row) + " |")
    sys.exit(any(row.met == "FAILED" for row in rows))


def run(script: str, device: str, quick: bool) -> list[Row]:
    """Run one script; return its measurements, and a row with FAILED if it failed."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py"))]
    command += [] if script in WITHOUT_DEVICE else ["--device", device]
    # without --quick, codecs.py needs a weights file and tiles
    command += ["--quick"] if quick or script in WITHOUT_DEVICE else []
    print(f"\n$ {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout + f"{time.monotonic() - start:.0f} s", flush=True)
    rows = [Row(script, *figure[:3], met(*figure[1:3]), figure[3]) for figure in FIGURE.findall(done.stdout)]
    if done.returncode or not rows:
        rows.append(Row(script, "-", "-", "-", "FAILED", f"exit code {done.returncode}"))
    return rows


def met(ratio: str, target: str) -> str:
    """Return whether a ratio meets a target such as ``>=2``; '' when the text is not a target."""
    sign, bound = target[:2], target[2:]
    if sign not in (">=", "<="):
        return ""
    return "yes" if (float(ratio) >= float(bound) if sign == ">=" else float(ratio) <= float(bound)) else "NO"


if __name__ == "__main__":
    main()
