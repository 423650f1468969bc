"""The Dice of runs as a table."""

import polars as pl
import pytest

from fmcache.scores.results import dice_table

COLUMNS = ["dataset", "encoder", "fold", "seed", "split", "tile", "label", "tp", "fp", "fn"]


def counts(*tiles):
    """Results of one run from (label a, label b) counts of its test tiles."""
    rows = [
        ("d", "x", None, 0, "test", f"t{i}", label, *of)
        for i, tile in enumerate(tiles)
        for label, of in zip("ab", tile, strict=True)
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


@pytest.mark.parametrize(("reduction", "dice"), [("pooled", 0.5), ("per_tile", 0.4)])
def test_dice_follows_from_counts_by_hand(reduction, dice):
    # tile 0: Dice 2*8/(16+2+2) = 0.8, tile 1: 0; pooled: 16 / (16 + 6 + 10) = 0.5
    table = dice_table(counts(((8, 2, 2), (1, 0, 0)), ((0, 4, 8), (1, 0, 0))), "test", reduction)
    assert table["dice"].to_list() == [pytest.approx(dice), 1.0]


@pytest.mark.parametrize("reduction", ["pooled", "per_tile"])
def test_a_label_that_the_truth_lacks_has_no_dice_even_if_it_was_predicted(reduction):
    table = dice_table(counts(((8, 2, 2), (0, 5, 0))), "test", reduction)
    assert table["label"].to_list() == ["a", "b"]
    assert table["dice"].to_list() == [pytest.approx(0.8), None]
