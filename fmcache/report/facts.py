"""How the runs of a dataset were made: tiles, budget, versions, encoders with their weights, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fmcache.manifest import SPLITS
from fmcache.report.report_table import Cell, ReportTable, TableRow, number_cell
from fmcache.report.summary import Summary
from fmcache.scores.records import EncoderInfo
from fmcache.specs import OF_SWEEP


def facts(summary: Summary) -> dict[str, str]:
    """Return what was done, by name of the fact."""
    record = summary.record
    fit = record.recipe["fit"]
    steps = -(-record.tiles["train"] * fit["passes_per_epoch"] // fit["batch"]) * fit["epochs"]
    return {
        "tiles": " / ".join(f"{record.tiles[split]} {split}" for split in SPLITS)
        + (f" (fold {record.fold})" if summary.folds else ""),
        "tile size": f"{record.recipe['tile_px']} px" + (f", listed at {record.mpp:g} um/px" if record.mpp else ""),
        "views": f"{record.recipe['views']['count']} of each training tile",
        "budget": f"{steps} steps of up to {fit['batch']} views, {fit['epochs']} epochs",
        "decoder": f"{_decoder(record.recipe['decoder'])}{record.decoder_params:,} parameters (first encoder)",
        "folds": str(len(summary.folds)) if summary.folds else "none: one fixed split",
        "seeds": ", ".join(map(str, sorted({len({seed for _, seed in row.runs}) for row in summary.rows}))),
        "device": f"{record.device}, {record.threads} threads",
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }


def _decoder(settings: Mapping[str, Any]) -> str:
    """Return the kind of a decoder, if it is not the paper's, and its width, if it has one, before other facts."""
    kind = f"{settings['kind']}, " if settings.get("kind", "paper") != "paper" else ""
    return kind + (f"width {settings['width']}, " if "width" in settings else "")


def facts_tables(summary: Summary) -> list[ReportTable]:
    """Return the facts as a table, and the encoders with their weights, licences and citations as another."""
    what = [TableRow((Cell(name), Cell(text))) for name, text in facts(summary).items()]
    who = [
        TableRow(
            (
                Cell(row.encoder.display),
                *(number_cell(number) for number in (row.encoder.params, row.encoder.patch, row.encoder.width)),
                *(Cell(text) for text in (weights(row.encoder), row.encoder.licence, row.encoder.citation)),
            ),
            row.is_control,
        )
        for row in summary.rows
    ]
    columns = ("encoder", "parameters", "patch", "width", "weights", "licence", "citation")
    return [
        ReportTable("facts", "How it was done", ("what", "value"), tuple(what)),
        ReportTable("encoders", "Encoders", columns, tuple(who)),
    ]


def weights(encoder: EncoderInfo) -> str:
    """Return the name and sha256 of an encoder's weights; empty for random weights and controls."""
    if encoder.random_weights or not encoder.weights_sha256:
        return ""
    return f"weights {encoder.weights}, sha256 {encoder.weights_sha256}".replace("weights ,", "weights of")


def recipe_text(recorded: Mapping[str, Any]) -> str:
    """Return a recorded recipe as YAML; for a variant of a sweep, the recipe that trains this variant alone.

    The weights files of the recipe may have changed since the run, so they are left out: the weights that were used are
    listed with the encoders.
    """
    encoders = [
        {key: value for key, value in one.items() if key != "weights" or not value} if isinstance(one, dict) else one
        for one in recorded.get("encoders", ())
    ]
    recipe = {key: value for key, value in recorded.items() if key not in OF_SWEEP}
    text: str = yaml.safe_dump(recipe | {"encoders": encoders}, sort_keys=False, allow_unicode=True)
    return text
