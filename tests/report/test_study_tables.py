"""Datasets stand side by side and are never pooled."""

from fmcache.report.findings import find
from fmcache.report.study_tables import study_tables


def test_encoders_of_all_datasets_stand_side_by_side(many_runs):
    first = find(many_runs([("x", 2.0), ("y", -1.0), ("raw", 0.0)], controls=("raw",), dataset="d1"))
    second = find(many_runs([("y", 1.5), ("z", 1.0)], dataset="d2", seeds=1))
    (table,) = study_tables([first, second])
    assert table.columns == ("encoder", "d1", "d1: 95 % interval", "d1: rank", "d2", "d2: 95 % interval", "d2: rank")
    assert [row.cells[0].text for row in table.rows] == ["x", "y", "z", "raw"]
    x, y, z, raw = (row.cells for row in table.rows)
    own = first.intervals_of()["x", "mean"]
    assert x[1].text == f"{100 * own['estimate']:.2f} ± {100 * first.summary.rows[0].std[-1]:.2f}"
    assert x[2].text == f"[{100 * own['low']:.2f}, {100 * own['high']:.2f}]"
    assert (x[3].text, y[3].text, raw[3].text) == ("1", "2", "–")
    assert [cell.text for cell in x[4:]] == ["–"] * 3  # not run on the second dataset
    assert (y[4].place, z[4].place, x[1].place, y[1].place) == (1, 2, 1, 2)
    assert (y[4].may_be_best, y[5].text) == (True, "–")  # one seed: no interval, and nobody is excluded


def test_a_single_dataset_has_no_table_across(many_runs):
    assert study_tables([find(many_runs())]) == []
