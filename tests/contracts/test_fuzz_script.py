"""A short run of pipelines/fuzz.py: every broken file is read, or refused with a message."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "pipelines" / "fuzz.py"


def test_files_of_every_kind_broken_in_many_ways_are_read_or_refused_by_name():
    done = subprocess.run([sys.executable, SCRIPT, "--inputs", "1600"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "inputs=1600 tracebacks=0", done.stdout
    assert done.returncode == 0
    # if no file of a kind is read, or none is refused, that kind is not really tested
    counts = re.findall(r"^(\w+): (\d+) read, (\d+) refused", done.stdout, re.MULTILINE)
    assert len(counts) == 8
    assert all(int(read) and int(refused) for _, read, refused in counts), done.stdout
