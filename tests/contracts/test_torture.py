"""A short run of pipelines/torture.py, which can do thousands of kills and faults."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_twenty_faults_are_neither_silent_nor_a_traceback():
    command = [sys.executable, "pipelines/torture.py", "--kills", "20", "--faults", "20", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills, faults = done.stdout.splitlines()[-2:]
    assert kills == "kills=20 resumed=20 lost=0 orphans=0 leftovers=0", done.stdout
    assert re.fullmatch("faults=20 detected=20 silent=0 tracebacks=0 repaired=[0-9]+", faults), done.stdout
