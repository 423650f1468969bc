"""All that a report says of a dataset: every score, the verdict by the recipe's own, units that are patients."""

import polars as pl

from fmcache.report.findings import find
from fmcache.statistics.evidence import ALL_SCORES, score_name
from fmcache.statistics.verdict import verdict


def runs(part, n_tiles=6, seeds=3, groups=None, **fields):
    """Runs of two encoders whose Dice differs by seed and tile."""
    result = []
    for i, name in enumerate(("x", "y")):
        for seed in range(seeds):
            one = part(name, seed, (1, 1, 1), (1, 1, 1), groups=groups or {}, **fields)
            labels = [label for label, _ in one.record.labels]
            rows = [
                ("test", f"t{tile}", label, (50 + i + (7 * (seed + i) * (tile + 1)) % 23) * (tile + 1), 20, 17)
                for tile in range(n_tiles)
                for label in labels
            ]
            counts = pl.DataFrame(rows, schema=one.counts.schema, orient="row")
            result.append(type(one)(one.record, pl.concat([counts, one.counts.filter(split="val")]), one.curve))
    return result


def test_all_scores_are_answered_and_the_verdict_is_by_the_dice_of_the_recipe(part):
    found = find(runs(part, n_tiles=5, seeds=4, dice="per_tile"))
    names = [score_name(score) for score in ALL_SCORES if score != "puma"]
    assert found.answer.intervals["score"].unique(maintain_order=True).to_list() == names
    assert found.evidence.score == "per_tile"
    assert found.verdict == verdict(found.answer, score="per_tile")
    assert found.verdict != verdict(found.answer, score="pooled")


def test_the_challenge_score_is_answered_where_the_first_label_is_the_background(part):
    found = find(runs(part, labels=(("background", "#000000"), ("b", "#0000ff")), dice="puma"))
    assert "dice_puma" in set(found.answer.intervals["score"])
    assert found.verdict is not None


def test_two_tiles_of_a_patient_are_one_unit(part):
    found = find(runs(part, groups={"t0": "p", "t3": "p"}))
    assert found.evidence.units == ("p", "t1", "t2", "t4", "t5")
    assert set(found.answer.intervals["units"]) == {5}
    alone = find(runs(part))
    assert set(alone.answer.intervals["units"]) == {6}
    pooled = (one.answer.intervals.filter(score="dice_pooled") for one in (found, alone))
    together, apart = pooled
    assert together["estimate"].equals(apart["estimate"])
    assert not together["low"].equals(apart["low"])
