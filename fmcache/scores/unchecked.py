"""Reading a Parquet file without a checksum first in another process: one wrong byte can crash the reading process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

_TRY = """
import json, sys
import polars
for line in sys.stdin:
    try:
        polars.read_parquet(json.loads(line))
    except BaseException:
        pass
    print("read", flush=True)
"""


def ends_its_reader(path: Path) -> bool:
    """Return whether Polars aborts the process that reads this Parquet file, instead of raising an error."""
    reader, requests, answers = _reader()
    try:
        print(json.dumps(str(path.resolve())), file=requests, flush=True)
        survived = bool(answers.readline())
    except BrokenPipeError:
        survived = False
    if not survived:
        _reader.cache_clear()
        reader.wait()
    return not survived


@functools.lru_cache(maxsize=1)
def _reader() -> tuple[subprocess.Popen[str], IO[str], IO[str]]:
    """Return the reading process, its input and its output. It ends when its input is closed."""
    reader = subprocess.Popen(
        [sys.executable, "-c", _TRY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    return reader, cast(IO[str], reader.stdin), cast(IO[str], reader.stdout)
