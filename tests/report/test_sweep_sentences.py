"""What a sweep shows in sentences: who is first where, controls, and learning curves."""

import numpy as np
import pytest

from fmcache.report import sweep_sentences as module
from fmcache.report.sweep_sentences import Gain, gain, sweep_sentences

KINDS = {"decoder.kind": ("paper", "linear"), "fit.passes_per_epoch": (1, 5)}
X, Y, Z = (("x", 1.5), ("y", 0.0)), (("x", 0.0), ("y", 1.5)), (("x", 1.0), ("y", 1.0))


def said(swept, sweep, settings, **fields):
    return sweep_sentences(swept(sweep, settings, **fields))


def test_an_encoder_that_is_clearly_first_everywhere_is_first_under_every_setting(swept):
    order, x, y = said(swept, {"fit.passes_per_epoch": (1, 5)}, {(1,): X, (5,): X})
    assert order == "The order of encoders is the same under every setting."
    assert x == "x: first under every setting; no other encoder may be best there."
    assert y == "y: never first; another encoder is better under every setting."


def test_settings_are_named_by_the_value_that_they_share(swept):
    settings = {("paper", 1): X, ("paper", 5): X, ("linear", 1): Y, ("linear", 5): Y}
    order, *each = said(swept, KINDS, settings)
    assert order == "The order of encoders depends on the setting: 2 orders in 4 settings."
    assert sorted(each) == [
        "x: first only under kind paper; no other encoder may be best there.",
        "y: first only under kind linear; no other encoder may be best there.",
    ]
    settings = {("paper", 1): X, ("paper", 5): Y, ("linear", 1): Y, ("linear", 5): X}
    _, *each = said(swept, KINDS, settings)
    listed = "under 2 of 4 settings (kind paper, passes_per_epoch 1; kind linear, passes_per_epoch 5)"
    assert f"x: first only {listed}; no other encoder may be best there." in each


def test_may_be_best_is_told_apart_from_being_first(swept):
    found = swept({"fit.passes_per_epoch": (1, 2, 5)}, {(1,): X, (2,): Z, (5,): Z})
    may = {name: [s[0][1] for s, p in found.of(name).items() if p.may_be_best] for name in ("x", "y")}
    first = {name: [s[0][1] for s, p in found.of(name).items() if p.place == 1] for name in ("x", "y")}
    assert may == {"x": [1, 2, 5], "y": [2, 5]}  # equal encoders cannot be separated
    assert first == {"x": [1], "y": [2, 5]} or first == {"x": [1, 2, 5], "y": []}
    _, *each = sweep_sentences(found)
    of = {line[0]: line for line in each}
    assert "may be best under every setting; the only one that may be best under passes_per_epoch 1." in of["x"]
    assert "may be best under passes_per_epoch 2, 5." in of["y"]


def test_a_control_above_every_encoder_is_named_with_its_settings(swept):
    settings = {(1,): (*X, ("raw", 3.0)), (5,): (*X, ("raw", -1.0))}
    lines = said(swept, {"fit.passes_per_epoch": (1, 5)}, settings, controls=("raw",))
    assert lines[-1] == "raw: a control, but its Dice is above that of every encoder under passes_per_epoch 1."
    settings = {(1,): (*X, ("raw", -1.0)), (5,): (*X, ("raw", -1.0))}
    lines = said(swept, {"fit.passes_per_epoch": (1, 5)}, settings, controls=("raw",))
    assert lines[-1] == "raw: a control; at least one encoder has a higher Dice under every setting."


def test_settings_without_results_are_counted(swept):
    lines = said(swept, {"fit.passes_per_epoch": (1, 5)}, {(1,): (*X, ("z", -1.0)), (5,): X})
    assert lines[-1].startswith("z: never first; another encoder is better")
    assert lines[-1].endswith("It was not run under 1 of 2 settings.")


def test_a_single_encoder_is_not_ranked(swept):
    assert said(swept, {"fit.passes_per_epoch": (1, 5)}, {(1,): X[:1], (5,): X[:1]}) == [
        "x: not ranked under any setting."
    ]


def test_a_gain_is_the_difference_of_the_means_with_limits_from_the_same_tiles(swept):
    found = swept({"subset": (5, 10)}, {(5,): (("x", 0.8), ("y", 0.0)), (10,): X}, trained={5: 5, 10: 10})
    before, after = found.findings.values()
    got = gain(before, after, "x")
    five, ten = (found.points["x", setting] for setting in found.settings)
    assert got.points == pytest.approx(100 * (ten.estimate - five.estimate))
    assert got.low < got.points < got.high
    unpaired = np.hypot(five.high - five.low, ten.high - ten.low) * 100
    assert got.high - got.low < unpaired  # the same tiles are hard under both settings
    back = gain(after, before, "x")
    assert (back.points, back.low, back.high) == pytest.approx((-got.points, -got.high, -got.low))


def test_the_last_step_of_a_learning_curve_is_described(swept):
    settings = {(n,): (("x", q), ("y", -0.5)) for n, q in ((5, 0.0), (10, 0.6), (0, 1.5))}
    found = swept({"subset": (5, 10, 0)}, settings, trained={5: 5, 10: 10, 0: 15})
    (line,) = [line for line in sweep_sentences(found) if "training tiles, " in line]
    assert line.startswith("From 10 to 15 training tiles, x (first with 15) gained ")
    assert "points of mean Dice (95 % interval of the gain on the same test tiles: [+" in line
    assert line.endswith(
        "More training tiles would probably still help. One subset of each size was tried; others may differ."
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (Gain(1.2, 0.3, 2.1), ["gained 1.2 points", "[+0.3, +2.1]", "would probably still help."]),
        (Gain(0.2, -0.4, 0.8), ["gained 0.2 points", "[−0.4, +0.8]", "would probably help little."]),
        (Gain(1.2, -0.4, 2.8), ["A gain is not shown; up to 2.8 points are possible", "may or may not help."]),
        (Gain(-1.2, -2.1, -0.3), ["lost 1.2 points", "[−2.1, −0.3]", "The larger subset was worse"]),
        (Gain(1.2, np.nan, np.nan), ["gained 1.2 points of mean Dice.", "it is unknown whether"]),
        (Gain(np.nan, np.nan, np.nan), ["the first encoder has no Dice on both sides."]),
    ],
)
def test_the_advice_on_more_tiles_follows_the_interval(swept, monkeypatch, found, says):
    monkeypatch.setattr(module, "gain", lambda *_: found)
    curve = swept({"subset": (5, 10)}, {(5,): X, (10,): X}, trained={5: 5, 10: 10})
    line = sweep_sentences(curve)[-1]
    for text in says:
        assert text in line


def test_each_setting_of_the_other_fields_has_its_own_learning_curve(swept):
    sweep = {"decoder.kind": ("paper", "linear"), "subset": (5, 10)}
    settings = {(kind, n): X for kind in ("paper", "linear") for n in (5, 10)}
    lines = said(swept, sweep, settings, trained={5: 5, 10: 10})
    assert [line.partition(" training")[0] for line in lines[-2:]] == [
        "Under kind paper, from 5 to 10", "Under kind linear, from 5 to 10",
    ]  # fmt: skip
