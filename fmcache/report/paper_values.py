"""The values of the paper (Vitoria et al.) beside ours, for its two datasets. ``paper_tables.csv`` holds them.

A dataset is the paper's if its name in the manifest, its labels and its um/px are those of the paper's dataset. An
encoder is the paper's if it has the name of the card, with the card's last tap and with trained weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from fmcache.report.findings import Findings
from fmcache.report.rank_agreement import sentence, side
from fmcache.report.report_table import Cell, ReportTable, TableRow, interval_cell, percent_cell
from fmcache.report.summary import MEAN, Row
from fmcache.scores.records import RunRecord
from fmcache.specs import Recipe
from fmcache.statistics.agreement import Agreement, agreement
from fmcache.statistics.agreement import published as of_paper
from fmcache.statistics.evidence import score_name

MPP = {"puma": (0.23,), "upv-anxa5": (0.22, 0.44)}
"""um/px of the paper's datasets by name; the tiles of UPV-ANXA5 may be listed before or after downsampling."""
ENCODERS = {
    "conch": "CONCH",
    "conchv1.5": "CONCHv1.5",
    "h-optimus-0": "H-Optimus-0",
    "h-optimus-1": "H-Optimus-1",
    "hibou-b": "Hibou-b",
    "hibou-l": "Hibou-L",
    "kaiko-vitl14": "Kaiko",
    "lunit-vits8": "Lunit",
    "phikon": "Phikon",
    "phikon-v2": "Phikon-v2",
    "prov-gigapath": "Prov-GigaPath",
    "uni": "UNI",
    "uni2-h": "UNI2-h",
    "virchow": "Virchow",
    "virchow2": "Virchow2",
}
"""The paper's name of an encoder by the name of its card."""
SEEDS = 10
TILES = {"train": 15, "val": 5, "test": 10}
"""Number of tiles in the paper's splits."""
ROUNDING = 0.02
"""Points by which the mean of printed Dice may differ from the printed mean."""
PAPER = {
    "encoder": pl.String,
    "paper_name": pl.String,
    "label": pl.String,
    "score": pl.String,
    "estimate": pl.Float64,
    "paper": pl.Float64,
    "paper_std": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}


def published() -> pl.DataFrame:
    """Return the paper's tables: dataset, encoder, label, dice_mean_percent, dice_std_percent."""
    return pl.read_csv(Path(__file__).with_name("paper_tables.csv"), comment_prefix="#")


def paper_frame(found: Findings) -> pl.DataFrame:
    """Return ours and the paper's Dice for every encoder and label of both; columns are `PAPER`, empty if none is."""
    return pl.DataFrame(list(_rows(found)), schema=PAPER, orient="row")


def is_of_paper(record: RunRecord) -> bool:
    """Return whether a run's dataset is one of the paper's two: by name, labels and um/px."""
    if record.mpp not in MPP.get(record.dataset, ()):
        return False
    labels = published().filter(pl.col("dataset") == record.dataset, pl.col("label") != MEAN)["label"].unique()
    return sorted(label.lower() for label, _ in record.labels) == sorted(labels)


def _rows(found: Findings) -> Iterator[tuple[object, ...]]:
    record = found.summary.record
    if not is_of_paper(record):
        return
    of_dataset = published().filter(pl.col("dataset") == record.dataset)
    theirs = {(encoder, label): (mean, std) for _, encoder, label, mean, std in of_dataset.iter_rows()}
    score = score_name(found.evidence.score)
    known = found.intervals_of()
    for row in found.summary.rows:
        name = _name_in_paper(row)
        for label in found.summary.columns:
            own = known[row.encoder.name, label]
            if name and own["estimate"] is not None:
                paper, std = (value / 100 for value in theirs[name, label.lower()])
                limits = (None if own[end] is None else own[end] - paper for end in ("low", "high"))
                ours = own["estimate"]
                yield (row.encoder.name, name, label, score, ours, paper, std, ours - paper, *limits)


def paper_agreement(found: Findings) -> Agreement | None:
    """Return how far our mean Dice ranks the encoders as the paper does; None if there is nothing to compare."""
    frame = paper_frame(found).filter(pl.col("label") == MEAN)
    if frame.is_empty():
        return None
    mean, std = (dict(zip(frame["encoder"], frame[column], strict=True)) for column in ("paper", "paper_std"))
    return agreement(side(found), of_paper(mean, std, SEEDS))


def _name_in_paper(row: Row) -> str | None:
    return None if row.is_control else ENCODERS.get(row.encoder.name)


def paper_table(found: Findings) -> ReportTable | None:
    """Return our Dice beside the paper's; None if the dataset is not the paper's or no encoder is."""
    frame = paper_frame(found)
    if frame.is_empty():
        return None
    rows = {row.encoder.name: row for row in found.summary.rows}
    columns = {label: i for i, label in enumerate(found.summary.columns)}
    lines = []
    for one in frame.iter_rows(named=True):
        row, label = rows[one["encoder"]], one["label"]
        cells = (
            Cell(row.encoder.display),
            Cell(label),
            percent_cell(one["estimate"], row.std[columns[label]]),
            percent_cell(one["paper"], one["paper_std"]),
            percent_cell(one["difference"], signed=True),
            interval_cell(one["low"], one["high"], signed=True),
        )
        lines.append(TableRow(cells))
    head = ("encoder", "label", "ours", "paper", "difference", "95 % interval")
    return ReportTable("paper", "Beside the paper", head, tuple(lines), tuple(_notes(found)))


def _notes(found: Findings) -> list[str]:
    lines = [
        f"Dice in percent ± standard deviation over seeds; the paper has {SEEDS} seeds (Vitoria et al., A Benchmark of "
        "Foundation Model Encoders for Histopathological Image Segmentation). The paper's split is not published: its "
        "training and test tiles are others. The interval is that of our value, less the paper's value: it does not "
        "cover the paper's tiles and seeds.",
    ]
    if compared := paper_agreement(found):
        lines.append(f"{sentence('of ours and of the paper', compared)} They hold for the tiles that the paper tested.")
    if others := _other_settings(found.summary.record):
        lines.append(f"Settings that differ from the paper's: {', '.join(others)}.")
    given = [row.encoder.display for row in found.summary.rows if _name_in_paper(row) and _weights_given(found, row)]
    if given:
        lines.append(f"Weights files chosen by the user, which may not be the published ones: {', '.join(given)}.")
    return lines + _uneven_means(found)


def _uneven_means(found: Findings) -> list[str]:
    """Return a line for each encoder whose mean in the paper is not the mean of its labels, as printed there."""
    shown = paper_frame(found)["paper_name"].unique(maintain_order=True)
    table = published().filter(pl.col("dataset") == found.summary.record.dataset)
    lines = []
    for name in shown:
        *of_labels, mean = table.filter(pl.col("encoder") == name)["dice_mean_percent"]
        theirs = sum(of_labels) / len(of_labels)
        if abs(theirs - mean) > ROUNDING:
            lines.append(f"The paper's mean of {name} ({mean:.2f}) is not the mean of its labels ({theirs:.2f}).")
    return lines


def _weights_given(found: Findings, row: Row) -> bool:
    return any(run.record.origin.get("chosen") for run in found.runs if run.record.encoder.name == row.encoder.name)


def _other_settings(record: RunRecord) -> list[str]:
    """Return the settings of a run that can change its Dice and differ from the paper's, as text."""
    paper, ours = (dict(_leaves(recipe)) for recipe in (msgspec.to_builtins(Recipe()), record.recipe))
    fields = ("tile_px", "views", "grid", "precision", "store", "decoder", "fit", "dice", "folds", "subset")
    texts = [
        f"{key} {ours[key]} (paper: {value})"
        for key, value in paper.items()
        if key.partition(".")[0] in fields and key != "fit.seeds" and ours.get(key, value) != value
    ]
    return texts + [
        f"{record.tiles[split]} {split} tiles (paper: {n})" for split, n in TILES.items() if record.tiles[split] != n
    ]


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each leaf; a list, which JSON makes of a tuple, is a tuple again."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", tuple(inner) if isinstance(inner, list) else inner
