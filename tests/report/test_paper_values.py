"""The paper's values stand beside ours where dataset, labels, um/px and encoder are the paper's, and nowhere else."""

import msgspec
import pytest

from fmcache.encoders.cards import card_names
from fmcache.report.dataset_tables import dataset_tables
from fmcache.report.findings import find
from fmcache.report.paper_values import ENCODERS, is_of_paper, paper_frame, paper_table, published

PUMA = (("tumour", "#d55e00"), ("stroma", "#009e73"), ("other", "#0072b2"))
UPV = (("tumour", "#d55e00"), ("TIL", "#009e73"), ("other", "#0072b2"))
QUALITY = (("uni", 1.5), ("hibou-l", 1.0), ("gpfm", 0.5))


@pytest.fixture
def puma(many_runs):
    def runs(**fields):
        chosen = {"dataset": "puma", "labels": PUMA, "mpp": 0.23, "tiles": 10, "quality": QUALITY} | fields
        return many_runs(**chosen)

    return runs


def test_all_encoders_of_the_paper_have_a_card_and_values_on_both_datasets():
    assert set(ENCODERS) <= set(card_names())
    table = published()
    for dataset in ("puma", "upv-anxa5"):
        assert set(table.filter(dataset=dataset)["encoder"]) == set(ENCODERS.values())
    assert table.filter(dataset="puma", encoder="UNI", label="mean").row(0) == ("puma", "UNI", "mean", 83.28, 1.3)


def test_a_mean_of_the_paper_that_is_not_the_mean_of_its_labels_is_named(puma):
    found = {
        (dataset, encoder)
        for (dataset, encoder), rows in published().group_by("dataset", "encoder")
        if abs(rows["dice_mean_percent"][:3].mean() - rows["dice_mean_percent"][3]) > 0.02
    }
    assert found == {("puma", "UNI2-h")}
    (line,) = (
        line for line in paper_table(find(puma(quality=(("uni", 1.0), ("uni2-h", 0.5))))).notes if "72.12" in line
    )
    assert line == "The paper's mean of UNI2-h (72.12) is not the mean of its labels (75.04)."
    assert not any("not the mean of" in line for line in paper_table(find(puma())).notes)


def test_ours_the_papers_and_the_difference_stand_side_by_side(puma):
    found = find(puma())
    frame = paper_frame(found)
    assert frame["encoder"].unique(maintain_order=True).to_list() == ["uni", "hibou-l"]  # gpfm is not in the paper
    known = found.intervals_of()["uni", "stroma"]
    row = frame.filter(encoder="uni", label="stroma").row(0, named=True)
    assert row["paper"] == pytest.approx(0.8788)
    assert row["difference"] == pytest.approx(known["estimate"] - 0.8788)
    assert row["low"] == pytest.approx(known["low"] - 0.8788)
    assert row["high"] == pytest.approx(known["high"] - 0.8788)
    (shown,) = (table for table in dataset_tables(found) if table.name == "paper")
    cells = next(row.cells for row in shown.rows if (row.cells[0].text, row.cells[1].text) == ("uni", "stroma"))
    assert cells[3].text == "87.88 ± 0.82"
    assert cells[4].text.startswith(("+", "−"))


def test_labels_of_upv_match_in_either_case(puma):
    frame = paper_frame(find(puma(dataset="upv-anxa5", labels=UPV, mpp=0.44)))
    assert frame.filter(encoder="uni", label="TIL")["paper"].to_list() == pytest.approx([0.6448])


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset": "puma-mine"},
        {"labels": (*PUMA, ("necrosis", "#000000"))},
        {"labels": (("tumour", "#d55e00"), ("epidermis", "#009e73"), ("other", "#0072b2"))},
        {"mpp": 0.5},
        {"mpp": None},
        {"dataset": "upv-anxa5"},
    ],
)
def test_a_dataset_that_shares_only_some_facts_is_not_the_papers(puma, fields):
    found = find(puma(**fields))
    assert not is_of_paper(found.summary.record)
    assert paper_frame(found).is_empty()
    assert paper_table(found) is None


@pytest.mark.parametrize("name", ["uni@6", "uni-mine", "uni-random", "UNI"])
def test_another_tap_or_other_weights_of_an_encoder_are_not_the_papers(puma, name):
    assert paper_frame(find(puma(quality=((name, 1.0), ("gpfm", 0.5))))).is_empty()
    assert paper_frame(find(puma(quality=(("uni", 1.0), ("gpfm", 0.5)), random_weights=True))).is_empty()


def test_other_settings_than_the_papers_are_named(puma):
    (line,) = (line for line in paper_table(find(puma())).notes if line.startswith("Settings"))
    assert line == "Settings that differ from the paper's: 1 test tiles (paper: 10)."
    runs = puma(splits={"train": 15, "val": 5, "test": 10})
    assert not any(line.startswith("Settings") for line in paper_table(find(runs)).notes)
    for run in runs:
        run.record.recipe["tile_px"] = 256
        run.record.recipe["fit"] |= {"epochs": 5, "seeds": 3}
    (line,) = (line for line in paper_table(find(runs)).notes if line.startswith("Settings"))
    assert line == "Settings that differ from the paper's: tile_px 256 (paper: 512), fit.epochs 5 (paper: 50)."


def test_a_recipe_read_from_disk_is_still_the_papers(puma, write, tmp_path):
    from fmcache.scores.run_files import find_runs, read_run

    write(tmp_path, puma(splits={"train": 15, "val": 5, "test": 10}, seeds=1))
    notes = paper_table(find([read_run(path) for path in find_runs(tmp_path, "toy")])).notes
    assert not any(line.startswith("Settings") for line in notes)


def test_weights_that_the_user_gave_are_named(puma):
    runs = [
        msgspec.structs.replace(run, record=msgspec.structs.replace(run.record, origin={"chosen": True}))
        if run.record.encoder.name == "uni" else run for run in puma()
    ]  # fmt: skip
    assert paper_table(find(runs)).notes[-1].endswith("which may not be the published ones: uni.")
