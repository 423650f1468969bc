"""Which recipe suits few tiles of one's own? The settings of a fitted sweep, judged by validation tiles alone.

    fmcache run pipelines/own-study-search.yaml
    python pipelines/own_study.py own-study-search          # --work DIR

For each dataset and setting, over seeds: the mean validation Dice of each encoder; `dead`: how many runs of encoders
with pretrained weights, and of all others, have a label below 5 % Dice although the validation tiles hold it;
`separation`: the lead of the best pretrained encoder over the best other one (controls, random weights), divided by the
pooled standard deviation over seeds. Test tiles are not looked at. In the figure, a hollow marker means that a label of
some seed is dead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import polars as pl

from fmcache.scores.dice import dice, mean_of_defined
from fmcache.scores.missed import dead
from fmcache.scores.run_files import find_runs, read_run, studies
from fmcache.specs import Setting, setting_text

COLOURS, MARKERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), "osD^"


class Runs(NamedTuple):
    """The runs of an encoder in one setting: `scores` (seed), and `dead` (seed), whether a label is dead."""

    title: str
    pretrained: bool
    scores: npt.NDArray[np.float64]
    dead: npt.NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", help="the names of recipes with a sweep; their settings are shown together")
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--figure", type=Path, help="also draw the table as a PNG")
    args = parser.parse_args()
    found = {key: runs for study in args.study for key, runs in read(args.work / "results", study).items()}
    if args.figure:
        draw(found, args.figure)
    for dataset in sorted({dataset for dataset, _ in found}):
        settings = {setting: runs for (of, setting), runs in found.items() if of == dataset}
        titles = [runs.title for runs in next(iter(settings.values()))]
        print(f"\n### {dataset}\n\n| setting | {' | '.join(titles)} | dead: pretrained, others | separation | order |")
        print("|---|" + "---|" * (len(titles) + 3))
        for setting, runs in settings.items():
            print(f"| {setting_text(setting)} | {' | '.join(cells(runs))} |")


def read(results: Path, study: str) -> dict[tuple[str, Setting], list[Runs]]:
    """Return the runs of each dataset and setting of a sweep, in the order of the sweep."""
    found: dict[tuple[str, Setting], list[Runs]] = {}
    place: dict[Setting, list[int]] = {}
    for name in studies(results):
        if not name.startswith(f"{study}."):
            continue
        of_encoder: dict[tuple[str, str], list[tuple[float, bool]]] = {}
        infos, setting, swept = {}, (), {}
        for folder in find_runs(results, name):
            run = read_run(folder)
            setting = tuple((field, value) for field, value in run.record.recipe["setting"])
            swept = {field: list(values) for field, values in run.record.recipe["swept"]}
            infos[run.record.encoder.name] = run.record.encoder
            of_encoder.setdefault((run.record.dataset, run.record.encoder.name), []).append(validation(run.counts))
        place[setting] = [swept[field].index(value) for field, value in setting]
        for (dataset, encoder), values in of_encoder.items():
            scores, lost = zip(*values, strict=True)
            info = infos[encoder]
            pretrained = not (info.control or info.random_weights)
            one = Runs(info.display, pretrained, np.array(scores), np.array(lost))
            found.setdefault((dataset, setting), []).append(one)
    return {
        (dataset, setting): sorted(found[dataset, setting], key=lambda one: (not one.pretrained, one.title))
        for dataset, setting in sorted(found, key=lambda key: (key[0], place[key[1]]))
    }


def validation(counts: pl.DataFrame) -> tuple[float, bool]:
    """Return the mean Dice over labels on the validation tiles, and whether a label is dead there."""
    sums = counts.filter(pl.col("split") == "val").group_by("label").agg(pl.col("tp", "fp", "fn").sum())
    values = sums.select("tp", "fp", "fn").to_numpy().astype(np.int64)
    return float(mean_of_defined(dice(values), axis=0)), bool(dead(values).any())


def draw(found: dict[tuple[str, Setting], list[Runs]], path: Path) -> None:
    """Draw the validation Dice of every setting: a row for each setting, a panel for each dataset."""
    datasets = sorted({dataset for dataset, _ in found})
    settings = list(dict.fromkeys(setting for _, setting in found))
    figure, panels = plt.subplots(
        1, len(datasets), figsize=(4.2 * len(datasets) + 3.2, 0.26 * len(settings) + 1.2), sharey=True, squeeze=False
    )
    for panel, dataset in zip(panels[0], datasets, strict=True):
        panel.set(title=dataset, xlabel="mean Dice on validation tiles, percent", ylim=(len(settings) - 0.5, -0.5))
        for at, setting in enumerate(settings):
            for one, colour, marker in zip(found.get((dataset, setting), []), COLOURS, MARKERS, strict=False):
                filled = "none" if one.dead.any() else colour
                panel.errorbar(
                    100 * one.scores.mean(), at, xerr=100 * one.scores.std(ddof=1), color=colour, marker=marker,
                    markerfacecolor=filled, linestyle="none", label=one.title if at == 0 else None,
                )  # fmt: skip
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(settings)), [setting_text(setting) for setting in settings], fontsize=7)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=130, metadata={"Software": None})


def cells(runs: list[Runs]) -> Iterator[str]:
    for one in runs:
        yield f"{100 * one.scores.mean():.1f} ± {100 * one.scores.std(ddof=1):.1f}"
    pretrained, others = ([one for one in runs if one.pretrained is side] for side in (True, False))
    lost = [np.concatenate([one.dead for one in side]) for side in (pretrained, others)]
    yield ", ".join(f"{side.sum()} of {len(side)}" for side in lost)
    best, rival = (max(side, key=lambda one: float(one.scores.mean())) for side in (pretrained, others))
    spread = np.sqrt((best.scores.var(ddof=1) + rival.scores.var(ddof=1)) / 2)
    yield f"{(best.scores.mean() - rival.scores.mean()) / spread:.1f}" if spread else "-"
    ranked = sorted(runs, key=lambda one: -float(one.scores.mean()))
    yield " > ".join(str(1 + runs.index(one)) for one in ranked)


if __name__ == "__main__":
    main()
