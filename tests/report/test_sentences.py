"""The first screen says what the numbers say, in whole sentences."""

import dataclasses

import polars as pl
import pytest

from fmcache.report.findings import find
from fmcache.report.sentences import opening
from fmcache.scores.records import Extraction
from fmcache.statistics.answer import Answer
from fmcache.statistics.schemas import AGAINST_CONTROL, INTERVALS, PAIRS
from fmcache.statistics.verdict import verdict

FIXED = " This holds only for decoders trained on these 15 training tiles: the split is fixed."
SMALLEST = "B is also the smallest of these: 1.0 million parameters."


def interval(name, estimate=None, low=None, high=None, best=None, cannot=None):
    return {"encoder": name, "label": "mean", "score": "dice_pooled", "estimate": estimate, "low": low, "high": high,
            "by_tiles": 0.9, "by_seeds": 0.1, "may_be_best": best, "cannot": cannot}  # fmt: skip


def pair(a, b, difference, low=None, high=None, see=0.05, units=(None, None), seeds=False):
    return {"a": a, "b": b, "label": "mean", "score": "dice_pooled", "difference": difference, "low": low,
            "high": high, "could_see": see, "units_low": units[0], "units_high": units[1],
            "more_seeds": seeds}  # fmt: skip


def against(encoder, difference, beats):
    return {"encoder": encoder, "control": "raw", "label": "mean", "score": "dice_pooled", "difference": difference,
            "beats": beats}  # fmt: skip


def frame(rows, schema):
    return pl.DataFrame([[row.get(name) for name in schema] for row in rows], schema=schema, orient="row")


@pytest.fixture(scope="module")
def said(part):
    """Return the three statements for a table of intervals, of pairs and of differences to the control."""

    def say(intervals, pairs=(), controls=(), seeds=10, tiles=10, groups=False, **fields):
        names = [one["encoder"] for one in intervals]
        params = fields.pop("extraction", {})
        fields["groups"] = {f"t{i}": f"p{i}" for i in range(tiles)} if groups else {}
        runs = [
            part(name, seed, (8, 2, 2), (6, 4, 4), title=name.upper(), control=name == "raw",
                 extraction=params.get(name), **fields)
            for name in names for seed in range(seeds)
        ]  # fmt: skip
        unit = "p" if groups else "t"
        found = find(runs)
        evidence = dataclasses.replace(found.evidence, tiles=tiles, units=tuple(f"{unit}{i}" for i in range(tiles)))
        tables = Answer(frame(intervals, INTERVALS), frame(pairs, PAIRS), frame(controls, AGAINST_CONTROL))
        short = verdict(tables, score="pooled")
        return opening(found._replace(evidence=evidence, answer=tables, verdict=short))

    return say


RAW = interval("raw", 0.5, 0.45, 0.55)
BEATEN = [against("a", 0.2, True), against("b", 0.2, True)]
TWO = [interval("a", 0.70, 0.65, 0.75, True), interval("b", 0.724, 0.67, 0.77, True), RAW]


@pytest.mark.parametrize(
    ("between", "sure"),
    [
        (
            pair("a", "b", -0.024, units=(13, None)),
            "B and A differ by 2.4; telling them apart would take at least about 13 test tiles, and no upper limit can "
            "be given.",
        ),
        (
            pair("a", "b", -0.024, units=(13, 1200)),
            "B and A differ by 2.4; telling them apart would take about 13 to 1,200 test tiles.",
        ),
        (
            pair("a", "b", -0.024, units=(8, 60)),
            "B and A differ by 2.4; telling them apart would take up to about 60 test tiles.",
        ),
        (
            pair("a", "b", -0.024, units=(8, None)),
            "B and A differ by 2.4; telling them apart would take more than these 10 test tiles, and no upper limit "
            "can be given.",
        ),
        (
            pair("a", "b", -0.024, units=(6, 9)),
            "B and A differ by 2.4; compared with no other encoder, these 10 test tiles could be enough.",
        ),
        (
            pair("a", "b", -0.0001, units=(None, None)),
            "B and A differ by less than 0.1; no number of test tiles can be given that would tell them apart.",
        ),
        (
            pair("a", "b", -0.002, units=(None, None), seeds=True),
            "B and A differ by 0.2; the variation between seeds alone hides this: it takes more seeds, not more tiles.",
        ),
    ],
)  # fmt: skip
def test_what_would_settle_two_encoders_is_said_as_a_range(said, between, sure):
    found = said(TWO, [between], BEATEN)
    assert found.which == (
        "B has the highest mean Dice, 72.4% (95% interval 67.0 to 77.0). 10 test tiles cannot tell B and A apart."
    )
    assert found.sure == f"This study could have seen a difference of 5.0 points. {sure}{FIXED}"


def test_more_seeds_or_more_tiles_are_the_next_step_as_the_numbers_say(said):
    tiles = said(TWO, [pair("a", "b", -0.024, units=(13, None))], BEATEN)
    assert tiles.next == f"{SMALLEST} To test more tiles, use folds (fmcache data split --folds 5)."
    seeds = said(TWO, [pair("a", "b", -0.024, seeds=True)], BEATEN)
    assert seeds.next == f"{SMALLEST} Train more seeds than 10."


FOUR = [
    interval("a", 0.80, 0.7, 0.9, True), interval("b", 0.79, 0.7, 0.9, True), interval("c", 0.78, 0.7, 0.9, True),
    interval("d", 0.70, 0.6, 0.8, False),
]  # fmt: skip


def test_several_encoders_are_counted_in_words_and_patients_are_named(said):
    pairs = [pair("a", "b", 0.01, units=(40, 900)), pair("a", "c", 0.02, see=0.06, units=(20, 100)),
             pair("a", "d", 0.1, see=0.2, units=(2, 3))]  # fmt: skip
    found = said(FOUR, pairs, groups=True)
    assert found.which == (
        "A has the highest mean Dice, 80.0% (95% interval 70.0 to 90.0). 10 test tiles of 10 patients or slides cannot "
        "tell the first three apart: A, B and C."
    )
    assert found.sure == (
        "This study could have seen a difference of 6.0 points. A is between 1.0 and 2.0 points above the other two; "
        "telling A from all of them would "
        f"take about 40 to 900 patients or slides.{FIXED}"
    )
    assert "Add a control, such as raw pixels" in found.next


def test_encoders_that_may_be_best_but_are_not_the_first_are_not_called_so(said):
    rows = [*FOUR[:2], interval("c", 0.78, 0.7, 0.9, False), interval("d", 0.70, 0.1, 0.9, True)]
    pairs = [pair("a", "b", 0.01, units=(40, None)), pair("a", "d", 0.1, units=(20, None))]
    found = said(rows, pairs)
    assert found.which.endswith("10 test tiles cannot tell which of these three is best: A, B and D.")
    all_of_them = [one | {"may_be_best": True} for one in FOUR]
    found = said(all_of_them, [pair("a", other, 0.01, units=(40, None)) for other in "bcd"])
    assert found.which.endswith("10 test tiles cannot tell the four encoders apart: A, B, C and D.")


def test_a_long_list_of_names_is_cut(said):
    names = "abcdefgh"
    rows = [interval(name, 0.8 - i / 100, 0.7, 0.9, True) for i, name in enumerate(names)]
    found = said(rows, [pair("a", other, 0.01, units=(40, None)) for other in names[1:]], seeds=1)
    assert found.which.endswith("cannot tell the eight encoders apart: A, B, C, D and four more.")


def test_seeds_that_hide_some_of_the_differences_are_said_to_hide_some(said):
    pairs = [pair("a", "b", 0.01, seeds=True), pair("a", "c", 0.02, units=(20, 100))]
    assert (
        "A is between 1.0 and 2.0 points above the other two; the variation between seeds alone hides at least one of "
        "these differences: it takes more seeds, not more tiles."
    ) in said(FOUR, pairs).sure


def test_a_clear_winner_is_said_with_its_lead(said):
    rows = [interval("a", 0.60, 0.55, 0.65, False), interval("b", 0.80, 0.75, 0.85, True), RAW]
    found = said(rows, [pair("a", "b", -0.2, -0.25, -0.15)], BEATEN)
    assert found == (
        "B is the best of two encoders: mean Dice 80.0% (95% interval 75.0 to 85.0). The other one cannot be best.",
        "B is 20.0 points above A (95% limits: 15.0 to 25.0). "
        f"This study could have seen a difference of 5.0 points.{FIXED}",
        "B has 1.0 million parameters. No run collapsed, and none ended while still improving.",
    )
    rows = [*FOUR[:1], *(one | {"may_be_best": False} for one in FOUR[1:])]
    found = said(rows, [pair("a", other, d, d - 0.01, d + 0.01) for other, d in (("b", 0.1), ("c", 0.2), ("d", 0.3))])
    assert found.which == (
        "A is the best of four encoders: mean Dice 80.0% (95% interval 70.0 to 90.0). No other encoder may be best."
    )
    assert "A is 10.0 points above B (95% limits for all pairs jointly: 9.0 to 11.0)." in found.sure


def test_encoders_that_do_not_beat_the_best_control_are_the_first_thing_said(said):
    rest = "B has the highest mean Dice, 72.4% (95% interval 67.0 to 77.0). 10 test tiles cannot tell B and A apart."
    pairs = [pair("a", "b", -0.024, units=(13, None))]
    control = "the best control, RAW (50.0%)."
    for beats, sentence in (
        ((False, False), f"No encoder is shown to beat {control} "),
        ((False, True), f"A is not shown to beat {control} "),
        ((True, True), ""),
    ):
        rows = [against(name, 0.2, one) for name, one in zip("ab", beats, strict=True)]
        assert said(TWO, pairs, rows).which == sentence + rest
    bare = [interval("a", 0.4, best=True, cannot="one seed"), interval("b", 0.45, best=True, cannot="one seed"), RAW]
    below = [against("a", -0.1, None), against("b", 0.05, None)]
    assert said(bare, [pair("a", "b", -0.05, see=None)], below, seeds=1) == (
        f"A is not above {control} B has the highest mean Dice, 45.0%. Nothing shows that it is better than the "
        "others: each encoder has one seed only.",
        f"No interval can be given, because each encoder has one seed only.{FIXED}",
        f"{SMALLEST} Train 10 seeds: one is too few. To test more tiles, use folds (fmcache data split --folds 5).",
    )


def test_the_reason_why_there_is_no_interval_is_said(said):
    pairs = [pair("a", "b", -0.05, see=None)]
    for why, reason in (
        ("too few units", "a label is in fewer than three test tiles"),
        ("one fold", "a label is in one fold only"),
        ("nothing varied", "neither seeds nor test tiles made a difference for B"),
    ):
        rows = [interval("a", 0.4, best=True, cannot=why), interval("b", 0.45, best=True, cannot=why)]
        assert said(rows, pairs).sure == f"No interval can be given, because {reason}.{FIXED}"
    rows = [interval("a", 0.4, best=True, cannot="one seed"), interval("b", 0.45, 0.4, 0.5, True)]
    assert said(rows, pairs).sure == f"No interval can be given, because A has one seed only.{FIXED}"


def test_one_encoder_alone_is_said_to_be_alone(said):
    found = said([interval("a", 0.7, 0.65, 0.75), RAW], controls=[against("a", 0.2, True)])
    assert found == (
        "A is the only encoder: mean Dice 70.0% (95% interval 65.0 to 75.0).",
        f"Of the variance behind this interval, 90% comes from test tiles and 10% from seeds.{FIXED}",
        "A has 1.0 million parameters. No run collapsed, and none ended while still improving.",
    )
    found = said([interval("a", 0.7, 0.65, 0.75), interval("b", cannot="no whole run")])
    assert found.which == (
        "A is the only encoder whose runs are complete: mean Dice 70.0% (95% interval 65.0 to 75.0)."
    )
    found = said([interval("a", cannot="no whole run"), interval("b", cannot="no whole run")])
    assert found.which == "Nothing is ranked, because no seed of A tested every tile."


def test_controls_alone_compare_no_encoder(said):
    assert said([RAW]) == (
        "Only controls ran, so no encoder is compared. The best of them is RAW: mean Dice 50.0% (95% interval 45.0 to "
        "55.0).",
        "Of the variance behind this interval, 90% comes from test tiles and 10% from seeds.",
        "Extract and fit an encoder: fmcache encoders list shows those that are available.",
    )


def test_test_tiles_with_one_label_rank_nothing(part):
    found = opening(find([part(name, seed, (8, 2, 0), (0, 4, 0)) for name in "ab" for seed in range(2)]))
    assert found.which == "Nothing is ranked: the test tiles hold fewer than two labels, so Dice has no meaning here."


def test_the_cost_is_that_of_extraction_where_it_was_measured_on_one_device(said):
    pairs = [pair("a", "b", -0.024, units=(13, None))]
    slow, fast = Extraction(75.0, 50, 10, 50, "cuda"), Extraction(0.6, 50, 10, 50, "cuda")
    shown = said(TWO, pairs, BEATEN, extraction={"b": slow, "a": fast}).next
    assert shown.startswith("Of these two, A is the fastest to extract: 12 ms a view on cuda (B: 1.5 s a view).")
    shown = said(TWO, pairs, BEATEN, extraction={"b": fast, "a": slow}).next
    assert shown.startswith("B is also the fastest to extract of these: 12 ms a view on cuda.")
    elsewhere = Extraction(75.0, 50, 10, 50, "cpu")
    assert said(TWO, pairs, BEATEN, extraction={"b": elsewhere, "a": fast}).next.startswith(SMALLEST)


def test_collapsed_runs_runs_that_still_improve_and_few_seeds_come_before_other_steps(said):
    pairs = [pair("a", "b", -0.024, units=(13, None))]
    collapsed = said(TWO, pairs, BEATEN, collapsed=("b",), seeds=3).next
    assert collapsed == f"{SMALLEST} Train longer first: 6 of 6 runs collapsed. Train 10 seeds: three are too few."
    rising = said(TWO, pairs, BEATEN, still_falling=True, curve=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)).next
    assert rising.startswith(f"{SMALLEST} Train longer first: 20 of 20 runs ended while still improving. To test")


def test_folds_are_named_and_no_condition_on_one_split_is_made(in_folds):
    runs = in_folds(80, 82, 70, 72, 75, 78, encoder="a") + in_folds(79, 83, 71, 70, 76, 75, encoder="b")
    found = opening(find(runs))
    assert found.which.startswith("A 50%_ has the highest mean Dice, 76.2% (95% interval ")
    assert found.which.endswith("3 test tiles in three folds cannot tell A 50%_ and B 50%_ apart.")
    assert "training tiles" not in found.sure
