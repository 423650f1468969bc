"""Reading the tables of written reports again: how certain the comparison was then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from fmcache.errors import ResultsCorrupt, ResultsNotFound, some
from fmcache.scores.unchecked import ends_its_reader
from fmcache.statistics.schemas import INTERVALS, PAIRS

INTERVALS_FILE, PAIRS_FILE, TABLE_FILE = "intervals.parquet", "pairs.parquet", "table.csv"
_AGAIN = "run fmcache report again with the results that it was made of"


class WrittenTables(NamedTuple):
    """The tables of one dataset: `INTERVALS` and `PAIRS` of `fmcache.statistics.schemas`.

    `score` is the recipe's own, a value of their column ``score``. `random_weights` names the encoders that had them.
    """

    intervals: pl.DataFrame
    pairs: pl.DataFrame
    score: str
    random_weights: frozenset[str]


def read_reports(folder: Path, study: str = "") -> dict[str, dict[str, WrittenTables]]:
    """Return the tables of written reports by study and dataset.

    Parameters
    ----------
    folder
        The report of one study (``report/STUDY``), all reports (``report``), or a working folder.
    study
        Read only this study; '': all.

    Raises
    ------
    ResultsNotFound
        When there is no report, or no report with tables, which fmcache 0.1.0 did not write.
    ResultsCorrupt
        When a table is damaged.
    """
    found = [path for path in _folders(folder) if study in ("", path.parent.name)]
    if not found:
        raise _no_report(folder, study)
    reports: dict[str, dict[str, WrittenTables]] = {}
    for path in found:
        reports.setdefault(path.parent.name, {})[path.name] = _read_dataset(path)
    return reports


def _folders(folder: Path) -> list[Path]:
    """Return the folders of datasets, sorted by study and dataset."""
    folder = folder.resolve()  # the name of a study is that of its folder, also for `.`
    for pattern in (f"*/{INTERVALS_FILE}", f"*/*/{INTERVALS_FILE}", f"report/*/*/{INTERVALS_FILE}"):
        if files := sorted(folder.glob(pattern)):
            return [file.parent for file in files]
    return []


def _no_report(folder: Path, study: str) -> ResultsNotFound:
    asked = f" of study {study!r}" if study else ""
    older = [path for at in ("", "*/", "report/*/") for path in folder.glob(f"{at}report.md")]
    if known := sorted({path.parent.name for path in _folders(folder)}):
        return ResultsNotFound(f"{folder} holds no report{asked}", found=f"reports of {some(known)}")
    if older:
        return ResultsNotFound(f"{folder}: a report without {INTERVALS_FILE}, of an older fmcache", next_step=_AGAIN)
    return ResultsNotFound(
        f"{folder} holds no report{asked}",
        expected="a folder such as work/report/STUDY, or a --work folder with reports",
        found="" if folder.is_dir() else "no such folder",
    )


def _read_dataset(folder: Path) -> WrittenTables:
    intervals = _read(folder / INTERVALS_FILE, INTERVALS)
    pairs = _read(folder / PAIRS_FILE, PAIRS)
    try:
        shown = pl.read_csv(folder / TABLE_FILE, columns=["encoder", "dice", "random_weights"], infer_schema=False)
        score = f"dice_{shown['dice'][0]}"
    except (pl.exceptions.PolarsError, OSError, IndexError) as reason:
        raise _damaged(folder / TABLE_FILE, reason) from None
    random = shown.filter(pl.col("random_weights") == "True")["encoder"]
    return WrittenTables(intervals, pairs, score, frozenset(random))


def _read(path: Path, columns: Mapping[str, Any]) -> pl.DataFrame:
    if ends_its_reader(path):
        raise _damaged(path, "its reader crashes")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as reason:
        raise _damaged(path, reason) from None
    wrong = [name for name, kind in columns.items() if table.schema.get(name) != kind]
    if wrong:
        raise ResultsCorrupt(f"{path}: columns are missing or of another type: {some(wrong)}", next_step=_AGAIN)
    return table


def _damaged(path: Path, reason: object) -> ResultsCorrupt:
    return ResultsCorrupt(f"{path} cannot be read", found=str(reason)[:200], next_step=_AGAIN)
