"""From the results table to sums over units: groups, folds, runs that are not whole, labels that are absent."""

import numpy as np
import polars as pl
import pytest

from fmcache.errors import ResultsMismatch, ResultsNotFound, SpecError
from fmcache.scores.dice import dice_per_label, puma_dice
from fmcache.statistics.evidence import ALL_SCORES, evidence_of, from_counts, parts_of, score_name, score_of, scores_of

COLUMNS = ("dataset", "encoder", "fold", "seed", "split", "tile", "label", "tp", "fp", "fn")


def table(rows):
    schema = dict.fromkeys(COLUMNS, pl.String) | dict.fromkeys(("fold", "seed", "tp", "fp", "fn"), pl.Int64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def row(encoder="x", seed=0, tile="t1", label="a", counted=(1, 1, 1), fold=None, split="test", dataset="d"):
    return (dataset, encoder, fold, seed, split, tile, label, *counted)


def test_tiles_of_a_patient_are_one_unit_and_other_splits_play_no_part():
    rows = [row(tile="t1", counted=(1, 2, 3)), row(tile="t2", counted=(10, 20, 30)), row(tile="t3", counted=(5, 5, 5))]
    rows.append(row(tile="v", split="val"))
    found = evidence_of(table(rows), "pooled", {"t1": "p", "t2": "p"})
    assert found.units == ("p", "t3")
    assert found.tiles == 3
    assert found.sums[0][..., :3].tolist() == [[[[11, 22, 33]], [[5, 5, 5]]]]
    assert found.holds.tolist() == [[True], [True]]


def test_the_order_of_rows_plays_no_part():
    rows = [
        row(encoder, seed, tile, label, (len(tile) + seed, i, 1))
        for encoder in ("x", "y") for seed in (0, 1) for i, tile in enumerate(("t1", "t2")) for label in "ab"
    ]  # fmt: skip
    one = evidence_of(table(rows), "pooled", labels=("a", "b"))
    other = evidence_of(table(rows[::-1]), "pooled", labels=("a", "b"))
    assert one.encoders == other.encoders == ("x", "y")
    assert all((a == b).all() for a, b in zip(one.sums, other.sums, strict=True))


def test_a_seed_that_lacks_tiles_is_left_out_by_name():
    rows = [row("x", 0, "t1"), row("x", 0, "t2"), row("x", 1, "t1"), row("y", 0, "t1")]
    found = evidence_of(table(rows), "pooled")
    assert found.seeds == ((0,), ())
    assert found.left_out == (("x", 1), ("y", 0))


def test_folds_are_put_together_seed_by_seed():
    rows = [row(seed=seed, tile=f"t{fold}{i}", fold=fold) for seed in (0, 1) for fold in (0, 1) for i in (0, 1)]
    found = evidence_of(table(rows), "pooled")
    assert found.seeds == ((0, 1),)
    assert found.fold_sums[0].shape == (2, 2, 1, 5)
    assert (found.fold_sums[0].sum(axis=1) == found.sums[0].sum(axis=1)).all()


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ResultsNotFound, match="no run has test tiles"):
        evidence_of(table([row(split="val")]), "pooled")
    with pytest.raises(SpecError, match="never pooled"):
        evidence_of(table([row(), row(dataset="other")]), "pooled")
    with pytest.raises(ResultsMismatch, match="counts a tile twice"):
        evidence_of(table([row(fold=0), row(fold=1)]), "pooled")
    with pytest.raises(SpecError, match="background"):
        evidence_of(table([row()]), "puma")


@pytest.mark.parametrize("reduction", ["pooled", "per_tile"])
def test_scores_of_sums_are_the_dice_that_reports_show(reduction, counts):
    made = counts((1.0,), units=7, seeds=3)
    found = from_counts(made, ("a", "b"), [f"t{i}" for i in range(7)], reduction)
    slow = [dice_per_label(one, reduction) for one in made["e0"]]
    assert np.allclose(score_of(found.sums[0].sum(axis=1), reduction, np.array([True, True])), slow, rtol=1e-14)


def test_the_challenge_score_is_that_of_puma():
    some = np.array([[[5, 1, 2], [7, 7, 7], [0, 3, 4], [0, 0, 0]]])
    held = np.array([True, True, True, False])
    found = score_of(parts_of(some).sum(axis=0), "puma", held)
    assert found[1:].tolist() == puma_dice(some)[1:].tolist()
    assert np.isnan(found[0])


def test_iou_precision_and_recall_by_hand():
    # predicted and true; predicted elsewhere; never predicted; in no truth; nowhere
    some = np.array([[6, 2, 4], [0, 3, 5], [0, 0, 8], [0, 9, 0], [0, 0, 0]])
    held = np.array([True, True, True, False, False])
    expected = {"iou": 6 / 12, "precision": 6 / 8, "recall": 6 / 10}
    for score, first in expected.items():
        found = score_of(parts_of(some), score, held)
        assert found[:3].tolist() == [first, 0.0, 0.0], score
        assert np.isnan(found[3:]).all(), score


@pytest.mark.parametrize("score", ALL_SCORES)
def test_another_score_of_the_same_evidence_is_what_counting_anew_gives(score, counts):
    made, tiles = counts((0.5, 1.0)), [f"t{i}" for i in range(10)]
    changed = from_counts(made, ("background", "b"), tiles).scored(score)
    fresh = from_counts(made, ("background", "b"), tiles, score)
    assert changed.score == fresh.score == score
    assert all(np.array_equal(a, b) for a, b in zip(changed.sums, fresh.sums, strict=True))


def test_the_challenge_score_is_offered_only_where_the_first_label_is_the_background(counts):
    assert scores_of(("background", "b")) == ALL_SCORES
    assert "puma" not in scores_of(("a", "background"))
    with pytest.raises(SpecError, match="background"):
        from_counts(counts((0.5,)), ("a", "b"), [f"t{i}" for i in range(10)]).scored("puma")


def test_scores_have_the_names_that_tables_use():
    names = ["dice_pooled", "dice_per_tile", "dice_puma", "iou", "precision", "recall"]
    assert [score_name(score) for score in ALL_SCORES] == names


def test_a_label_that_no_truth_has_is_undefined_whatever_is_predicted():
    found = from_counts({"x": np.array([[[[3, 1, 1], [0, 9, 0]]]])}, ("a", "b"), ["t"])
    assert found.holders.tolist() == [1, 0]
    assert score_of(found.sums[0][0, 0], "pooled", found.holds[0]).tolist()[0] == 0.75
    assert np.isnan(score_of(found.sums[0][0, 0], "pooled", found.holds[0])[1])


def test_seeds_that_never_predict_a_label_or_hardly_are_lost():
    some = np.array([[[0, 0, 9]], [[1, 0, 99]], [[9, 1, 1]]])[:, None]
    assert from_counts({"x": some}, ("a",), ["t"]).lost[0].tolist() == [[True], [True], [False]]


def test_a_table_and_its_counts_give_the_same_evidence(counts):
    made = counts((0.5, 1.0), units=6, seeds=3)
    group_of = {f"t{i}": f"p{i % 4}" for i in range(6)}
    rows = [
        row(name, s, f"t{t}", "ab"[label], tuple(map(int, one[s, t, label])), fold=t % 2)
        for name, one in made.items() for s, t, label in np.ndindex(one.shape[:3])
    ]  # fmt: skip
    read = evidence_of(table(rows), "pooled", group_of)
    given = from_counts(made, ("a", "b"), list(group_of.values()), "pooled", [t % 2 for t in range(6)])
    for field in ("encoders", "labels", "units", "tiles", "seeds", "score", "left_out"):
        assert getattr(read, field) == getattr(given, field), field
    for field in ("sums", "fold_sums", "lost"):
        assert all(np.array_equal(a, b) for a, b in zip(getattr(read, field), getattr(given, field), strict=True)), (
            field
        )
    assert np.array_equal(read.holds, given.holds)
