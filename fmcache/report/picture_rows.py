"""Figure 2 of the paper: rows of a tile, its truth and the prediction of each encoder, with the errors outlined.

The counts choose the tiles; the stored predictions of one run per encoder are then drawn. The same results give the
same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from fmcache.manifest import IGNORE
from fmcache.report.drawing import (
    Mask,
    ScaleBar,
    coloured,
    jpeg,
    outlined,
    padded,
    palette_of,
    png,
    side_of,
    smaller,
)
from fmcache.report.findings import Findings
from fmcache.scores.dice import Reduction, dice, mean_of_defined
from fmcache.scores.kept_pictures import tile_pictures, token_pictures
from fmcache.scores.predictions import read_predictions
from fmcache.scores.records import RunResults

WIDE_PX, SMALL_PX = 320, 176
"""Side of the pictures that compare encoders, and of those of one encoder."""


class Picture(NamedTuple):
    """One picture: its name and what is said below it, what a screen reader reads, and its file (PNG or JPEG)."""

    name: str
    about: str
    alt: str
    file: bytes

    @property
    def mime(self) -> str:
        """The type of the file."""
        return "image/png" if self.file.startswith(b"\x89PNG") else "image/jpeg"


class PictureRow(NamedTuple):
    """A row of pictures, its title, and the tile that it shows (empty: several)."""

    title: str
    tile: str
    pictures: tuple[Picture, ...]


class PictureRows(NamedTuple):
    """The pictures of a dataset.

    compared: tiles with the predictions of all encoders. encoders: for each encoder its best, median and worst tile.
    tokens: the token grid of one tile for each encoder, or empty. legend: (label, colour). notes: plain text on which
    runs and tiles are shown, and what is missing.
    """

    compared: tuple[PictureRow, ...]
    encoders: tuple[PictureRow, ...]
    tokens: tuple[PictureRow, ...]
    legend: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


MISSING = (
    "There are no pictures: the results of these runs hold no predictions, because an earlier fmcache wrote them. "
    "Run fmcache fit with --recompute to get them."
)


class _Shown(NamedTuple):
    """The run of an encoder (on a fold) whose predictions are drawn: its seed, folder, and the tiles that it kept."""

    run: RunResults
    folder: Path
    tiles: tuple[str, ...]


class _Drawn(NamedTuple):
    """A tile to draw: label ids, both (y, x) uint8 in the size of the recipe's tiles."""

    tile: str
    predicted: Mask
    truth: Mask


def picture_rows(findings: Findings) -> PictureRows:
    """Return the pictures of a dataset, read from the folders of its runs. Controls are drawn last.

    Where no run has predictions, there are no rows, and a note says how to get them.
    """
    return _Drawer(findings).rows()


class _Drawer:
    def __init__(self, findings: Findings) -> None:
        record = findings.summary.record
        self.summary = findings.summary
        self.titles = {row.encoder.name: row.encoder.display for row in self.summary.rows}
        self.palette = palette_of([colour for _, colour in record.labels])
        self.tile_dice = {
            name: _mean_by_tile([run for run in findings.runs if run.record.encoder.name == name], findings)
            for name in self.titles
        }
        self.shown = {
            name: _shown([run for run in findings.runs if run.record.encoder.name == name], self.summary.reduction)
            for name in self.titles
        }
        self.of_run = {
            name: {tile: value for one in shown for tile, value in _by_tile(one.run, self.summary.reduction).items()}
            for name, shown in self.shown.items()
        }
        folder = next((run.folder for run in findings.runs if run.folder is not None), None)
        self.photos = {} if folder is None else tile_pictures(_dataset_folder(folder, record.fold))

    def rows(self) -> PictureRows:
        legend = self.summary.record.labels
        names = [name for name in self.titles if self.shown[name]]
        if not names:
            return PictureRows((), (), (), legend, (MISSING,))
        compared = self._compared(names)
        own = {name: _extremes({tile: self.tile_dice[name][tile] for tile in self._kept(name)}) for name in names}
        wanted = {name: {*compared.values(), *own[name].values()} for name in names}
        drawn = {(name, one.tile): one for name in names for one in self._read(name, wanted[name])}
        compared_rows = tuple(
            PictureRow(title, tile, self._row(tile, [name for name in names if (name, tile) in drawn], drawn, WIDE_PX))
            for title, tile in compared.items()
        )
        encoder_rows = tuple(
            PictureRow(
                self.titles[name],
                "",
                tuple(
                    picture
                    for title, tile in own[name].items()
                    for picture in self._row(tile, [name], drawn, SMALL_PX, f"{title} {tile}")
                ),
            )
            for name in names
        )
        return PictureRows(compared_rows, encoder_rows, self._tokens(compared), legend, tuple(self._notes(names)))

    def _row(
        self, tile: str, names: Sequence[str], drawn: Mapping[tuple[str, str], _Drawn], side_px: int, title: str = ""
    ) -> tuple[Picture, ...]:
        """Return the pictures of a tile, of its truth and of the predictions of encoders."""
        first = drawn[names[0], tile]
        return (
            *self._tile(first, side_px, title),
            *(self._prediction(name, drawn[name, tile], side_px, short=bool(title)) for name in names),
        )

    def _kept(self, name: str) -> list[str]:
        return [tile for one in self.shown[name] for tile in one.tiles]

    def _compared(self, names: Sequence[str]) -> dict[str, str]:
        """Return the tiles on which encoders are compared, by title: best, median and worst, and most disagreement."""
        ranked = [row.encoder.name for row in self.summary.ranked if row.encoder.name in names] or list(names)
        common = [tile for tile in self._kept(ranked[0]) if all(tile in self._kept(name) for name in names)]
        means = mean_of_defined(
            np.array([[self.tile_dice[name][tile] for tile in common] for name in ranked]).reshape(-1, len(common)), 0
        )
        tiles = _extremes(dict(zip(common, map(float, means), strict=True)))
        if len(ranked) < 2 or not common:
            return tiles
        share = self._disagreement(ranked, common)
        most = max(common, key=lambda tile: share[tile])
        if share[most] <= 0:
            return tiles
        what = f"encoders disagree most ({share[most]:.0%} of the pixels)"
        joined = {f"{title}, where {what}" if tile == most else title: tile for title, tile in tiles.items()}
        return joined if most in tiles.values() else tiles | {f"Tile where {what}": most}

    def _disagreement(self, names: Sequence[str], tiles: Sequence[str]) -> dict[str, float]:
        """Return the share of pixels on which not all encoders predict the same label, for each tile."""
        first: dict[str, Mask] = {}
        differs: dict[str, npt.NDArray[np.bool_]] = {}
        for name in names:
            for tile, predicted, _ in self._read(name, set(tiles)):
                if tile not in first:
                    first[tile], differs[tile] = predicted, np.zeros(predicted.shape, bool)
                else:
                    both = (predicted != IGNORE) & (first[tile] != IGNORE)
                    differs[tile] |= (predicted != first[tile]) & both
        return {tile: float(one.mean()) for tile, one in differs.items()}

    def _read(self, name: str, tiles: set[str]) -> Iterator[_Drawn]:
        """Yield the tiles of an encoder, in the size of the recipe; pixels that its token grid lacks are `IGNORE`."""
        side = self.summary.record.recipe["tile_px"]
        for one in self.shown[name]:
            stored = read_predictions(one.folder) if tiles & set(one.tiles) else None
            if stored is None:
                continue
            for at, tile in enumerate(stored.tiles):
                if tile in tiles:
                    yield _Drawn(tile, padded(stored.predicted[at], side), padded(stored.truth[at], side))

    def _tile(self, drawn: _Drawn, side_px: int, title: str) -> tuple[Picture, ...]:
        """Return the pictures of a tile and of its truth."""
        tile, pictures = drawn.tile, []
        if tile in self.photos:
            photo = Image.open(io.BytesIO(self.photos[tile]))
            bar = ScaleBar.of(self._um_px(photo), self.summary.record.recipe["tile_px"])
            small = photo.convert("RGB").resize((side_px, side_px), Image.Resampling.LANCZOS)
            name, alt = title or f"tile {tile}", f"Tile {tile}, with a scale bar of {bar.text}."
            pictures.append(Picture(name, f"bar {bar.text}", alt, jpeg(bar.drawn_on(small))))
        name = "truth" if pictures else f"truth of {title or f'tile {tile}'}"
        labels = ", ".join(_shares(drawn.truth, [label for label, _ in self.summary.record.labels]))
        file = png(coloured(smaller(drawn.truth, side_px), self.palette))
        return (*pictures, Picture(name, "", f"Truth of tile {tile}: {labels}.", file))

    def _um_px(self, photo: Image.Image) -> float | None:
        """Return um per pixel of the recipe's tiles; None if the manifest or the picture does not state it."""
        mpp, side = self.summary.record.mpp, side_of(photo)
        return mpp * side / self.summary.record.recipe["tile_px"] if mpp and side else None

    def _prediction(self, name: str, drawn: _Drawn, side_px: int, *, short: bool) -> Picture:
        title, value = self.titles[name], self.of_run[name][drawn.tile]
        score = "no Dice" if np.isnan(value) else f"Dice {100 * value:.1f}%"
        known = drawn.truth != IGNORE
        wrong = ((drawn.predicted != drawn.truth) & known).sum() / max(1, known.sum())
        alt = f"Prediction of {title} on tile {drawn.tile}: {score}, {wrong:.0%} of the labelled pixels are wrong."
        file = png(outlined(smaller(drawn.predicted, side_px), smaller(drawn.truth, side_px), self.palette))
        return Picture("prediction" if short else title, score, alt, file)

    def _tokens(self, compared: Mapping[str, str]) -> tuple[PictureRow, ...]:
        """Return the row of token grids of the first compared tile for which there are some."""
        grids = {
            name: {tile: grid for one in shown for tile, grid in token_pictures(one.folder.parent).items()}
            for name, shown in self.shown.items()
        }
        for tile in compared.values():
            pictures = tuple(
                Picture(
                    self.titles[name],
                    f"{of_tile[tile].shape[0]} x {of_tile[tile].shape[1]} tokens",
                    f"Token grid of {self.titles[name]} on tile {tile}: first three principal components as colours.",
                    png(of_tile[tile]),
                )
                for name, of_tile in grids.items()
                if tile in of_tile
            )
            if pictures:
                return (PictureRow("First three principal components of the token grid, as colours", tile, pictures),)
        return ()

    def _notes(self, names: Sequence[str]) -> list[str]:
        seeds = {one.run.record.seed for name in names for one in self.shown[name]}
        which = f" (seed {min(seeds)})" if len(seeds) == 1 else ""
        lines = [
            "Each prediction is that of one seed: the seed whose Dice over all test tiles is the median of the "
            f"encoder's seeds{which}. Its Dice on the tile is below it.",
            "Best, median and worst tiles are chosen by the Dice of a tile, as the mean over labels and seeds.",
            "Wrong pixels are outlined in black and white. Striped pixels have no label and are not scored.",
        ]
        if lost := [title for name, title in self.titles.items() if not self.shown[name]]:
            lines.append(
                f"No predictions are stored for {', '.join(lost)}: run fmcache fit with --recompute to get them."
            )
        if not self.photos:
            lines.append("The results hold no pictures of the tiles.")
        return lines


def _dataset_folder(run_folder: Path, fold: int | None) -> Path:
    return run_folder.parents[1 if fold is None else 2]


def _shown(runs: Sequence[RunResults], reduction: Reduction) -> list[_Shown]:
    """Return, for each fold, the run of the median seed among those that stored predictions."""
    found = []
    for fold in sorted({run.record.fold for run in runs}, key=str):
        scores = [(_score(run, reduction), run) for run in runs if run.record.fold == fold]
        middle = float(np.median([score for score, _ in scores]))
        for _, run in sorted(scores, key=lambda one: (abs(one[0] - middle), one[1].record.seed)):
            stored = None if run.folder is None else read_predictions(run.folder)
            if stored is not None and run.folder is not None:
                found.append(_Shown(run, run.folder, stored.tiles))
                break
    return found


def _score(run: RunResults, reduction: Reduction) -> float:
    """Return the Dice pooled over the test tiles, as the mean over labels; 0 if undefined."""
    sums = (
        run.counts.filter(pl.col("split") == "test")
        .group_by("label", maintain_order=True)
        .agg(pl.col("tp", "fp", "fn").sum())
    )
    per_label = dice(sums.select("tp", "fp", "fn").to_numpy())[int(reduction == "puma") :]
    return float(np.nan_to_num(mean_of_defined(per_label, 0)))


def _by_tile(run: RunResults, reduction: Reduction) -> dict[str, float]:
    """Return the Dice of each test tile, as the mean over labels."""
    labels = [name for name, _ in run.record.labels][int(reduction == "puma") :]
    test = run.counts.filter(pl.col("split") == "test")
    by_label = [test.filter(pl.col("label") == label).sort("tile") for label in labels]
    counts = np.stack([one.select("tp", "fp", "fn").to_numpy() for one in by_label], axis=1)
    means = mean_of_defined(dice(counts), 1)
    return dict(zip(by_label[0]["tile"], map(float, means), strict=True))


def _mean_by_tile(runs: Sequence[RunResults], findings: Findings) -> dict[str, float]:
    """Return the Dice of each test tile as the mean over an encoder's seeds; NaN if undefined in all."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for tile, value in _by_tile(run, findings.summary.reduction).items():
            values.setdefault(tile, []).append(value)
    return {tile: float(mean_of_defined(np.array(of), 0)) for tile, of in values.items()}


def _extremes(values: Mapping[str, float]) -> dict[str, str]:
    """Return the best, median and worst tile by title; a tile appears once, and tiles without a Dice never."""
    order = sorted((tile for tile in values if not np.isnan(values[tile])), key=lambda tile: (-values[tile], tile))
    if not order:
        return {}
    if len(order) == 1:
        return {"Only tile": order[0]}
    if len(order) == 2:
        return {"Best tile": order[0], "Worst tile": order[1]}
    return {"Best tile": order[0], "Median tile": order[(len(order) - 1) // 2], "Worst tile": order[-1]}


def _shares(truth: Mask, labels: Sequence[str]) -> list[str]:
    """Return the share of each label in the labelled pixels, in words."""
    known = max(1, int((truth != IGNORE).sum()))
    shares = [(label, int((truth == i).sum()) / known) for i, label in enumerate(labels)]
    return [f"{label} {share:.0%}" for label, share in shares if share] or ["no label"]
