"""Datasets stand side by side and are never pooled."""

from fmcache.report.findings import find
from fmcache.report.study_tables import study_tables


def test_encoders_of_all_datasets_stand_side_by_side(many_runs):
    first = find(many_runs([("x", 2.0), ("y", -1.0), ("raw", 0.0)], controls=("raw",), dataset="d1"))
    second = find(many_runs([("y", 1.5), ("z", 1.0)], dataset="d2", seeds=1))
    (table,) = study_tables([first, second])
    own = ("", ": worst label", ": 95 % interval", ": rank")
    assert table.columns == ("encoder", *(f"d1{what}" for what in own), *(f"d2{what}" for what in own))
    assert [row.cells[0].text for row in table.rows] == ["x", "y", "z", "raw"]
    x, y, z, raw = (row.cells for row in table.rows)
    own = first.intervals_of()["x", "mean"]
    assert x[1].text == f"{100 * own['estimate']:.2f} ± {100 * first.summary.rows[0].std[-1]:.2f}"
    assert x[3].text == f"[{100 * own['low']:.2f}, {100 * own['high']:.2f}]"
    label, value = first.summary.worst(first.summary.rows[0])
    assert x[2].text == f"{label} {100 * value:.2f}"
    assert (x[4].text, y[4].text, raw[4].text) == ("1", "2", "–")
    assert [cell.text for cell in x[5:]] == ["–"] * 4  # not run on the second dataset
    assert (y[5].place, z[5].place, x[1].place, y[1].place) == (1, 2, 1, 2)
    assert (y[5].may_be_best, y[7].text) == (True, "–")  # one seed: no interval, and nobody is excluded


def test_a_single_dataset_has_no_table_across(many_runs):
    assert study_tables([find(many_runs())]) == []


def test_rank_agreement_of_each_pair_of_datasets_is_in_the_notes(many_runs):
    quality = [(name, 2.0 - i) for i, name in enumerate("vwxyz")]
    a, b = (find(many_runs(quality, dataset=name)) for name in ("d1", "d2"))
    backwards = find(many_runs([(name, -good) for name, good in quality], dataset="d3"))
    (table,) = study_tables([a, b, backwards])
    lines = [line for line in table.notes if line.startswith("Ranks")]
    assert [line.partition(" over ")[0] for line in lines] == [
        "Ranks on d1 and d2", "Ranks on d1 and d3", "Ranks on d2 and d3",
    ]  # fmt: skip
    assert "over 5 encoders: Kendall's τ 1.00 [" in lines[0]
    assert "Kendall's τ −1.00 [" in lines[1]


def test_two_encoders_have_an_agreement_without_an_interval_and_one_has_none(many_runs):
    a, b = (find(many_runs(dataset=name)) for name in ("d1", "d2"))
    (table,) = study_tables([a, b])
    assert table.notes[-1] == (
        "Ranks on d1 and d2 over 2 encoders: Kendall's τ 1.00, Spearman's ρ 1.00; no intervals (too few encoders are "
        "on both sides)."
    )
    (table,) = study_tables([a, find(many_runs([("x", 1.0)], dataset="d2"))])
    assert table.notes[-1] == (
        "Ranks on d1 and d2 over 1 encoder: no agreement can be given (too few encoders are on both sides)."
    )
