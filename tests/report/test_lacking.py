"""Over which labels a mean goes, what tiles lack, and that nothing is best at it."""

import pytest

from fmcache.report import tables
from fmcache.report.dataset_tables import dataset_tables, dice_by_encoder
from fmcache.report.figures import figures
from fmcache.report.findings import find
from fmcache.report.notes import notes

LABELS = (("other", "#111111"), ("tumour", "#ff0000"), ("necrosis", "#0000ff"))
SEEN, ABSENT, WRONG = (8, 2, 2), (0, 0, 0), (0, 5, 0)


@pytest.fixture
def three(part):
    """Return a run with three labels."""

    def run(name, seed, *tested, validated=(SEEN,) * 3, **fields):
        first = ("background", "#111111") if fields.get("dice") == "puma" else LABELS[0]
        return part(name, seed, *tested, validated=validated, labels=(first, *LABELS[1:]), **fields)

    return run


def lines(parts):
    return notes(find(parts))


def test_a_mean_over_all_labels_says_so(three):
    assert "'mean' is the mean over all 3 labels." in lines([three("x", 0, SEEN, SEEN, SEEN)])


def test_a_label_without_a_pixel_in_the_test_tiles_is_named_in_every_output(three):
    said = "'mean' is the mean over 2 of 3 labels: necrosis has no pixel in the test tiles."
    table = dice_by_encoder(find([three("x", 0, SEEN, SEEN, ABSENT)]))
    assert said in table.notes
    assert said in str(tables.terminal(table).caption)
    assert f"% {said}" in tables.latex(table)


def test_what_validation_and_training_tiles_lack_is_named(three):
    found = lines(
        [three("x", 0, SEEN, SEEN, SEEN, validated=(SEEN, ABSENT, ABSENT), label_pixels={"train": (5, 5, 0)})]
    )
    assert (
        "tumour, necrosis have no pixel in the validation tiles: it has no influence on the choice of the best weights."
        in found
    )
    assert any(
        line.startswith("necrosis has no pixel in the training tiles: no decoder could learn it") for line in found
    )


def test_validation_tiles_are_judged_by_their_truth_not_by_what_was_predicted(three):
    found = lines([three("x", 0, SEEN, SEEN, SEEN, validated=(SEEN, SEEN, WRONG))])
    assert any("necrosis has no pixel in the validation tiles" in line for line in found)


@pytest.mark.parametrize("dice", ["pooled", "per_tile"])
def test_a_label_that_is_not_there_but_predicted_has_no_dice_and_is_in_no_mean(three, dice):
    (row,) = find(
        [three("x", 0, SEEN, SEEN, WRONG, dice=dice), three("x", 1, SEEN, SEEN, ABSENT, dice=dice)]
    ).summary.rows
    assert row.mean.tolist() == pytest.approx([0.8, 0.8, float("nan"), 0.8], nan_ok=True)
    assert row.std.tolist() == pytest.approx([0.0, 0.0, float("nan"), 0.0], nan_ok=True)


def test_folds_are_named_one_by_one(three):
    def fold(i, *tested, **fields):
        return three("x", 0, *tested, fold=i, identity={"splits": {"test": [f"t{i}"]}}, **fields)

    found = lines(
        [
            fold(0, SEEN, SEEN, SEEN, label_pixels={"train": (1, 1, 0)}),
            fold(1, SEEN, SEEN, ABSENT, label_pixels={"train": (1, 1, 1)}),
            fold(2, SEEN, SEEN, ABSENT, label_pixels={"train": (1, 0, 1)}),
        ]
    )
    assert "'mean' is the mean over all 3 labels." in found  # the tiles of all folds are scored together
    assert any(line.startswith("In fold 0 necrosis has no pixel in the training tiles") for line in found)
    assert any(line.startswith("In fold 2 tumour has no pixel in the training tiles") for line in found)


def test_the_challenge_metric_leaves_out_the_background_and_counts_what_is_not_there(three):
    puma = {"dice": "puma"}
    assert "'mean' is the mean over 2 labels: background is left out." in lines(
        [three("x", 0, SEEN, SEEN, SEEN, **puma)]
    )
    found = lines([three("x", 0, ABSENT, SEEN, ABSENT, **puma)])
    assert "'mean' is the mean over 2 labels: background is left out." in found
    assert "necrosis has no pixel in the test tiles: the challenge counts this as Dice 0." in found


@pytest.mark.parametrize("dice", ["pooled", "per_tile", "puma"])
@pytest.mark.parametrize("necrosis", [ABSENT, WRONG, (0, 0, 9), (0, 9, 9), (1, 90_000, 90_000)])
def test_a_label_that_nobody_predicts_has_no_best(three, necrosis, dice):
    found = find([three(name, 0, SEEN, SEEN, necrosis, dice=dice) for name in "xy"])
    summary = found.summary
    assert [summary.place(row, 2) for row in summary.rows] == [0, 0]
    assert [summary.place(row, 1) for row in summary.rows] == [1, 1]
    table = dice_by_encoder(found)
    assert not any(row.cells[3].may_be_best for row in table.rows)
    for text in (tables.markdown(table), tables.latex(table)):
        assert "<u>0.00" not in text
        assert "underline{0.00" not in text
        assert "<u>–" not in text


@pytest.mark.parametrize("dice", ["pooled", "per_tile", "puma"])
def test_tiles_where_everything_is_ignored_give_no_dice_and_above_all_not_100(three, dice):
    found = find([three(name, 0, ABSENT, ABSENT, ABSENT, dice=dice) for name in "xy"])
    for table in dataset_tables(found):
        scores = [row.cells[1:] for row in table.rows if table.name != "costs"]
        assert not any("100" in cell.text or cell.place or cell.may_be_best for cells in scores for cell in cells)
    if dice != "puma":
        assert "no label has a pixel in the test tiles, so nothing has a Dice." in notes(found)


@pytest.mark.filterwarnings("error")
def test_where_nothing_has_a_dice_only_the_training_is_drawn(three):
    files = figures(find([three(name, 0, ABSENT, ABSENT, ABSENT) for name in "xy"]))
    assert set(files) == {"curves.png", "curves.svg"}


def test_with_a_single_label_in_the_test_tiles_nothing_is_ranked(three):
    found = find([three(name, 0, (9, 0, 0), ABSENT, ABSENT) for name in "xy"])
    shown = dataset_tables(found)
    assert not any("**" in tables.markdown(table) or tables.MAY_BE_BEST in tables.markdown(table) for table in shown)
    assert "rank" not in shown[0].columns
    assert any("fewer than two labels" in line for line in notes(found))
    assert any("mean over 1 of 3 labels: tumour, necrosis have no pixel in the test tiles" in n for n in notes(found))
