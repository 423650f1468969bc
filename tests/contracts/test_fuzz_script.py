"""The short form of pipelines/fuzz.py: whatever is handed in, it is read or refused by name."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "pipelines" / "fuzz.py"


def test_files_of_every_kind_broken_in_many_ways_are_read_or_refused_by_name():
    done = subprocess.run([sys.executable, SCRIPT, "--inputs", "1600"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "inputs=1600 tracebacks=0", done.stdout
    assert done.returncode == 0
    # a kind of which none is read, or none refused, is not tested
    counts = re.findall(r"^(\w+): (\d+) read, (\d+) refused", done.stdout, re.MULTILINE)
    assert len(counts) == 8
    assert all(int(read) and int(refused) for _, read, refused in counts), done.stdout
