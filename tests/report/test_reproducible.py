"""The same results give the same report: in any process, any folder and any order of files, and on any day."""

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import fmcache

GROUPS = {f"test-{i}": f"patient {i // 2}" for i in range(10)}


@pytest.fixture(scope="module")
def reports(tmp_path_factory, large_study, write):
    """The files of two reports of the same results, by their path, and the folders in which they were made."""
    chosen = ("uni", "hibou-l", "virchow2", "random-vits16")
    runs = [
        msgspec.structs.replace(run, record=msgspec.structs.replace(run.record, groups=GROUPS))
        for run in large_study["puma"]
        if run.record.encoder.name in chosen and run.record.seed < 3
    ]
    processes, folders = [], []
    for seed, zone, order in (("1", "UTC", 1), ("2", "Asia/Tokyo", -1)):
        work = tmp_path_factory.mktemp(f"a-folder-{seed}") / f"work-{seed}"
        write(work / "results", runs[::order])
        here = {"PYTHONPATH": str(Path(fmcache.__file__).parents[1]), "PYTHONHASHSEED": seed, "TZ": zone}
        command = [sys.executable, "-m", "fmcache", "report", "--work", work.name]
        processes.append(subprocess.Popen(command, cwd=work.parent, env=os.environ | here, stdout=subprocess.DEVNULL))
        folders.append(work)
    assert [process.wait() for process in processes] == [0, 0]
    return [
        {p.relative_to(work): p.read_bytes() for p in work.glob("report/*/**/*") if p.is_file()} for work in folders
    ]


def test_two_processes_write_the_same_bytes(reports):
    first, second = reports
    assert sorted(first) == sorted(second)
    assert [str(path) for path in first if first[path] != second[path]] == []
    assert {path.suffix for path in first} >= {".md", ".bib", ".csv", ".tex", ".parquet", ".png", ".svg"}


def test_no_file_holds_a_folder_or_a_day(reports):
    today = datetime.datetime.now(datetime.UTC).date()
    days = {str(today), today.strftime("%Y%m%d"), today.strftime("%d/%m/%Y"), today.strftime("%d %b %Y"), "tEXtdate"}
    traces = [re.escape(text) for text in (*days, "a-folder-", "work-1", str(Path.home()), fmcache.__path__[0])]
    found = re.compile("|".join(traces).encode())
    assert [(str(path), hit[0]) for path, content in reports[0].items() if (hit := found.search(content))] == []
