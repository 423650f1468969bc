"""A table as CSV; Markdown and LaTeX are tested with the names of users (test_names.py)."""

import csv as reader
import io

from fmcache.report.report_table import Cell, ReportTable, TableRow
from fmcache.report.tables import csv


def test_csv_holds_the_texts_of_the_cells_whatever_signs_they_have():
    row = TableRow((Cell('UNI, "2"\nh'), Cell("80.00 ± 1.00", 80.0, 1, True), Cell("–")))
    table = ReportTable("scores", "Scores", ("encoder", "mean, %", "IoU"), (row,), ("a note",))
    assert list(reader.reader(io.StringIO(csv(table)))) == [
        ["encoder", "mean, %", "IoU"], ['UNI, "2"\nh', "80.00 ± 1.00", "–"],
    ]  # fmt: skip


def test_csv_of_a_table_without_rows_has_its_head():
    assert csv(ReportTable("factors", "Factors", ("source", "share"), ())) == "source,share\n"
