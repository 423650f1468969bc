"""Runs drawn for reports: one test tile, two labels, counts and curves as a test wants them; and a large study."""

import io

import msgspec
import numpy as np
import polars as pl
import pytest
from PIL import Image

from fmcache.report.findings import find
from fmcache.report.page import DatasetPart, StudyPart, page
from fmcache.report.picture_rows import picture_rows
from fmcache.report.report_table import Cell, ReportTable, TableRow
from fmcache.report.sweep import swept_datasets
from fmcache.scores.kept_pictures import write_tile_pictures, write_token_pictures
from fmcache.scores.predictions import Predictions, write_predictions
from fmcache.scores.records import EncoderInfo, Extraction, RunRecord, RunResults
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
    defaults |= {"dataset": "d", "mpp": 0.5, "wall_s": 1.0}
    defaults |= {"tiles": fields.pop("splits", {"train": 15, "val": 5, "test": 1})}
    record = RunRecord(
        study=study, encoder=info, seed=seed, identity=identity, labels=labels,
        recipe=msgspec.to_builtins(Recipe(name="toy", dice=fields.pop("dice", "pooled"))),
        decoder_params=10, val_dice=0.5, device="cpu", threads=1,
        versions={"fmcache": "0"}, **(defaults | fields),
    )  # fmt: skip
    names = [label for label, _ in labels]
    rows = [("test", f"t{record.fold or 0}", label, *of) for label, of in zip(names, tested, strict=True)]
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


LARGE = {  # name: title, parameters, width, patch, quality (logit of Dice) on two datasets
    "uni": ("UNI", 303_350_784, 1024, 16, (1.90, 1.25)),
    "uni2-h": ("UNI2-h", 681_394_176, 1536, 14, (1.20, 0.85)),
    "conch": ("CONCH", 86_250_240, 768, 16, (1.75, 1.20)),
    "conchv1.5": ("CONCHv1.5", 303_952_896, 1024, 16, (-0.20, 0.30)),
    "phikon": ("Phikon", 85_798_656, 768, 16, (1.25, 1.45)),
    "phikon-v2": ("Phikon-v2", 303_350_784, 1024, 16, (1.15, 1.05)),
    "virchow": ("Virchow", 631_229_184, 1280, 14, (1.40, 1.20)),
    "virchow2": ("Virchow2", 631_239_424, 1280, 14, (0.85, 0.80)),
    "prov-gigapath": ("Prov-GigaPath", 1_134_953_984, 1536, 16, (1.74, 1.10)),
    "h-optimus-0": ("H-Optimus-0", 1_134_774_272, 1536, 14, (1.42, 1.25)),
    "h-optimus-1": ("H-Optimus-1", 1_134_774_272, 1536, 14, (1.30, 1.15)),
    "kaiko-vitl14": ("Kaiko ViT-L/14", 304_370_688, 1024, 14, (1.80, 1.35)),
    "lunit-vits8": ("Lunit ViT-S/8", 21_670_272, 384, 8, (1.10, 1.10)),
    "hibou-b": ("Hibou-b", 85_739_520, 768, 14, (1.24, 1.33)),
    "hibou-l": ("Hibou-L", 303_657_216, 1024, 14, (2.00, 1.18)),
    "raw-pixels": ("Raw pixels", 0, 768, 16, (-0.40, -0.30)),
    "colour-texture": ("Colour and texture", 0, 64, 16, (0.20, 0.10)),
    "random-vits16": ("ViT-S/16", 21_665_664, 384, 16, (0.00, 0.15)),
}
LARGE_DATASETS = {"puma": "PUMA melanoma", "kidney": "Kidney glomeruli"}
LARGE_LABELS = (("other", "#b0b0b0"), ("tumour", "#c80000"), ("stroma", "#1e90ff"))
LARGE_SPLITS = {"test": 10, "val": 5}
EPOCHS = 20


def a_large_study(seeds=10):
    """Runs by dataset of a study with 15 encoders, 3 controls, 2 datasets, 3 labels and 10 test tiles.

    Counts have effects of label, tile, encoder and seed. One encoder is far behind on one dataset.
    """
    rng = np.random.default_rng(0)
    drawn = {}
    for at, dataset in enumerate(LARGE_DATASETS):
        shared = {split: rng.normal(0, 0.35, (n, 3)) for split, n in LARGE_SPLITS.items()}
        truth = {split: rng.integers(8_000, 90_000, (n, 3)) for split, n in LARGE_SPLITS.items()}
        drawn[dataset] = [
            run
            for name in LARGE
            for run in _large_runs(rng, name, dataset, LARGE[name][-1][at], (shared, truth), seeds)
        ]
    return drawn


def _large_runs(rng, name, dataset, quality, tiles, seeds):
    """The runs of one encoder on one dataset of `a_large_study`."""
    title, params, width, patch, _ = LARGE[name]
    control, random_weights = name in ("raw-pixels", "colour-texture", "random-vits16"), name == "random-vits16"
    encoder = EncoderInfo(name, title, params, width, patch, control, random_weights, "w" * 64)
    views = 50 * 15 + 15
    size = views * width * (512 // patch) ** 2
    cost = Extraction(round(views * (0.01 + params / 4e9), 1), views, size, views, "cuda")
    own = {split: rng.normal(0, 0.25, (n, 3)) for split, n in LARGE_SPLITS.items()}
    names = [label for label, _ in LARGE_LABELS]
    for seed in range(seeds):
        of_seed = rng.normal(0, 0.08, 3) + np.array([-0.6, 0.7, 0.1])
        frames = []
        for split, n in LARGE_SPLITS.items():
            shared, truth = tiles[0][split], tiles[1][split]
            x = quality + of_seed + shared + own[split] + rng.normal(0, 0.1, (n, 3))
            tp = np.rint(truth / (1 + np.exp(-x))).astype(np.int64)
            fp = np.rint((truth - tp) * rng.uniform(0.7, 1.3, (n, 3))).astype(np.int64)
            tile = [f"{split}-{i}" for i in range(n) for _ in names]
            keys = {"split": [split] * 3 * n, "tile": tile, "label": names * n}
            frames.append(pl.DataFrame(keys | {"tp": tp.ravel(), "fp": fp.ravel(), "fn": (truth - tp).ravel()}))
        yield RunResults(_large_record(dataset, encoder, seed, cost), pl.concat(frames), _large_curve(rng, quality))


def _large_record(dataset, encoder, seed, cost):
    return RunRecord(
        study="large", dataset=dataset, dataset_title=LARGE_DATASETS[dataset], encoder=encoder, seed=seed,
        identity={"seed": seed, "tokens": encoder.name, "fit": {"epochs": EPOCHS}}, labels=LARGE_LABELS, mpp=0.5,
        recipe=msgspec.to_builtins(Recipe(name="large")), tiles={"train": 15, "val": 5, "test": 10},
        label_pixels={"train": (500_000, 900_000, 700_000)}, extraction=cost, decoder_params=1_500_000, best_epoch=15,
        val_dice=0.8, collapsed=(), still_falling=False, device="cuda", threads=2, together=10,
        versions={"fmcache": "0"}, wall_s=20 + encoder.width / 20 + seed,
    )  # fmt: skip


def _large_curve(rng, quality):
    """A curve with a loss that falls and a validation Dice, at every second epoch, that rises."""
    epoch = np.arange(1, EPOCHS + 1)
    learnt = 1 - np.exp(-epoch / 6)
    loss = 1.6 - (0.8 + 0.15 * quality) * learnt + rng.normal(0, 0.02, EPOCHS)
    dice = learnt / (1 + np.exp(-quality)) + rng.normal(0, 0.01, EPOCHS)
    columns = dict.fromkeys(("learning_rate", "loss", "cross_entropy", "dice_loss"), loss)
    tested = [float(value) if at % 2 == 0 else None for at, value in zip(epoch, dice, strict=True)]
    return pl.DataFrame({"epoch": epoch, **columns, "val_dice": tested})


@pytest.fixture(scope="session")
def large_study():
    """Runs by dataset of 15 encoders and 3 controls with 10 seeds; see `a_large_study`."""
    return a_large_study()


SIDE_PX = 32


def draw_results(results, shifts, control=(), kept=True, tile_px=SIDE_PX, fold=None, photos=True):
    """Write runs with predictions and pictures of tiles and token grids; return them with their folders.

    The left half of every tile is label a, the right half label b. `shifts` has, by encoder, for each seed and tile the
    number of columns by which the predicted border is too far right.
    """
    runs = []
    truth = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    truth[:, SIDE_PX // 2 :] = 1
    for name, of_seeds in shifts.items():
        for seed, of_tiles in enumerate(of_seeds):
            tiles = tuple(f"t{fold or 0}{i}" for i in range(len(of_tiles)))
            borders = [np.arange(SIDE_PX) >= SIDE_PX // 2 + shift for shift in of_tiles]
            predicted = np.stack([np.tile(border, (SIDE_PX, 1)) for border in borders]).astype(np.uint8)
            run = a_part(
                name, seed, (1, 0, 0), (1, 0, 0), title=name.upper(), control=name in control, fold=fold,
                identity={"splits": {"test": list(tiles)}},
            )  # fmt: skip
            run.record.recipe["tile_px"] = tile_px
            rows = [
                ("test", tile, label, *_outcomes(predicted[at] == i, truth == i))
                for at, tile in enumerate(tiles) for i, (label, _) in enumerate(LABELS)
            ]  # fmt: skip
            validated = run.counts.filter(pl.col("split") == "val")
            run = msgspec.structs.replace(run, counts=pl.concat([pl.DataFrame(rows, COUNTS, orient="row"), validated]))
            folder = run_folder(results, "toy", "d", name, seed, fold)
            with whole_folder(folder) as partial:
                (partial / "decoder.safetensors").write_bytes(b"weights")
                if kept:
                    write_predictions(partial, Predictions(tiles, predicted, np.stack([truth] * len(tiles))))
                write_run(partial, run)
            runs.append(msgspec.structs.replace(run, folder=folder))
            grids = {tile: np.full((4, 4, 3), 7 * i, np.uint8) for i, tile in enumerate(tiles)}
            write_token_pictures(folder.parent, grids)
    if photos:
        write_tile_pictures(results / "toy" / "d", {tile: _photo(i) for i, tile in enumerate(tiles)})
    return runs


def _outcomes(said, there):
    """tp, fp, fn of a label that is predicted (`said`) and true (`there`) at some pixels."""
    return int((said & there).sum()), int((said & ~there).sum()), int((there & ~said).sum())


def _photo(grey):
    file = io.BytesIO()
    Image.new("RGB", (SIDE_PX, SIDE_PX), (200 - 9 * grey,) * 3).save(file, "JPEG", comment=b"side_px 64")
    return file.getvalue()


@pytest.fixture(scope="session")
def drawn():
    """Write results with predictions and pictures; see `draw_results`."""
    return draw_results


THREE = (("background", "#111111"), ("b", "#ff0000"), ("c", "#0000ff"))


@pytest.fixture(scope="session")
def many_runs(part):
    """Return runs of several encoders and seeds on many test tiles, with counts drawn from a seed."""

    def runs(
        quality=(("x", 1.5), ("y", 0.5)), tiles=10, seeds=5, folds=0, lacking=(), controls=(), labels=THREE, **fields
    ):
        rng = np.random.default_rng(3)
        truth = rng.integers(500, 5_000, (tiles, len(labels)))
        truth[:, [name in lacking for name, _ in labels]] = 0
        made = []
        for name, good in quality:
            for seed in range(seeds):
                share = 1 / (1 + np.exp(-good - rng.normal(0, 0.4, truth.shape)))
                tp = np.rint(truth * share).astype(int)
                fp = np.rint(rng.uniform(100, 900, truth.shape)).astype(int)
                for fold in range(folds) if folds else [None]:
                    at = [t for t in range(tiles) if fold is None or t % folds == fold]
                    rows = [
                        ("test", f"t{t:02d}", label, int(tp[t, i]), int(fp[t, i]), int(truth[t, i] - tp[t, i]))
                        for t in at for i, (label, _) in enumerate(labels)
                    ]  # fmt: skip
                    splits = {"splits": {"test": [f"t{t:02d}" for t in at]}} if folds else {}
                    one = part(
                        name, seed, *[(1, 1, 1)] * len(labels), validated=[(9, 0, 0)] * len(labels), labels=labels,
                        fold=fold, title=name, control=name in controls, identity=splits, **fields,
                    )  # fmt: skip
                    made.append(msgspec.structs.replace(one, counts=pl.DataFrame(rows, schema=COUNTS, orient="row")))
        return made

    return runs


@pytest.fixture(scope="session")
def swept_findings(many_runs):
    """Return the findings of the studies of a sweep.

    `settings` has, by the values of the swept fields, the quality of each encoder. `trained` has the number of training
    tiles by the value of `subset`. The names of the studies say nothing.
    """

    def findings(sweep, settings, trained=None, **fields):
        made = []
        for i, (values, quality) in enumerate(settings.items()):
            setting = dict(zip(sweep, values, strict=True))
            tiles = {"train": (trained or {}).get(setting.get("subset"), 15), "val": 5, "test": 10}
            runs = many_runs(quality, study=f"study-{i}", splits=tiles, **fields)
            for run in runs:
                swept = [[field, list(some)] for field, some in sweep.items()]
                run.record.recipe.update(sweep_of="toy", setting=list(map(list, setting.items())), swept=swept)
            made.append(find(runs))
        return made

    return findings


@pytest.fixture(scope="session")
def swept(swept_findings):
    """Return the only dataset of a sweep; see `swept_findings`."""

    def swept(sweep, settings, **fields):
        (one,) = swept_datasets("toy", swept_findings(sweep, settings, **fields))
        return one

    return swept


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="200"><circle cx="99" cy="99" r="50"/></svg>'
MARKUP = '<img src=x onerror="alert(1)"><b>&amp; "x"'


@pytest.fixture(scope="session")
def small_page(tmp_path_factory):
    """A page of one dataset with seven encoders and a control; names hold markup. Figures are empty rectangles."""
    shifts = {f"e{i}": [[i + s, 3, 1 + i, 2 * i] for s in range(3)] for i in range(7)}
    runs = draw_results(tmp_path_factory.mktemp("page"), shifts | {"raw": [[9, 9, 9, 9]] * 3}, control=("raw",))
    runs[0].record.recipe["question"] = f"Which one? {MARKUP}"
    found = find(runs)
    names = [(row.encoder.display + MARKUP * (i == 1), row) for i, row in enumerate(found.summary.rows)]
    rows = [
        TableRow((Cell(name), Cell(f"{100 * row.mean[-1]:.2f}", 100 * row.mean[-1], i + 1, i < 2)), row.is_control)
        for i, (name, row) in enumerate(names)
    ]
    table = ReportTable("dice", f"Dice {MARKUP}", ("encoder", "mean"), tuple(rows), (f"A note. {MARKUP}",))
    figures = {"intervals.svg": SVG, "ranks.svg": SVG, "curves.png": b"\x89PNG, not used", "curves.svg": SVG}
    part = DatasetPart(found, [table], figures, picture_rows(found))
    study = StudyPart(method=[f"We did. {MARKUP}"], bibtex="@book{a}", damaged=[f"run 1 {MARKUP}"])
    return page([part], study)
