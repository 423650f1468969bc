"""Which runs of a study predict: found below the results by study, dataset, encoder, fold and seed.

Everything comes from the records of the runs; neither manifest nor recipe is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from fmcache.errors import ResultsNotFound, SpecError, some
from fmcache.manifest import Label
from fmcache.report.drawing import side_of
from fmcache.scores.kept_pictures import tile_pictures
from fmcache.scores.records import RunRecord
from fmcache.scores.run_files import find_runs, read_record, studies

SAME_MPP = 1e-3
"""Largest relative difference of um/px that are taken as equal."""


class RunQuery(NamedTuple):
    """What a user asks for. Empty `dataset`: the study's only one. `seed` None: the median one, or all of them."""

    study: str
    encoder: str
    dataset: str = ""
    seed: int | None = None
    fold: int | None = None
    all_seeds: bool = False


class ChosenRuns(NamedTuple):
    """Runs of one encoder on one dataset, their folders, and why they were chosen."""

    records: tuple[RunRecord, ...]
    folders: tuple[Path, ...]
    reason: str

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels that were trained, by label id."""
        return tuple(Label(name, colour) for name, colour in self.records[0].labels)

    @property
    def folder_name(self) -> str:
        """A name for the folder of their maps: ``seed-003``, ``fold-0-seed-003`` or ``all-seeds``."""
        if len(self.records) > 1:
            return "all-seeds"
        (record,) = self.records
        return ("" if record.fold is None else f"fold-{record.fold}-") + f"seed-{record.seed:03d}"


def choose_runs(results: Path, query: RunQuery) -> ChosenRuns:
    """Return the runs that `query` asks for, after checking their files against their checksums.

    Without a seed it is the median one by validation Dice (the lower one of two): what a new seed would give. The best
    one would promise more.

    Raises
    ------
    ResultsNotFound
        When there is no such study, dataset, encoder, fold or seed; the message lists those that exist.
    SpecError
        When the study has several datasets and none is named.
    ResultsCorrupt, ResultsMismatch
        When files of a run are damaged, or a later fmcache wrote them.
    """
    folders = _folders(results, query)
    found = [(folder, read_record(folder)) for folder in folders]
    if query.fold is not None:
        folds = sorted({str(record.fold) for _, record in found})
        found = [pair for pair in found if pair[1].fold == query.fold]
        if not found:
            raise _absent(f"{_where(query)} has no fold {query.fold}", "folds", folds)
    if query.seed is not None:
        seeds = sorted({record.seed for _, record in found})
        found = [pair for pair in found if pair[1].seed == query.seed]
        if not found:
            raise _absent(f"{_where(query)} has no seed {query.seed}", "seeds", list(map(str, seeds)))
    if query.all_seeds:
        return ChosenRuns(
            tuple(record for _, record in found), tuple(folder for folder, _ in found),
            f"all {len(found)} runs: the map shows the label with the largest mean probability",
        )  # fmt: skip
    ranked = sorted(found, key=lambda pair: (pair[1].val_dice or 0.0, pair[1].fold or 0, pair[1].seed))
    folder, record = ranked[(len(ranked) - 1) // 2]
    return ChosenRuns((record,), (folder,), _reason(record, [one for _, one in ranked], query))


def tokens_identities(record: RunRecord) -> list[dict[str, Any]]:
    """Return the identity of the token cache of each tap that the decoder of a run reads."""
    stored = record.identity["tokens"]
    return stored if isinstance(stored, list) else [stored]


def tile_mpp(folder: Path, record: RunRecord, given: float | None = None) -> float:
    """Return the um per pixel of the tiles that an encoder saw: of the images, times their side, through `tile_px`.

    The side of an image before it was resized is a comment in the pictures of test tiles, which lie in `folder`, that
    of the dataset's results. `given` is the user's value.

    Raises
    ------
    SpecError
        When the results do not say it and it is not given, or `given` contradicts them.
    """
    side_px = int(record.recipe["tile_px"])
    sides = {side for photo in _photos(folder) if (side := side_of(photo))}
    found = {record.mpp * side / side_px for side in sides} if record.mpp else set[float]()
    if given and (other := [one for one in found if abs(one / given - 1) > SAME_MPP]):
        raise SpecError(
            f"--mpp {given:g} contradicts the results of {record.dataset!r}",
            expected=", ".join(f"{one:g} um/px for a tile of {side_px} px" for one in other),
            next_step="leave out --mpp",
        )
    if given or len(found) == 1:
        return given or found.pop()
    raise SpecError(
        f"the um per pixel of a tile of {record.dataset!r} are unknown",
        expected="one value: because slides are resampled to it",
        found="images of different sizes: " + ", ".join(f"{one:g}" for one in sorted(found))
        if found
        else "no `mpp:` in the manifest when the run was fitted"
        if not record.mpp
        else "no pictures of test tiles beside the results, which state the size of images",
        next_step=f"pass --mpp, the um per pixel of a tile of {side_px} px",
    )


def _photos(folder: Path) -> list[Image.Image]:
    found: list[Image.Image] = []
    for jpeg in tile_pictures(folder).values():
        try:
            found.append(Image.open(io.BytesIO(jpeg)))
        except (UnidentifiedImageError, OSError):
            continue
    return found


def _folders(results: Path, query: RunQuery) -> list[Path]:
    folders = find_runs(results, query.study) if query.study in studies(results) else []
    if not folders:
        raise _absent(f"there is no study {query.study!r} in {results}", "studies", studies(results))
    datasets = sorted({folder.relative_to(results).parts[1] for folder in folders})
    if query.dataset and query.dataset not in datasets:
        raise _absent(f"study {query.study!r} has no results on {query.dataset!r}", "datasets", datasets)
    if not query.dataset and len(datasets) > 1:
        raise SpecError(
            f"study {query.study!r} has results on several datasets",
            found=some(datasets),
            next_step="choose one with --dataset",
        )
    of_dataset = [
        folder for folder in folders if folder.relative_to(results).parts[1] == (query.dataset or datasets[0])
    ]
    of_encoder = [folder for folder in of_dataset if folder.relative_to(results).parts[2] == query.encoder]
    if not of_encoder:
        known = sorted({folder.relative_to(results).parts[2] for folder in of_dataset})
        raise _absent(f"study {query.study!r} has no runs of encoder {query.encoder!r}", "encoders", known)
    return of_encoder


def _reason(record: RunRecord, ranked: Sequence[RunRecord], query: RunQuery) -> str:
    scores = [one.val_dice for one in ranked if one.val_dice is not None]
    score = "unknown" if record.val_dice is None else f"{record.val_dice:.4f}"
    which = f"seed {record.seed}" if record.fold is None else f"fold {record.fold}, seed {record.seed}"
    if len(ranked) == 1:
        why = "as requested" if query.seed is not None else "the only run"
        return f"{which}, {why} (validation Dice {score})"
    return (
        f"{which}: the median of {len(ranked)} runs by validation Dice ({score}; they lie between {min(scores):.4f} "
        f"and {max(scores):.4f}), which is what a new seed would give; --seed K and --all-seeds choose others"
    )


def _where(query: RunQuery) -> str:
    return f"study {query.study!r}, encoder {query.encoder!r}"


def _absent(problem: str, what: str, known: Sequence[str]) -> ResultsNotFound:
    return ResultsNotFound(
        problem,
        expected=f"{what}: {some(known, 12)}" if known else "results of fmcache fit",
        next_step="correct the name, or choose another --work folder" if known else "run fmcache fit",
    )
