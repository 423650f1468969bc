"""Runs drawn for reports: one test tile, two labels, counts and curves as a test wants them."""

import msgspec
import polars as pl
import pytest

from fmcache.scores.records import EncoderInfo, RunRecord, RunResults
from fmcache.scores.run_files import run_folder, whole_folder, write_run
from fmcache.specs import Recipe

LABELS = (("a", "#ff0000"), ("b", "#0000ff"))
COUNTS = ["split", "tile", "label", "tp", "fp", "fn"]


def a_part(
    name, seed, *tested, validated=((9, 0, 0), (9, 0, 0)), curve=(None, 0.5), title="", labels=LABELS, study="toy",
    control=False, random_weights=False, **fields,
):  # fmt: skip
    """A run on one test and one validation tile; `tested` and `validated` are (tp, fp, fn) by label, `curve` the
    validation Dice after each epoch."""
    info = EncoderInfo(name, title or name.upper() + " 50%_", 1_000_000, 8, 16, control, random_weights, "w")
    identity = {"seed": seed, "tokens": name, "fit": {"epochs": 2}} | fields.pop("identity", {})
    defaults = {"best_epoch": 1, "collapsed": (), "still_falling": False, "dataset_title": "Toy", "fold": None}
    record = RunRecord(
        study=study, dataset="d", encoder=info, seed=seed, identity=identity, labels=labels, mpp=0.5,
        recipe=msgspec.to_builtins(Recipe(name="toy", dice=fields.pop("dice", "pooled"))),
        tiles={"train": 15, "val": 5, "test": 1}, decoder_params=10, val_dice=0.5, device="cpu", threads=1,
        versions={"fmcache": "0"}, wall_s=1.0, **(defaults | fields),
    )  # fmt: skip
    names = [label for label, _ in labels]
    rows = [("test", "t", label, *of) for label, of in zip(names, tested, strict=True)]
    rows += [("val", "v", label, *of) for label, of in zip(names, validated, strict=True)]
    epochs = list(range(1, len(curve) + 1))
    table = {key: [1.0 / epoch for epoch in epochs] for key in ("learning_rate", "loss", "cross_entropy", "dice_loss")}
    columns = {"epoch": epochs} | table | {"val_dice": list(curve)}
    return RunResults(
        record,
        pl.DataFrame(rows, schema=COUNTS, orient="row"),
        pl.DataFrame(columns, schema_overrides={"val_dice": pl.Float64}),
    )


def write_parts(results, parts):
    for one in parts:
        at = one.record
        with whole_folder(run_folder(results, at.study, at.dataset, at.encoder.name, at.seed, at.fold)) as folder:
            (folder / "decoder.safetensors").write_bytes(b"weights")
            write_run(folder, one)


@pytest.fixture(scope="session")
def part():
    """Return a run on one test tile; see `a_part`."""
    return a_part


@pytest.fixture(scope="session")
def write():
    """Write runs into a results folder."""
    return write_parts


@pytest.fixture(scope="session")
def study():
    """Two encoders with two seeds, one of them poor, and a control that is better than both."""
    return [
        a_part("good", 0, (8, 2, 2), (6, 4, 4)),
        a_part("good", 1, (9, 1, 1), (7, 3, 3)),
        a_part("bad", 0, (5, 5, 5), (1, 9, 9), still_falling=True),
        a_part("bad", 1, (5, 5, 5), (0, 0, 10), collapsed=("b",)),
        a_part("best", 0, (10, 0, 0), (10, 0, 0), control=True, random_weights=True),
    ]


@pytest.fixture(scope="session")
def in_folds(part):
    """Return one run for every value, fold by fold, whose Dice of both labels is that many percent."""

    def drawn(*dice, encoder="x", seeds=2, **fields):
        runs = [(i // seeds, i % seeds, value) for i, value in enumerate(dice)]
        return [
            part(encoder, seed, (d, 100 - d, 100 - d), (d, 100 - d, 100 - d), fold=fold,
                 identity={"splits": {"test": [f"t{fold}"]}}, **fields)
            for fold, seed, d in runs
        ]  # fmt: skip

    return drawn
