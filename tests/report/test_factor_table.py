"""Shares of variance of a sweep, as a table, in words and as Parquet."""

import numpy as np
import pytest

from fmcache.report.factor_table import AGREEMENT, factor_sentences, factors_frame, factors_of, factors_table

KINDS = {"decoder.kind": ("paper", "linear")}
ALIKE = {("paper",): (("x", 2.0), ("y", 0.0)), ("linear",): (("x", 1.9), ("y", -0.1))}
CROSSED = {("paper",): (("x", 2.0), ("y", 0.0)), ("linear",): (("x", 0.0), ("y", 2.0))}


def test_encoders_that_differ_alike_under_all_settings_have_the_largest_share(swept):
    found = factors_of(swept(KINDS, ALIKE))
    table = factors_table(found)
    assert table.rows[0].cells[0].text == "encoder"
    assert table.rows[0].cells[1].value > 80
    assert sum(row.cells[1].value for row in table.rows) == pytest.approx(100)
    assert found.variances.agreement[0] > 0.9
    assert found.variances.kendall_w[0] == pytest.approx(1)
    assert any("is the same under all settings" in line for line in factor_sentences(found))


def test_encoders_whose_order_depends_on_the_setting_agree_in_nothing(swept):
    found = factors_of(swept(KINDS, CROSSED))
    assert factors_table(found).rows[0].cells[0].text == "encoder x kind"
    assert found.variances.agreement[0] < 0.1
    assert found.variances.kendall_w[0] == pytest.approx(0)


def test_the_frame_has_every_source_and_the_agreement(swept):
    found = factors_of(swept(KINDS, ALIKE))
    frame = factors_frame([found])
    assert frame["source"].to_list() == [*found.variances.sources, AGREEMENT, "kendall_w"]
    assert frame["share"].sum() == pytest.approx(1)
    assert np.allclose(frame["estimate"][: len(found.variances.sources)], found.variances.variance)


@pytest.mark.parametrize(
    ("sweep", "settings", "why"),
    [
        (KINDS, {("paper",): (("x", 2.0),), ("linear",): (("x", 2.0),)}, "fewer than two encoders"),
        (KINDS, {("paper",): (("x", 2.0), ("y", 0.0)), ("linear",): (("x", 2.0),)}, "fewer than two encoders"),
        (
            KINDS | {"fit.passes_per_epoch": (1, 5)},
            {("paper", 1): (("x", 2.0), ("y", 0.0)), ("linear", 5): (("x", 2.0), ("y", 0.0))},
            "all combinations",
        ),
    ],
)
def test_what_cannot_be_divided_is_said_with_the_reason(swept, sweep, settings, why):
    found = factors_of(swept(sweep, settings))
    assert found.variances is None
    assert why in factors_table(found).notes[0]
    assert factors_frame([found]).is_empty()
